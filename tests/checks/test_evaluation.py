"""The engine: who is asked what, once; and what comes out as a report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from checks.evaluation import (
    LOWEST_LOG_PROB,
    EvaluationError,
    EvaluationSettings,
    InMemoryCache,
    evaluate,
    outcomes_of,
    predict,
    scores_from,
    scores_from_outcomes,
)
from checks.metrics import METRIC_CODES
from checks.metrics.efficiency import EditCost, efficiency
from checks.predictor import Answer, Question
from tests.checks.support import ScriptedPredictor, prediction, probe, probe_set
from warehouse.digests import canonical_json
from warehouse.records import EvaluationReport, Score

OWN = probe("success", "Ada lives in", "Rome", request_id="r1")
AGAIN = probe("rephrase", "The home of Ada is", "Rome", request_id="r1")
FAILS = probe("success", "Bob lives in", "Oslo", request_id="r2")
NEAR = probe("neighbourhood", "Eve lives in", "Bern", request_id="r1")
OLD = probe("obsolete", "Bob lives in", "Bonn", request_id="r2")
KNOWN = probe("drawdown", "The sky is", "blue")
TEXT = probe("held_text", "It was raining and the road was long")
NIGHT = probe_set(OWN, AGAIN, FAILS, NEAR, OLD, KNOWN, TEXT)

BEFORE = {"Ada lives in": "Paris", "The home of Ada is": "Paris", "Bob lives in": "Bonn", "Eve lives in": "Bern",
          "The sky is": "blue"}  # fmt: skip
AFTER = {**BEFORE, "Ada lives in": "Rome", "The home of Ada is": "Rome", "Eve lives in": "Rome"}


def base() -> ScriptedPredictor:
    return ScriptedPredictor("f0", BEFORE)


def edited() -> ScriptedPredictor:
    return ScriptedPredictor("fN", AFTER, text_log_prob=-2.5, next_token=(0.75, 0.25))


def value(report: EvaluationReport | Sequence[Score], metric: str, slice_name: str = "") -> float | None:
    scores = report.scores if isinstance(report, EvaluationReport) else report
    [found] = [score.value for score in scores if (score.metric, score.slice) == (metric, slice_name)]
    return found


def test_a_probe_that_stands_twice_is_asked_once() -> None:
    model = base()
    assert set(predict(model, [OWN, OWN])) == {OWN.probe_id}
    assert model.score_calls == [[Question("Ada lives in", "Rome")]]


def test_two_probes_with_one_question_cost_one_question() -> None:
    model, twin = base(), probe("retain", "Ada lives in", "Rome", request_id="r1")
    assert len(predict(model, [OWN, twin])) == 2
    assert len(model.score_calls[0]) == 1


def test_cached_probes_are_not_asked_again() -> None:
    model, cache = base(), InMemoryCache()
    first = predict(model, [OWN], cache)
    again = predict(model, [OWN, NEAR], cache)
    assert again[OWN.probe_id] == first[OWN.probe_id]
    assert model.score_calls == [[Question("Ada lives in", "Rome")], [Question("Eve lives in", "Bern")]]


def test_the_cache_keeps_model_states_apart() -> None:
    cache = InMemoryCache()
    predict(base(), [OWN], cache)
    assert predict(edited(), [OWN], cache)[OWN.probe_id].exact


def test_nothing_left_to_ask_asks_nothing() -> None:
    model, cache = base(), InMemoryCache()
    predict(model, [OWN], cache)
    predict(model, [OWN], cache)
    assert len(model.score_calls) == 1


def test_any_accepted_target_counts_and_the_best_answer_is_kept() -> None:
    several = probe("success", "Ada lives in", "the city of Paris", "Paris", "Lyon")
    found = predict(base(), [several])[several.probe_id]
    assert (found.exact, found.token_accuracy) == (True, 1.0)


def test_held_text_is_no_question() -> None:
    model = base()
    assert predict(model, [TEXT]) == {}
    assert model.score_calls == []


def test_one_id_for_two_questions_is_refused() -> None:
    with pytest.raises(EvaluationError, match="p1 stands for two questions"):
        predict(base(), [probe("success", "A", "x", probe_id="p1"), probe("success", "B", "x", probe_id="p1")])


def test_a_probe_without_a_target_is_refused() -> None:
    with pytest.raises(EvaluationError, match="has no target"):
        predict(base(), [probe("success", "Ada lives in")])


class Short(ScriptedPredictor):
    def score(self, questions: Sequence[Question]) -> list[Answer]:
        return super().score(questions)[:-1]


class Ruined(ScriptedPredictor):
    def score(self, questions: Sequence[Question]) -> list[Answer]:
        return [Answer(True, 1.0, math.nan, math.nan, "!") for _ in questions]


def test_a_predictor_that_drops_an_answer_is_refused() -> None:
    with pytest.raises(EvaluationError, match="1 answers to 2 questions"):
        predict(Short("short", BEFORE), [OWN, NEAR])


def test_a_model_whose_probabilities_are_nan_has_answered_nothing() -> None:
    found = predict(Ruined("ruined", {}), [OWN])[OWN.probe_id]
    assert (found.exact, found.token_accuracy, found.log_prob) == (False, 0.0, LOWEST_LOG_PROB)


def test_evaluate_measures_what_the_script_says() -> None:
    report = evaluate(base(), edited(), NIGHT)
    assert value(report, "SR") == 0.5
    assert value(report, "GR") == 1.0
    assert value(report, "ES") == 1.0
    assert value(report, "locality", "neighbourhood") == 0.0
    assert value(report, "obsolete") == 1.0
    assert value(report, "DD", "known") == 0.0
    assert value(report, "perplexity_ratio") == pytest.approx(math.exp(0.5))
    assert value(report, "KL") == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert value(report, "failure_mode", "unchanged_old_answer") == 1.0


def test_evaluate_knows_the_old_answer_from_the_base_model_where_nobody_gave_it() -> None:
    report = evaluate(base(), edited(), probe_set(FAILS))
    assert value(report, "failure_mode", "unchanged_old_answer") == 1.0


def test_evaluate_reads_retention_from_the_retain_set_alone() -> None:
    earlier = probe("success", "The sky is", "blue", request_id="r0")
    report = evaluate(base(), edited(), NIGHT, retain=probe_set(earlier, FAILS, OWN))
    assert value(report, "SRR") == pytest.approx(2 / 3)
    assert value(report, "SR") == 0.5


def test_without_a_retain_set_retention_is_not_measured() -> None:
    assert value(evaluate(base(), edited(), NIGHT), "SRR") is None


def test_the_edited_model_is_asked_both_sets_in_one_call() -> None:
    model = edited()
    evaluate(base(), model, NIGHT, retain=probe_set(OWN))
    assert len(model.score_calls) == 1


def test_the_base_model_is_asked_only_what_its_answer_matters_for() -> None:
    model = base()
    evaluate(model, edited(), NIGHT)
    assert [q.prompt for q in model.score_calls[0]] == ["Eve lives in", "The sky is"]


def test_success_is_read_right_after_its_batch_where_such_predictions_are_given() -> None:
    then = {FAILS.probe_id: prediction(FAILS.probe_id, True)}
    report = evaluate(base(), edited(), NIGHT, retain=probe_set(FAILS), right_after=then)
    assert value(report, "SR") == 1.0
    assert value(report, "SRR") == 0.0


def test_the_same_evaluation_has_the_same_report_id() -> None:
    assert evaluate(base(), edited(), NIGHT) == evaluate(base(), edited(), NIGHT)


def test_another_retain_set_gives_another_report_id() -> None:
    plain, retained = evaluate(base(), edited(), NIGHT), evaluate(base(), edited(), NIGHT, retain=probe_set(OWN))
    assert plain.report_id != retained.report_id


def test_seconds_are_in_the_report_but_not_in_its_identity() -> None:
    reports = [evaluate(base(), edited(), NIGHT, extra=efficiency(EditCost(2, seconds, 1, 1, 1, 1))) for seconds in (1.0, 3.0)]
    assert reports[0].report_id == reports[1].report_id
    assert value(reports[1], "efficiency", "seconds_per_edit") == 1.5


def test_the_report_names_checkpoints_sets_and_environment() -> None:
    report = evaluate(
        base(), edited(), NIGHT, before_id="base", after_id="candidate", environment={"torch": "2.13.0"}
    )  # fmt: skip
    assert (report.before, report.after, report.probe_set_digest) == ("base", "candidate", NIGHT.digest)
    assert report.environment["torch"] == "2.13.0"


def test_every_score_of_a_report_has_a_known_code_and_stands_once() -> None:
    report = evaluate(base(), edited(), NIGHT)
    names = [(score.metric, score.slice) for score in report.scores]
    assert len(names) == len(set(names))
    assert {metric for metric, _ in names} <= set(METRIC_CODES)


def test_a_report_over_a_ruined_model_has_a_json_form() -> None:
    ruined = Ruined("ruined", {}, text_log_prob=math.nan, next_token=(math.nan, math.nan))
    report = evaluate(base(), ruined, NIGHT)
    assert b"NaN" not in canonical_json(report)
    assert (value(report, "SR"), value(report, "KL"), value(report, "perplexity_ratio")) == (0.0, None, None)


def test_failures_beyond_the_limit_are_not_generated_for() -> None:
    report = evaluate(base(), base(), NIGHT, settings=EvaluationSettings(max_failures=2))
    assert {score.n for score in report.scores if score.metric == "failure_mode"} == {2}


def test_an_empty_probe_set_measures_nothing_and_breaks_nothing() -> None:
    report = evaluate(base(), edited(), probe_set())
    assert all(score.value is None for score in report.scores if score.metric != "failure_mode")


def test_scores_refuse_a_probe_that_the_edited_model_was_not_asked() -> None:
    with pytest.raises(EvaluationError, match="was not asked of the edited model"):
        scores_from([OWN], {}, {})


def test_locality_refuses_to_do_without_the_base_model() -> None:
    with pytest.raises(EvaluationError, match="not asked of f_0"):
        scores_from([NEAR], {}, {NEAR.probe_id: prediction(NEAR.probe_id, True)})


def test_single_edits_pool_their_outcomes_over_a_shared_probe() -> None:
    known = {KNOWN.probe_id: prediction(KNOWN.probe_id, True)}
    lost = {KNOWN.probe_id: prediction(KNOWN.probe_id, False)}
    pooled = outcomes_of([KNOWN], known, known, "r1") + outcomes_of([KNOWN], known, lost, "r2")
    assert value(scores_from_outcomes(pooled), "DD", "known") == 0.5
