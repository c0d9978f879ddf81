"""Take an edit, or all edits of a checkpoint, out of what a lineage serves."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.night.close import close
from tasks.night.course import NightClosed, begin
from tasks.night.evaluate import evaluate
from tasks.night.gate import gate
from tasks.night.promote import promote
from tasks.night.reconcile import published_before, reconcile
from tasks.settings import configure
from tasks.takeback.plan import plan_revert
from tasks.takeback.revert import publish_revert, take_out
from tasks.workspace import lineage_lock
from warehouse.records import NightRun


@flow(name="revert", validate_parameters=False)
def revert_edits(target: str, reason: str, lineage: str | None = None, config: dict[str, Any] | None = None) -> NightRun:
    """A night of its own: the head without the edits, evaluated and gated before production moves.

    A finished revert returns its line at once; a broken one goes on from what is done.

    Args:
        target: the start of an edit's id, or a checkpoint.
        reason: kept for whoever asks later.
        config: further settings, as in `errata.toml`.
    """
    settings = configure(config, lineage=lineage)
    with lineage_lock(settings):
        reconcile(settings)
        plan = plan_revert(settings, target, reason)
        try:
            run = begin(settings, plan.night)
        except NightClosed as closed:
            return closed.run
        committed = published_before(settings, plan.night)
        if committed is not None:
            publish_revert(settings, committed.done, committed.manifest)
            return close(run, committed.done, committed.manifest)
        run.reach("validated", revert=plan.model_dump(mode="json"))
        done = take_out(settings, plan)
        run.reach("edited", edited=len(done.edited))
        report = evaluate(settings, done)
        run.reach("evaluated", report_id=report.report_id)
        decision = gate(settings, report)
        run.reach("decided", decision_id=decision.decision_id)
        manifest = promote(settings, done, report, decision)
        publish_revert(settings, done, manifest)
        return close(run, done, manifest)
