"""Which failed rules no removal of edits can cure: a search for culprits would spend its evaluations for nothing."""

from __future__ import annotations

from checks.gates.decide import describe
from checks.gates.shortage import what_to_do
from warehouse.records import GateDecision, GateRule, RuleResult

#: Scores that count the edits of the night themselves: every edit taken out is one less.
PER_EDIT = frozenset({"SR", "GR", "ES"})
#: What is measured of a whole night's work alone, and not again for a part of it.
WHOLE_NIGHT = frozenset({"efficiency", "served_agreement"})
WHAT_TO_DO = "give the next night what it lacks, or give the rule another min_n and the policy a new version"


def hopeless(decision: GateDecision, num_edits: int) -> tuple[str, ...]:
    """A sentence for each rule on which every part of the night would fail as the whole did; empty: a search may help.

    Args:
        decision: a rejection of the whole night.
        num_edits: of the night.
    """
    found = [_why(r, num_edits) for r in decision.results if r.rule.on_fail == "reject"]
    return tuple(why for why in dict.fromkeys(found) if why)


def _why(result: RuleResult, num_edits: int) -> str:
    rule, score, name = result.rule, result.score, _title(result.rule)
    if not result.passed and rule.metric in WHOLE_NIGHT:
        return f"{name} is measured of the whole night alone, and of no part of it; {WHAT_TO_DO}"
    if not result.passed and score is None:
        return f"{name} is not in the report, and fewer edits do not bring it; {WHAT_TO_DO}"
    if score is None:
        return ""
    if score.n < rule.min_n:
        few = f"{name} counts {score.n} and the rule asks for {rule.min_n}: fewer edits never count more"
        return f"{few}; {what_to_do(rule)}"
    # A value that is no number over probes that were asked comes of a broken model, and that an edit can have done.
    if not result.passed and score.value is not None and rule.judge == "interval" and score.low is None and score.high is None:
        return f"{name} is {describe(score)} without an interval, and fewer edits do not give it one; {WHAT_TO_DO}"
    if rule.metric in PER_EDIT and score.n == num_edits and score.n - 1 < rule.min_n:
        all_of_them = f"{name} counts the {num_edits} edits of the night and the rule asks for {rule.min_n}"
        return f"{all_of_them}: none can be taken out; {what_to_do(rule)}"
    return ""


def _title(rule: GateRule) -> str:
    return f"{rule.metric} ({rule.slice})" if rule.slice else rule.metric
