"""Taking single edits out again is a capability that a card declares."""

from __future__ import annotations

import pytest

from editors import catalogue
from editors.base import RetractingEditor, retracting
from editors.presets import load_editor
from tests.support import tiny_model


@pytest.mark.parametrize("name", catalogue.names())
def test_a_card_says_that_its_editor_retracts_if_and_only_if_it_does(name: str) -> None:
    found = catalogue.editor_class(name)
    assert found.card.retracts == issubclass(found, RetractingEditor) == catalogue.can_retract(name)


def test_both_ledger_editors_retract() -> None:
    assert {name for name in catalogue.names() if catalogue.can_retract(name)} >= {"ledger", "ledger_solve"}


def test_edits_of_an_editor_that_is_gone_cannot_be_retracted() -> None:
    assert not catalogue.can_retract("an editor that was uninstalled")


@pytest.mark.parametrize("name, able", [("ledger_solve", True), ("ft", False)])
def test_an_editor_is_seen_as_one_that_retracts_where_its_card_says_so(name: str, able: bool) -> None:
    editor = load_editor(name, tiny_model())
    assert (retracting(editor) is editor) == able
