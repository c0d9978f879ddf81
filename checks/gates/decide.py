"""Decide by a written policy whether an edited model may be promoted.

A decision fails closed: a rule whose score is missing, ambiguous, not a number, or rests on too few probes has
failed, and the explanation says which, and of too few probes what would bring more. Only a policy that cannot work raises.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from checks.errors import PolicyError
from checks.gates.shortage import shortage
from checks.metrics import BENCHMARK_ONLY, METRIC_CODES
from warehouse.digests import digest_of
from warehouse.records import EvaluationReport, GateDecision, GateOutcome, GatePolicy, GateRule, RuleResult, Score

POLICIES = Path(__file__).parent.parent / "policies"
#: Policies of the validator, which lie beside the gates' own.
DOOR_POLICIES = ("door", "trust")


def load_policy(path_or_name: str | Path) -> GatePolicy:
    """Read a policy from a YAML file, or by name from `checks/policies/`.

    Raises:
        PolicyError: no such file or name, broken YAML, a rule with a wrong or unknown field, or a policy that could
            never stop a promotion.
    """
    path = _find(path_or_name)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PolicyError(f"policy {path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise PolicyError(f"policy {path} must be a mapping with name, version and rules; found {_kind(document)}")
    try:
        policy = GatePolicy.model_validate(document)
    except ValidationError as error:
        raise PolicyError(f"policy {path}: {_first_problem(error, document)}") from error
    check_policy(policy, str(path))
    return policy


def policy_digest(policy: GatePolicy) -> str:
    """Identity of a policy: name, version and rules, in order. Comments and layout of its file are no part of it."""
    return digest_of(policy)


def check_policy(policy: GatePolicy, where: str = "") -> None:
    """Refuse a policy under which a bad model could pass.

    Raises:
        PolicyError: an unknown metric or one that no night measures, a threshold that is no number, `min_n` below 1, a
            rule given twice, token accuracy as a gate, or no rule that rejects or holds.
    """
    name, seen = where or f"{policy.name} version {policy.version}", set()
    for number, rule in enumerate(policy.rules, 1):
        place = f"policy {name}, rule {number} ({_title(rule)})"
        if rule.metric not in METRIC_CODES:
            near = ", ".join(get_close_matches(rule.metric, METRIC_CODES, 3, 0.4)) or ", ".join(METRIC_CODES)
            raise PolicyError(f"{place}: no metric {rule.metric!r}; nearest: {near}")
        if rule.metric in BENCHMARK_ONLY:
            raise PolicyError(
                f"{place}: {rule.metric} is measured by `errata benchmark` alone and never gates; remove the rule"
            )
        if not math.isfinite(rule.threshold):
            raise PolicyError(f"{place}: the threshold is {rule.threshold}; give a number")
        if rule.min_n < 1:
            raise PolicyError(f"{place}: min_n is {rule.min_n}; a rate over no probes says nothing, give 1 or more")
        if rule.metric == "token_accuracy" and rule.on_fail != "warn":
            raise PolicyError(f"{place}: token accuracy never gates; use SR or GR, or on_fail: warn")
        if rule in seen:
            raise PolicyError(f"{place}: the same rule stands twice; remove one")
        seen.add(rule)
    if all(rule.on_fail == "warn" for rule in policy.rules):
        raise PolicyError(f"policy {name} has no rule that rejects or holds, so it would promote anything; add one")


def decide(policy: GatePolicy, report: EvaluationReport, now: datetime) -> GateDecision:
    """Hold every rule against the report's scores.

    Reject if a failed rule says reject, else hold if one says hold, else promote; failed `warn` rules are only listed.
    `decision_id` is the digest of report id, policy digest and results: the time is no part of it, so deciding again
    gives the same id.

    Raises:
        PolicyError: the policy could stop nothing (see `check_policy`).
    """
    check_policy(policy)
    results = tuple(_judge(rule, report.scores) for rule in policy.rules)
    consequences = {result.rule.on_fail for result in results if not result.passed}
    verdict: GateOutcome = "reject" if "reject" in consequences else "hold" if "hold" in consequences else "promote"
    digest = policy_digest(policy)
    return GateDecision(
        decision_id=digest_of(report.report_id, digest, results),
        report_id=report.report_id,
        policy_digest=digest,
        verdict=verdict,
        results=results,
        decided_at=now,
    )


def same_judgement(one: GateDecision, other: GateDecision) -> bool:
    """Whether two decisions say the same of every rule and as a whole. In which words is no part of it: these improve."""
    first, second = ([(r.rule, r.score, r.passed) for r in found.results] for found in (one, other))
    return one.verdict == other.verdict and first == second


def _judge(rule: GateRule, scores: tuple[Score, ...]) -> RuleResult:
    title = _title(rule)
    found = [score for score in scores if (score.metric, score.slice) == (rule.metric, rule.slice)]
    if len(found) != 1:
        problem = "is not in the report" if not found else f"is in the report {len(found)} times"
        return RuleResult(
            rule=rule, score=None, passed=False, explanation=f"{title} {problem}, so the rule fails: nothing to judge."
        )
    score = _without_nan(found[0])

    def result(passed: bool, explanation: str) -> RuleResult:
        return RuleResult(rule=rule, score=score, passed=passed, explanation=explanation)

    if score.value is None:
        why = "no probe counted" if score.n == 0 else f"the result over {score.n} is not a number"
        lacks = f" {shortage(rule, score, scores)}" if score.n < rule.min_n else ""
        return result(False, f"{title} could not be measured ({why}), so the rule fails.{lacks}")
    if score.n < rule.min_n:
        few = f"{title} is {describe(score)}, but the rule asks for at least {rule.min_n}, so it fails."
        return result(False, f"{few} {shortage(rule, score, scores)}")
    end = score.low if rule.op == ">=" else score.high
    if rule.judge == "point":
        judged, how = score.value, "judged on the value"
    elif end is None:
        return result(False, f"{title} is {describe(score)} without an interval to judge, so the rule fails.")
    else:
        # A percentile interval may lie to one side of its value; the worse of the two is judged.
        judged = min(end, score.value) if rule.op == ">=" else max(end, score.value)
        how = f"judged on the {'lower' if rule.op == '>=' else 'upper'} end"
    passed = judged >= rule.threshold if rule.op == ">=" else judged <= rule.threshold
    wanted = f"{'at least' if rule.op == '>=' else 'at most'} {rule.threshold:g}"
    return result(passed, f"{title} is {describe(score)}; {wanted} is needed, {how}: {'met' if passed else 'not met'}.")


def describe(score: Score) -> str:
    """`0.967 [0.833, 0.994] over 30`; the interval is left out where there is none."""
    if score.value is None:
        return f"not measured over {score.n}"
    bounds = "" if score.low is None or score.high is None else f" [{_number(score.low)}, {_number(score.high)}]"
    return f"{_number(score.value)}{bounds} over {score.n}"


def _number(value: float) -> str:
    """Three decimals for rates; four significant figures where that would be all zeros or endless digits."""
    return f"{value:.3f}" if 0.001 <= abs(value) < 1e6 or value == 0 else f"{value:.4g}"


def _title(rule: GateRule) -> str:
    return f"{rule.metric} ({rule.slice})" if rule.slice else rule.metric


def _without_nan(score: Score) -> Score:
    """NaN and infinities become None: they are no measurement, and a decision must have a JSON form."""
    bad = {field: None for field in ("value", "low", "high") if not math.isfinite(getattr(score, field) or 0.0)}
    return score.model_copy(update=bad) if bad else score


def _find(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.is_file():
        return path
    names = sorted(known.stem for known in POLICIES.glob("*.yaml") if known.stem not in DOOR_POLICIES)
    if str(path_or_name) in names:
        return POLICIES / f"{path_or_name}.yaml"
    raise PolicyError(f"no policy file or name {str(path_or_name)!r}; names in {POLICIES}: {', '.join(names)}")


def _first_problem(error: ValidationError, document: dict[str, Any]) -> str:
    problems = error.errors(include_url=False)
    place = problems[0]["loc"]
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{'.'.join(_place(place, document))}: {problems[0]['msg']}; found {problems[0]['input']!r}{rest}"


def _place(place: tuple[int | str, ...], document: dict[str, Any]) -> Iterator[str]:
    for part in place:
        if not isinstance(part, int):
            yield part
            continue
        rule = document["rules"][part]
        yield f"rule {part + 1} ({rule.get('metric', 'no metric')})" if isinstance(rule, dict) else f"rule {part + 1}"


def _kind(value: object) -> str:
    return "an empty file" if value is None else f"a {type(value).__name__}"
