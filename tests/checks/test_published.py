"""The scores that papers print, with numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest

from checks.errors import EvaluationError
from checks.metrics.published import Duel, duels_of, published, won
from checks.predictor import Answer, Question
from tests.checks.support import ScriptedPredictor, probe
from warehouse.records import EditRequest

REQUEST = EditRequest(
    request_id="e", prompt="Ada lives in", subject="Ada", relation="P551", target_new="Rome", target_true="New York City"
)
PROBES = [
    probe("rephrase", "The home of Ada is", "Rome"), probe("neighbourhood", "Bea lives in", "Oslo"),
    probe("neighbourhood", "Cid lives in", "Rome"), probe("unrelated", "Dan speaks", "Dutch"),
]  # fmt: skip


class Likelihoods(ScriptedPredictor):
    """Gives answers their log-probability, in words; the mean over words is what a duel compares."""

    def __init__(self, log_probs: Mapping[str, float], told: bool = True) -> None:
        super().__init__("likelihoods", {})
        self.log_probs, self.told = log_probs, told

    def score(self, questions: Sequence[Question]) -> list[Answer]:
        return [
            Answer(False, 0.0, self.log_probs[q.answer], 0.0, "", len(q.answer.split()) if self.told else 0) for q in questions
        ]


def test_an_edit_is_asked_at_its_prompt_its_rephrases_and_its_neighbours() -> None:
    assert duels_of(REQUEST, PROBES) == [
        Duel("e", "efficacy", "Ada lives in", ("Rome",), "New York City"),
        Duel("e", "paraphrase", "The home of Ada is", ("Rome",), "New York City"),
        # Cid's answer is the new one: nothing to tell apart.
        Duel("e", "specificity", "Bea lives in", ("Oslo",), "Rome"),
    ]


@pytest.mark.parametrize("old", [None, "Rome"])
def test_without_an_old_answer_there_is_nothing_to_beat(old: str | None) -> None:
    assert duels_of(REQUEST.model_copy(update={"target_true": old}), PROBES) == []


def test_the_mean_over_tokens_is_compared_so_that_a_long_answer_does_not_lose_by_its_length() -> None:
    (duel, *_) = duels_of(REQUEST, PROBES)
    # Sums say Rome (-2 against -3), means the city of three words (-2 against -1).
    assert won(Likelihoods({"Rome": -2.0, "New York City": -3.0}), [duel]) == {duel: False}
    assert won(Likelihoods({"Rome": -2.0, "New York City": -6.6}), [duel]) == {duel: True}


def test_a_tie_is_no_win() -> None:
    (duel, *_) = duels_of(REQUEST, PROBES)
    assert won(Likelihoods({"Rome": -1.0, "New York City": -3.0}), [duel]) == {duel: False}


def test_any_of_several_right_answers_wins() -> None:
    duel = Duel("e", "specificity", "Bea lives in", ("Oslo", "Christiania"), "Rome")
    assert won(Likelihoods({"Oslo": -3.0, "Christiania": -1.0, "Rome": -2.0}), [duel]) == {duel: True}


@pytest.mark.parametrize(("rome", "oslo"), [(math.nan, -1.0), (-1.0, math.nan), (math.nan, math.nan)])
def test_a_broken_model_wins_nothing(rome: float, oslo: float) -> None:
    duel = Duel("e", "specificity", "Bea lives in", ("Oslo",), "Rome")
    assert won(Likelihoods({"Rome": rome, "Oslo": oslo}), [duel]) == {duel: False}


def test_an_answer_without_its_number_of_tokens_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="number of tokens"):
        won(Likelihoods({"Rome": -1.0, "New York City": -2.0}, told=False), duels_of(REQUEST, PROBES)[:1])


def test_prompts_count_within_their_edit_first() -> None:
    """Edit a wins 1 of 1, edit b 1 of 3: 2/3 and not 2/4."""
    wins = {"a": (True,), "b": (True, False, False)}
    after = {Duel(e, "paraphrase", f"{i}", ("x",), "y"): win for e, found in wins.items() for i, win in enumerate(found)}
    scores = {s.slice: s for s in published(after, dict.fromkeys(after, False))}
    assert (scores["paraphrase"].value, scores["paraphrase"].n) == (pytest.approx(2 / 3), 2)
    assert scores["paraphrase:before"].value == 0.0
    assert (scores["specificity"].value, scores["specificity"].n) == (None, 0)


def test_efficacy_is_a_proportion_of_edits_with_wilsons_interval() -> None:
    after = {Duel(str(i), "efficacy", "p", ("x",), "y"): i < 9 for i in range(10)}
    (score,) = (s for s in published(after, after) if s.slice == "efficacy")
    assert (score.value, score.n) == (0.9, 10)
    assert score.low == pytest.approx(0.596, abs=1e-3) and score.high == pytest.approx(0.982, abs=1e-3)
