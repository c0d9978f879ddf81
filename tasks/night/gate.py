"""Hold a report against the policy."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from prefect import task

from checks.gates.decide import decide, load_policy, same_judgement
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.trail import note
from tasks.workspace import warehouse
from warehouse.digests import digest_of
from warehouse.lineages.audit import AuditEntry, last_of
from warehouse.lineages.reports import decision_of, save_decision
from warehouse.records import EvaluationReport, GateDecision, GatePolicy

log = logging.getLogger(__name__)


@task(name="gate", **STEP)
def gate(settings: Settings, report: EvaluationReport) -> GateDecision:
    """The decision on a report; one made before by the same policy stands, with its time.

    Raises:
        PolicyError: the policy cannot be read, or could stop nothing.
    """
    policy = load_policy(settings.policy)
    decision = decide(policy, report, datetime.now(UTC))
    with warehouse(settings) as wh:
        earlier = decision_of(wh, report.report_id)
        # Not by its id, which covers the words: a later release tells a failed rule otherwise.
        if earlier and earlier.policy_digest == decision.policy_digest and same_judgement(earlier, decision):
            return earlier
        with wh.transaction():
            save_decision(wh, decision, policy)
            used = last_of(wh, "policy", settings.lineage)
            if used is None or used.payload["policy"] != decision.policy_digest:
                body = {"policy": decision.policy_digest, "version": policy.version, "before": used and used.payload["policy"]}
                note(settings, wh, "policy", policy.name, body, reason=_why_policy(policy, used))
            digests = {"decision": digest_of(decision), "report": digest_of(report), "verdict": decision.verdict}
            why = f"{decision.verdict} by {policy.name} version {policy.version}: {judged(decision)}"
            note(settings, wh, "decision", decision.decision_id, digests, reason=why)
    failed = ", ".join(f"{r.rule.metric} {r.rule.slice}".strip() for r in decision.failed_rules)
    log.info("decision: %s%s", decision.verdict, f" (failed: {failed})" if failed else "")
    return decision


def judged(decision: GateDecision) -> str:
    """What the rules said, in a sentence."""
    failed = [r.explanation for r in decision.failed_rules]
    return " ".join(failed) if failed else f"all {len(decision.results)} rules are met."


def _why_policy(policy: GatePolicy, before: AuditEntry | None) -> str:
    """A policy is a file: who changed it there is not known here, only that the gate now judges by another one."""
    now = f"{policy.name} version {policy.version}"
    if before is None:
        return f"{now} is the first policy that judges this lineage"
    return f"{now} judges from here on; it was {before.subject} version {before.payload['version']}"


def reasons(decision: GateDecision) -> tuple[str, ...]:
    """Sentences of the rules that stopped a candidate; failed warnings stopped nothing."""
    return tuple(r.explanation for r in decision.failed_rules if r.rule.on_fail != "warn")
