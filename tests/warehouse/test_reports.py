"""Predictions, reports, policies, decisions and benchmark rows: what goes in comes out equal, once."""

from __future__ import annotations

import pytest

from tests.warehouse.world import NOON, POLICY, decision, report
from warehouse.database.connection import Warehouse
from warehouse.digests import digest_of
from warehouse.errors import Conflict, IntegrityError, NotFound
from warehouse.lineages.reports import (
    benchmarks,
    cached_predictions,
    decision_of,
    load_decision,
    load_policy,
    load_report,
    reports_after,
    save_benchmark,
    save_decision,
    save_policy,
    save_predictions,
    save_report,
)
from warehouse.records import Prediction, Score


@pytest.fixture
def wh():
    with Warehouse.open(":memory:") as opened:
        yield opened


def prediction(probe: str, model: str = "m", text: str = "Oslo") -> Prediction:
    return Prediction(model_digest=model, probe_id=probe, exact=True, token_accuracy=0.5, log_prob=-1.25, text=text)


def test_cached_predictions_are_those_of_one_model_and_the_probes_asked(wh: Warehouse) -> None:
    assert save_predictions(wh, [prediction("a"), prediction("b"), prediction("a", "n", "Rome")]) == 3
    assert cached_predictions(wh, "m", ["a", "c"]) == {"a": prediction("a")}
    assert cached_predictions(wh, "n", ["a"])["a"].text == "Rome"
    assert cached_predictions(wh, "m", []) == {}


def test_a_prediction_kept_already_stays(wh: Warehouse) -> None:
    save_predictions(wh, [prediction("a")])
    assert save_predictions(wh, [prediction("a", text="Rome")]) == 0
    assert cached_predictions(wh, "m", ["a"])["a"].text == "Oslo"


def test_a_report_comes_back_equal_with_its_scores_in_order(wh: Warehouse) -> None:
    assert save_report(wh, report())
    assert not save_report(wh, report())
    assert load_report(wh, "report-1") == report()
    assert reports_after(wh, "cp-1", before="cp-0") == [report()]
    assert reports_after(wh, "cp-1", before="cp-7") == []


def test_a_report_does_not_change(wh: Warehouse) -> None:
    save_report(wh, report())
    with pytest.raises(Conflict, match="report-1"):
        save_report(wh, report(after="cp-7"))


def test_a_report_with_two_scores_of_one_name_or_a_nan_is_refused(wh: Warehouse) -> None:
    score = report().scores[0]
    with pytest.raises(ValueError, match="two scores of success"):
        save_report(wh, report().model_copy(update={"scores": (score, score)}))
    nan = Score(metric="perplexity_ratio", value=float("nan"), low=None, high=None, n=3)
    with pytest.raises(ValueError, match="perplexity_ratio '' is not finite"):
        save_report(wh, report().model_copy(update={"scores": (nan,)}))
    assert wh.scalar("SELECT count(*) FROM reports") == 0


def test_a_decision_comes_back_equal_with_its_policy(wh: Warehouse) -> None:
    save_report(wh, report())
    assert save_decision(wh, decision(report()), POLICY)
    assert not save_decision(wh, decision(report()), POLICY)
    assert load_decision(wh, "decision-1") == decision(report())
    assert decision_of(wh, "report-1") == decision(report())
    assert decision_of(wh, "report-2") is None
    assert load_policy(wh, digest_of(POLICY)) == POLICY


def test_a_decision_needs_its_report_and_the_policy_that_it_names(wh: Warehouse) -> None:
    with pytest.raises(NotFound, match="report-1"):
        save_decision(wh, decision(report()), POLICY)
    save_report(wh, report())
    with pytest.raises(IntegrityError, match="nightly v2"):
        save_decision(wh, decision(report()), POLICY.model_copy(update={"version": 2}))
    assert wh.scalar("SELECT count(*) FROM decisions") == 0


def test_a_decision_is_final_whenever_it_is_made_again(wh: Warehouse) -> None:
    save_report(wh, report())
    save_decision(wh, decision(report()), POLICY)
    later = decision(report()).model_copy(update={"decided_at": NOON.replace(year=2027)})
    assert not save_decision(wh, later, POLICY)
    with pytest.raises(Conflict, match="final"):
        save_decision(wh, later.model_copy(update={"verdict": "reject"}), POLICY)


def test_what_is_not_stored_is_named(wh: Warehouse) -> None:
    for load in (load_report, load_decision, load_policy):
        with pytest.raises(NotFound, match="missing-one"):
            load(wh, "missing-one")


def test_a_policy_is_stored_once_under_its_digest(wh: Warehouse) -> None:
    assert save_policy(wh, POLICY) == save_policy(wh, POLICY) == digest_of(POLICY)
    assert wh.scalar("SELECT count(*) FROM policies") == 1


def test_benchmark_rows_come_back_by_case(wh: Warehouse) -> None:
    row = save_benchmark(wh, "edit-memit-100", "memit", "batch", {"edits_per_s": 12.5, "threads": 1}, NOON)
    save_benchmark(wh, "evaluate", "", "", {"probes_per_s": 900.0}, NOON)
    assert benchmarks(wh, "edit-memit-100") == [row]
    assert [b.case for b in benchmarks(wh)] == ["edit-memit-100", "evaluate"]
