"""The embedded nights against their truth, and the arithmetic of the score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from checks.scoring.nights import ScoringError, score_nights, verdict_scores
from tests.checks.nights import no_suite
from warehouse.reference.world import NIGHTS


@pytest.fixture(scope="module")
def score() -> dict[str, Any]:
    return score_nights(NIGHTS)


def test_embedded_nights_clear_the_bars_on_hard_and_soft_labels(score: dict[str, Any]) -> None:
    assert score["hard"]["macro_f1"] >= 0.97 and score["soft"]["macro_f1"] >= 0.80
    assert score["hard"]["n"] + score["soft"]["n"] == 384


def test_the_suite_finds_nothing_that_the_rules_let_through(score: dict[str, Any]) -> None:
    assert score["suite_failures"] == 0


@pytest.mark.parametrize("kind", ["garbage_value", "self_reference", "same_night_contradiction"])
def test_what_must_never_reach_an_editor_does_not(score: dict[str, Any], kind: str) -> None:
    assert score["by_kind"][kind]["recall"] == 1.0


def test_slots_hold_what_they_should_when_a_night_is_over(score: dict[str, Any]) -> None:
    assert score["after"] >= 0.99


def test_reasons_are_the_policys_own(score: dict[str, Any]) -> None:
    assert score["reasons"] >= 0.97


def test_a_score_is_json(score: dict[str, Any]) -> None:
    assert json.loads(json.dumps(score, allow_nan=False)) == score


def test_macro_f1_is_the_mean_over_the_verdicts_of_the_truth() -> None:
    scores = verdict_scores([("accept", "accept"), ("accept", "reject"), ("reject", "reject"), ("reject", "quarantine")])
    assert scores["by_verdict"]["accept"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "n": 2}
    assert scores["by_verdict"]["reject"]["f1"] == pytest.approx(0.5)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0.5) / 2)


def test_nothing_to_score_has_no_macro_f1() -> None:
    assert verdict_scores([])["macro_f1"] is None


def test_a_folder_without_nights_or_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match="no night"):
        score_nights(tmp_path)
    (tmp_path / "night-01.events.jsonl").write_text("")
    with pytest.raises(ScoringError, match="truth"):
        score_nights(tmp_path, suite=no_suite)
