"""Rates of a model that is asked in several forms, and the prompts that say nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from checks.evaluation import evaluate
from checks.metrics.forms import by_form, not_counted, unanswered
from checks.metrics.outcome import ProbeOutcome
from tests.checks.support import ScriptedPredictor, probe
from warehouse.probe_identity import make_probe_set
from warehouse.records import Prediction, Probe, Score

CHAT, BARE = probe("rephrase", "chat: capital?", "Lyon", request_id="r"), probe("rephrase", "capital", "Lyon", request_id="r")
OWN = probe("success", "chat: the capital", "Lyon", request_id="r")


def _form_of(prompt: str) -> str:
    return "chat" if prompt.startswith("chat:") else "plain"


def _base(right: Sequence[str]) -> Callable[[list[Probe]], dict[str, Prediction]]:
    """Predictions of a base that answers those prompts rightly."""

    def ask(probes: list[Probe]) -> dict[str, Prediction]:
        return {
            p.probe_id: Prediction(
                model_digest="b", probe_id=p.probe_id, exact=p.prompt in right, token_accuracy=0.0, log_prob=-1.0, text=""
            )
            for p in probes
        }

    return ask


def _score(scores: Sequence[Score], metric: str, slice_name: str) -> Score:
    (found,) = [s for s in scores if (s.metric, s.slice) == (metric, slice_name)]
    return found


def test_a_prompt_without_the_old_answer_says_nothing_where_another_has_it() -> None:
    assert unanswered([OWN, CHAT, BARE], {"r": ["Paris"]}, _base([OWN.prompt, CHAT.prompt])) == {BARE.probe_id}


def test_an_edits_own_prompt_always_counts() -> None:
    assert OWN.probe_id not in unanswered([OWN, CHAT, BARE], {"r": ["Paris"]}, _base([CHAT.prompt]))


def test_nothing_is_left_out_where_the_base_does_not_know_the_fact() -> None:
    assert unanswered([OWN, CHAT, BARE], {"r": ["Paris"]}, _base([])) == frozenset()


def test_nothing_is_left_out_of_an_insertion() -> None:
    assert unanswered([OWN, CHAT, BARE], {}, _base([])) == frozenset()


def test_each_form_has_its_own_generalization() -> None:
    right = Prediction(model_digest="a", probe_id="", exact=True, token_accuracy=1.0, log_prob=0.0, text="")
    outcomes = [ProbeOutcome(CHAT, right), ProbeOutcome(BARE, right.model_copy(update={"exact": False}))]
    scores = by_form(outcomes, (), _form_of)
    assert (_score(scores, "GR", "chat").value, _score(scores, "GR", "plain").value) == (1.0, 0.0)


def test_the_share_that_is_not_counted_is_told_by_form() -> None:
    scores = not_counted([OWN, CHAT, BARE], {BARE.probe_id}, _form_of)
    assert [(s.slice, s.value, s.n) for s in scores] == [("", 0.5, 2), ("chat", 0.0, 1), ("plain", 1.0, 1)]


def test_a_report_leaves_out_what_says_nothing() -> None:
    base = ScriptedPredictor("base", {OWN.prompt: "Paris", CHAT.prompt: "Paris"})
    edited = ScriptedPredictor("edited", {OWN.prompt: "Lyon", CHAT.prompt: "Lyon"})
    probes = make_probe_set("night", [OWN, CHAT, BARE])
    old = {"r": ["Paris"]}
    assert _score(evaluate(base, edited, probes, old_answers=old).scores, "GR", "").value == 0.5
    in_forms = evaluate(base, edited, probes, form_of=_form_of, old_answers=old)
    assert _score(in_forms.scores, "GR", "").value == 1.0
    assert _score(in_forms.scores, "not_counted", "plain").value == 1.0
