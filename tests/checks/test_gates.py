"""Gates: closed unless every rule that can stop a promotion is met."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.evaluation import evaluate
from checks.gates.decide import (
    DOOR_POLICIES,
    POLICIES,
    PolicyError,
    check_policy,
    decide,
    load_policy,
    policy_digest,
    same_judgement,
)
from checks.metrics import METRIC_CODES
from checks.metrics.served import SLICES
from checks.summary import markdown_summary
from tests.checks.support import NOW, ScriptedPredictor, probe, probe_set, report, score
from warehouse.digests import canonical_json
from warehouse.records import GateDecision, GatePolicy, GateRule, Score

SR = GateRule(metric="SR", op=">=", threshold=0.9, judge="point", min_n=5)
DD = GateRule(metric="DD", slice="known", op="<=", threshold=0.05, judge="interval", min_n=100)
HOLD = GateRule(metric="GRR", op=">=", threshold=0.6, judge="point", on_fail="hold")
WARN = GateRule(metric="obsolete", op="<=", threshold=0.2, judge="point", on_fail="warn")
POLICY = GatePolicy(name="test", version=1, rules=(SR, DD, HOLD, WARN))

GOOD: dict[str, Score] = {
    "SR": score("SR", 0.95, 0.83, 0.99, 30),
    "DD": score("DD", 0.02, 0.01, 0.04, 1_000, "known"),
    "GRR": score("GRR", 0.8, 0.7, 0.9, 30),
    "obsolete": score("obsolete", 0.1, 0.0, 0.3, 20),
}


def judged(**changed: Score | None) -> GateDecision:
    scores = {**GOOD, **changed}
    return decide(POLICY, report(*(s for s in scores.values() if s is not None)), NOW)


def test_a_report_that_meets_every_rule_is_promoted() -> None:
    decision = judged()
    assert (decision.verdict, decision.failed_rules) == ("promote", ())


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (None, "is not in the report"),
        (score("SR", None, n=0), "no probe counted"),
        (score("SR", None, n=30), "the result over 30 is not a number"),
        (score("SR", math.nan, 0.8, 1.0, 30), "is not a number"),
        (score("SR", math.inf, 0.8, 1.0, 30), "is not a number"),
        (score("SR", 1.0, 0.5, 1.0, 4), "at least 5"),
        (score("SR", 0.89, 0.8, 0.95, 30), "not met"),
    ],
)
def test_a_rule_that_cannot_be_measured_or_met_rejects_and_says_why(broken: Score | None, says: str) -> None:
    decision = judged(SR=broken)
    assert decision.verdict == "reject"
    [failed] = decision.failed_rules
    assert says in failed.explanation and failed.explanation.startswith("SR ")


@pytest.mark.parametrize("high", [None, math.nan, math.inf])
def test_an_interval_rule_without_its_end_fails(high: float | None) -> None:
    decision = judged(DD=score("DD", 0.0, 0.0, high, 1_000, "known"))
    assert decision.verdict == "reject"
    assert "without an interval" in decision.failed_rules[0].explanation


def test_a_score_given_twice_is_ambiguous_and_fails() -> None:
    decision = decide(POLICY, report(*GOOD.values(), score("SR", 1.0, 0.9, 1.0, 30)), NOW)
    assert decision.verdict == "reject"
    assert "2 times" in decision.failed_rules[0].explanation


def test_the_score_of_another_slice_does_not_stand_in() -> None:
    assert judged(DD=score("DD", 0.0, 0.0, 0.0, 1_000, "")).verdict == "reject"


def test_an_empty_report_is_rejected() -> None:
    assert decide(POLICY, report(), NOW).verdict == "reject"


def test_an_interval_rule_from_above_is_judged_on_the_upper_end() -> None:
    assert judged(DD=score("DD", 0.03, 0.01, 0.06, 1_000, "known")).verdict == "reject"
    assert judged(DD=score("DD", 0.03, 0.01, 0.05, 1_000, "known")).verdict == "promote"


def test_an_interval_rule_from_below_is_judged_on_the_lower_end() -> None:
    policy = GatePolicy(name="low", version=1, rules=(SR.model_copy(update={"judge": "interval"}),))
    assert decide(policy, report(score("SR", 0.97, 0.89, 1.0)), NOW).verdict == "reject"
    assert decide(policy, report(score("SR", 0.97, 0.90, 1.0)), NOW).verdict == "promote"


def test_an_interval_beside_its_value_does_not_save_a_bad_value() -> None:
    assert judged(DD=score("DD", 0.2, 0.0, 0.01, 1_000, "known")).verdict == "reject"
    policy = GatePolicy(name="low", version=1, rules=(SR.model_copy(update={"judge": "interval"}),))
    assert decide(policy, report(score("SR", 0.5, 0.95, 1.0)), NOW).verdict == "reject"


def test_a_point_rule_ignores_the_interval() -> None:
    assert judged(SR=score("SR", 0.9, None, None, 30)).verdict == "promote"


def test_a_failed_hold_rule_holds() -> None:
    assert judged(GRR=None).verdict == "hold"


def test_a_rejection_outweighs_a_hold() -> None:
    assert judged(GRR=None, SR=None).verdict == "reject"


def test_a_failed_warning_is_listed_and_does_not_stop() -> None:
    decision = judged(obsolete=score("obsolete", 0.9, 0.8, 1.0))
    assert decision.verdict == "promote"
    assert [result.rule.metric for result in decision.failed_rules] == ["obsolete"]


def test_an_explanation_gives_value_interval_count_threshold_and_result() -> None:
    assert judged().results[1].explanation == (
        "DD (known) is 0.020 [0.010, 0.040] over 1000; at most 0.05 is needed, judged on the upper end: met."
    )


def test_a_decision_lists_every_rule_in_the_order_of_the_policy() -> None:
    assert tuple(result.rule for result in judged(SR=None).results) == POLICY.rules


def test_deciding_again_later_gives_the_same_id() -> None:
    first, later = (decide(POLICY, report(*GOOD.values()), NOW + timedelta(hours=h)) for h in (0, 5))
    assert first.decision_id == later.decision_id and first.decided_at != later.decided_at


def test_another_policy_gives_another_decision_id() -> None:
    newer = POLICY.model_copy(update={"version": 2})
    assert decide(newer, report(*GOOD.values()), NOW).decision_id != judged().decision_id


def reworded(decision: GateDecision) -> GateDecision:
    told = tuple(result.model_copy(update={"explanation": "In other words."}) for result in decision.results)
    return decision.model_copy(update={"results": told, "decision_id": "another"})


def test_a_judgement_told_in_other_words_is_the_same() -> None:
    assert same_judgement(judged(SR=None), reworded(judged(SR=None)))


@pytest.mark.parametrize(
    "other",
    [judged(), judged(GRR=None), judged(SR=score("SR", 0.5)), reworded(judged(SR=None)).model_copy(update={"verdict": "hold"})],
)
def test_another_verdict_rule_or_score_is_another_judgement(other: GateDecision) -> None:
    assert not same_judgement(judged(SR=None), other)


def test_a_decision_over_nan_has_a_json_form() -> None:
    assert b"NaN" not in canonical_json(judged(SR=score("SR", math.nan, math.nan, math.nan, 30)))


numbers = st.floats(-1, 2, allow_nan=False)


@st.composite
def cases(draw: st.DrawFn) -> tuple[GateRule, Score, Score]:
    """A rule, a score, and the same score improved in value and in both ends."""
    op = draw(st.sampled_from([">=", "<="]))
    rule = GateRule(
        metric="SR", op=op, threshold=draw(numbers), on_fail=draw(st.sampled_from(["reject", "hold"])),
        judge=draw(st.sampled_from(["interval", "point"])), min_n=draw(st.integers(1, 20)),
    )  # fmt: skip
    low, value, high = sorted(draw(st.lists(numbers, min_size=3, max_size=3)))
    n, sign = draw(st.integers(0, 40)), 1 if op == ">=" else -1
    by = [sign * draw(st.floats(0, 1)) for _ in range(3)]
    worse = score("SR", value, low, high, n)
    better = score("SR", value + by[0], low + by[1], high + by[2], n + draw(st.integers(0, 5)))
    return rule, worse, better


@given(cases())
def test_improving_a_score_never_makes_the_verdict_worse(case: tuple[GateRule, Score, Score]) -> None:
    rule, worse, better = case
    policy = GatePolicy(name="one", version=1, rules=(rule,))
    before, after = (decide(policy, report(found), NOW).verdict for found in (worse, better))
    assert not (before == "promote" and after != "promote")


@given(
    st.lists(
        st.builds(
            Score, metric=st.sampled_from(["SR", "DD", "GRR", "obsolete"]), slice=st.sampled_from(["", "known"]),
            value=st.none() | st.floats(), low=st.none() | st.floats(), high=st.none() | st.floats(),
            n=st.integers(0, 2_000),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_whatever_the_scores_a_promotion_means_that_every_stopping_rule_is_met(scores: list[Score]) -> None:
    decision = decide(POLICY, report(*scores), NOW)
    stopped = [r for r in decision.failed_rules if r.rule.on_fail != "warn"]
    assert (decision.verdict == "promote") == (not stopped)
    for result in decision.results:
        if result.passed:
            assert result.score is not None and result.score.value is not None
            assert result.score.n >= result.rule.min_n
            value, bar = result.score.value, result.rule.threshold
            assert value >= bar if result.rule.op == ">=" else value <= bar


@given(st.sampled_from(sorted(GOOD)))
def test_taking_a_score_away_never_helps(name: str) -> None:
    rank = {"promote": 0, "hold": 1, "reject": 2}
    assert rank[judged(**{name: None}).verdict] >= rank[judged().verdict]


# ---------------------------------------------------------------- policies


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


RULE = "{metric: SR, op: '>=', threshold: 0.9}"


def test_a_policy_is_found_by_name_and_by_path() -> None:
    assert load_policy("nightly") == load_policy(POLICIES / "nightly.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "an empty file"),
        ("- a\n- b", "found a list"),
        ("name: [", "cannot be read"),
        (f"name: x\nrules: [{RULE}]", "version: Field required"),
        ("name: x\nversion: 1\nrules: []", "no rule that rejects or holds"),
        ("name: x\nversion: 1\nrules: nothing", "rules:"),
        ("name: x\nversion: 1\nrules: [{metric: SR, op: '>', threshold: 0.9}]", r"rule 1 \(SR\).op"),
        ("name: x\nversion: 1\nrules: [{metric: SR, op: '>=', treshold: 0.9}]", r"rule 1 \(SR\).*treshold|threshold"),
        ("name: x\nversion: 1\nrules: [{metric: SR, op: '>=', threshold: .nan}]", "threshold is nan"),
        ("name: x\nversion: 1\nrules: [{metric: localty, op: '>=', threshold: 1}]", "nearest: locality"),
        ("name: x\nversion: 1\nrules: [{metric: SR, op: '>=', threshold: 1, min_n: 0}]", "min_n is 0"),
        ("name: x\nversion: 1\nrules: [{metric: SR, op: '>=', threshold: 1, on_fail: warn}]", "promote anything"),
        ("name: x\nversion: 1\nrules: [{metric: token_accuracy, op: '>=', threshold: 1}]", "never gates"),
        ("name: x\nversion: 1\nrules: [{metric: ability, op: '>=', threshold: 1}]", "benchmark` alone"),
        ("name: x\nversion: 1\nrules: [{metric: published, slice: efficacy, op: '>=', threshold: 1}]", "never gates"),
        (f"name: x\nversion: 1\nrules: [{RULE}, {RULE}]", "stands twice"),
    ],
)
def test_a_policy_that_cannot_work_is_refused_by_name_and_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says) as caught:
        load_policy(write(tmp_path, text))
    assert "policy" in str(caught.value)


def test_an_unknown_policy_name_lists_the_known_ones() -> None:
    with pytest.raises(PolicyError, match=r"'nightli'.*nightly"):
        load_policy("nightli")


def test_a_policy_built_in_code_is_checked_before_it_decides() -> None:
    with pytest.raises(PolicyError, match="promote anything"):
        decide(GatePolicy(name="open", version=1, rules=()), report(), NOW)


def test_a_comment_does_not_change_the_digest_of_a_policy_and_a_number_does(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        return policy_digest(load_policy(write(tmp_path, text)))

    plain = f"name: x\nversion: 1\nrules: [{RULE}]"
    assert digest(plain) == digest("# why\n" + plain) != digest(plain.replace("0.9", "0.8"))


@pytest.mark.parametrize(
    "path", sorted(p for p in POLICIES.glob("*.yaml") if p.stem not in DOOR_POLICIES), ids=lambda path: path.stem
)
def test_every_shipped_policy_loads_under_its_own_name(path: Path) -> None:
    policy = load_policy(path.stem)
    check_policy(policy)
    assert policy.name == path.stem


def test_every_rule_of_the_nightly_policy_judges_a_score_that_a_report_has() -> None:
    model = ScriptedPredictor("f0", {"Ada lives in": "Rome"})
    made = evaluate(model, model, probe_set(probe("success", "Ada lives in", "Rome", request_id="r1")))
    names = {(found.metric, found.slice) for found in made.scores}
    # Measured of a folder on disk, which a night writes.
    names |= {("served_agreement", name) for name in SLICES}
    assert {(rule.metric, rule.slice) for rule in load_policy("nightly").rules} <= names


def nightly(**changed: dict[str, Any]) -> str:
    """Verdict of the nightly policy over a good night with some scores changed."""
    good = {
        "SR": {"value": 0.97}, "GR": {"value": 0.9}, "SRR": {"value": 0.95}, "GRR": {"value": 0.9},
        "locality/neighbourhood": {"value": 0.95, "n": 150}, "locality/unrelated": {"value": 0.98, "n": 150},
        "locality/relation_specificity": {"value": 0.9}, "DD/known": {"value": 0.02, "high": 0.03, "n": 1_200},
        "perplexity_ratio": {"value": 1.01, "high": 1.02, "n": 100}, "obsolete": {"value": 0.0},
        "KL": {"value": 0.02, "high": 0.03}, "fluency/change": {"value": 0.0}, "token_accuracy/success": {"value": 1.0},
        "served_agreement/edits": {"value": 1.0}, "served_agreement/bystanders": {"value": 1.0},
    }  # fmt: skip
    scores = []
    for name, fields in good.items():
        metric, _, slice_name = name.partition("/")
        known = {"low": None, "high": None, "n": 30, **fields, **changed.get(name, {})}
        scores.append(Score(metric=metric, slice=slice_name, **known))
    return decide(load_policy("nightly"), report(*scores), NOW).verdict


def test_the_nightly_policy_promotes_a_good_night_of_thirty_edits() -> None:
    assert nightly() == "promote"


@pytest.mark.parametrize(
    "worse",
    [
        {"SR": {"value": 0.8}},
        {"GR": {"value": 0.5}},
        {"SRR": {"value": 0.7}},
        {"locality/neighbourhood": {"value": 0.6}},
        {"DD/known": {"value": 0.045, "high": 0.056}},
        {"DD/known": {"n": 50}},
        {"perplexity_ratio": {"value": None, "high": None}},
    ],
)
def test_the_nightly_policy_rejects_a_night_that_broke_something(worse: dict[str, dict[str, Any]]) -> None:
    assert nightly(**worse) == "reject"


def test_the_nightly_policy_only_points_out_old_answers() -> None:
    assert nightly(obsolete={"value": 0.5}) == "promote"


# ---------------------------------------------------------------- the summary


def test_the_summary_has_a_line_for_each_score_with_its_threshold_and_verdict() -> None:
    made = report(*GOOD.values(), score("KL", 0.1, 0.05, 0.2))
    text = markdown_summary(made, decide(POLICY, made, NOW))
    assert text.startswith("## Promote")
    assert "| DD | known | 0.020 [0.010, 0.040] over 1000 | <= 0.05 (interval) | met |" in text
    assert "| KL |  | 0.100 [0.050, 0.200] over 100 |  |  |" in text


def test_the_summary_says_in_words_which_rule_failed() -> None:
    made = report(*(found for name, found in GOOD.items() if name != "SR"))
    text = markdown_summary(made, decide(POLICY, made, NOW))
    assert text.startswith("## Reject")
    assert "- **reject**: SR is not in the report" in text
    assert "| SR |  | not in the report | >= 0.9 (point) | not met: reject |" in text


def test_two_rules_on_one_score_have_two_lines() -> None:
    strict = SR.model_copy(update={"threshold": 0.99, "on_fail": "warn"})
    policy = POLICY.model_copy(update={"rules": (*POLICY.rules, strict)})
    made = report(*GOOD.values())
    text = markdown_summary(made, decide(policy, made, NOW))
    assert text.count("| SR |") == 2 and "not met: warn" in text


def test_every_metric_code_is_explained_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "checks" / "README.md").read_text(encoding="utf-8")
    assert [code for code in METRIC_CODES if f"`{code}`" not in readme] == []
