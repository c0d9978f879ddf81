"""A report and its decision as Markdown, for a run's summary page and the console."""

from __future__ import annotations

from collections.abc import Sequence

from checks.gates.decide import describe
from warehouse.records import EvaluationReport, GateDecision, RuleResult

_HEAD = ("metric", "slice", "value and 95% interval", "threshold", "verdict")
_VERDICTS = {
    "promote": "Promote: every rule that could stop it is met.",
    "reject": "Reject: a rule that rejects is not met.",
    "hold": "Hold: a rule that asks for a person is not met.",
}


def markdown_summary(report: EvaluationReport, decision: GateDecision) -> str:
    """Every score with its rules, one line each; failed rules first in words.

    A score without a rule has an empty threshold. A rule without a score has a line of its own.
    """
    lines = [
        f"## {_VERDICTS[decision.verdict]}",
        "",
        f"Model `{report.after[:12]}` against `{report.before[:12]}`, probe set `{report.probe_set_digest[:12]}`, "
        f"policy `{decision.policy_digest[:12]}`, decision `{decision.decision_id[:12]}`.",
        "",
    ]
    if (proved := report.environment.get("answers_proved")) is not None:
        lines += [f"{int(proved):,} answers were proved, {int(report.environment['answers_asked']):,} were asked.", ""]
    lines += [f"- **{result.rule.on_fail}**: {_escape(result.explanation)}" for result in decision.failed_rules]
    lines += [""] if decision.failed_rules else []
    lines += [_row(_HEAD), _row(["---"] * len(_HEAD))]
    rules_of: dict[tuple[str, str], list[RuleResult]] = {}
    for result in decision.results:
        rules_of.setdefault((result.rule.metric, result.rule.slice), []).append(result)
    for score in report.scores:
        for result in rules_of.pop((score.metric, score.slice), [None]):
            lines.append(_row([score.metric, score.slice, describe(score), *_judgement(result)]))
    for (metric, slice_name), results in rules_of.items():
        lines += [_row([metric, slice_name, "not in the report", *_judgement(result)]) for result in results]
    return "\n".join(lines) + "\n"


def _judgement(result: RuleResult | None) -> tuple[str, str]:
    if result is None:
        return "", ""
    rule = result.rule
    return f"{rule.op} {rule.threshold:g} ({rule.judge})", "met" if result.passed else f"not met: {rule.on_fail}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escape(cell) for cell in cells) + " |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
