"""Hold a report against the policy."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from prefect import task

from checks.gates import decide, load_policy
from tasks.ingest import STEP
from tasks.notes import note
from tasks.settings import Settings
from tasks.workspace import warehouse
from warehouse.audit import last_of
from warehouse.digests import digest_of
from warehouse.records import EvaluationReport, GateDecision
from warehouse.reports import decision_of, save_decision

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
        if earlier is not None and earlier.decision_id == decision.decision_id:
            return earlier
        with wh.transaction():
            save_decision(wh, decision, policy)
            used = last_of(wh, "policy", settings.lineage)
            if used is None or used.payload["policy"] != decision.policy_digest:
                body = {"policy": decision.policy_digest, "version": policy.version, "before": used and used.payload["policy"]}
                note(settings, wh, "policy", policy.name, body)
            digests = {"decision": digest_of(decision), "report": digest_of(report), "verdict": decision.verdict}
            note(settings, wh, "decision", decision.decision_id, digests)
    failed = ", ".join(f"{r.rule.metric} {r.rule.slice}".strip() for r in decision.failed_rules)
    log.info("decision: %s%s", decision.verdict, f" (failed: {failed})" if failed else "")
    return decision
