"""The cards against the survey's Table 3."""

from __future__ import annotations

import pytest

from editors import catalogue
from editors.base import EditorCard
from editors.survey import TABLE_3, differences, row_of


def card(name: str) -> EditorCard:
    return catalogue.editor_class(name).card


def test_every_methodology_of_the_survey_is_here() -> None:
    assert set(TABLE_3) <= set(catalogue.names())


@pytest.mark.parametrize("name", sorted(TABLE_3))
def test_a_card_agrees_with_the_survey_or_says_why_not(name: str) -> None:
    differing = differences(card(name))
    assert bool(differing) == bool(card(name).survey), f"{name} differs in {differing}"


def test_one_fact_at_a_time_is_no_batch() -> None:
    assert not row_of(card("r_rome")).bns and row_of(card("r_rome")).sse


def test_a_column_that_differs_is_found() -> None:
    assert differences(card("memit").__class__(**{**vars(card("memit")), "trains": True}))[0] == "training"


@pytest.mark.parametrize("name", catalogue.names())
def test_a_reason_stands_only_where_there_is_a_row_to_differ_from(name: str) -> None:
    assert not card(name).survey or name in TABLE_3
