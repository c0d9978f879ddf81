"""A rule that has too few probes says how many it found and what would bring more."""

from __future__ import annotations

import pytest

from checks.gates.decide import decide
from checks.gates.shortage import what_to_do
from checks.metrics import BENCHMARK_ONLY, METRIC_CODES
from tests.checks.support import NOW, report, score
from warehouse.records import GatePolicy, GateRule, Score

DD = GateRule(metric="DD", slice="known", op="<=", threshold=0.05, min_n=300)
NEAR = GateRule(metric="locality", slice="neighbourhood", op=">=", threshold=0.85, judge="point", min_n=20)
SR = GateRule(metric="SR", op=">=", threshold=0.9, judge="point", min_n=5)


def told(rule: GateRule, *scores: Score) -> str:
    (result,) = decide(GatePolicy(name="t", version=1, rules=(rule,)), report(*scores), NOW).results
    return result.explanation


def test_of_drawdown_it_says_how_many_facts_were_asked_and_where_to_look() -> None:
    said = told(DD, score("DD", 0.0, -0.1, 0.1, 800), score("DD", 0.0, 0.0, 0.09, 41, "known"))
    assert said.endswith(
        "The model answers 41 of 800 standing facts; 300 are asked for: see `errata world known`, "
        "or lower min_n in a policy of your own."
    )


def test_a_model_that_knows_none_of_them_hears_the_same() -> None:
    said = told(DD, score("DD", None, n=800), score("DD", None, n=0, slice_name="known"))
    assert "could not be measured (no probe counted)" in said and "The model answers 0 of 800 standing facts" in said


def test_without_the_number_asked_only_what_was_found_is_told() -> None:
    assert "It counts 41 (standing facts that the model knows); 300" in told(DD, score("DD", 0.0, 0.0, 0.09, 41, "known"))


@pytest.mark.parametrize(
    ("rule", "found", "says"),
    [
        (NEAR, score("locality", 1.0, 0.2, 1.0, 1, "neighbourhood"), "counts 1 (other facts asked that the model knows); 20"),
        (SR, score("SR", 1.0, 0.5, 1.0, 4), "It counts 4 (edits of the night); 5 are asked for: bring more edits to"),
        (GateRule(metric="perplexity_ratio", op="<=", threshold=1.2, min_n=20), score("perplexity_ratio", 1.0, 0.9, 1.1, 3),
         "raise `probes.held_texts`"),
    ],
)  # fmt: skip
def test_each_metric_says_what_would_bring_more_of_what_it_counts(rule: GateRule, found: Score, says: str) -> None:
    assert says in told(rule, found)


def test_a_result_that_is_no_number_over_enough_probes_lacks_none() -> None:
    assert "asked for" not in told(SR, score("SR", None, n=30))


def test_every_metric_that_counts_probes_has_a_way_to_more_of_them() -> None:
    bare = {"token_accuracy", "failure_mode", "efficiency", "not_counted", *BENCHMARK_ONLY}
    lower = what_to_do(SR.model_copy(update={"metric": "efficiency"}))
    ways = {code: what_to_do(SR.model_copy(update={"metric": code})) for code in METRIC_CODES}
    assert {code for code, way in ways.items() if way == lower} == bare
