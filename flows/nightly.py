"""One night on one lineage: ingest, validate, edit, evaluate, gate, isolate culprits, promote or reject, report."""

from __future__ import annotations

from itertools import count
from typing import Any

from prefect import flow

from tasks.alerts.tell import tell_broken
from tasks.isolation.culprits import quarantine_culprits
from tasks.isolation.isolate import isolate_culprits
from tasks.night.close import close
from tasks.night.course import NightClosed, begin, next_night
from tasks.night.edit import edit
from tasks.night.evaluate import evaluate
from tasks.night.gate import gate
from tasks.night.ingest import ingest
from tasks.night.overtaken import set_aside
from tasks.night.progress import show_progress
from tasks.night.promote import promote
from tasks.night.reconcile import reconcile
from tasks.night.store_fit import ensure_fit_store
from tasks.night.validate import validate
from tasks.proving.prove import refuse_unproved
from tasks.reporting.publish_report import publish_report
from tasks.settings import configure
from tasks.workspace import lineage_lock
from warehouse.errors import LineageMoved
from warehouse.records import NightRun


@flow(
    name="nightly-refresh",
    flow_run_name="{lineage}-{night}",
    validate_parameters=False,
    on_failure=[tell_broken],
    on_crashed=[tell_broken],
)
def nightly_refresh(
    night: str | None = None,
    lineage: str | None = None,
    editor: str | None = None,
    config: dict[str, Any] | None = None,
    late: bool = False,
) -> NightRun:
    """Bring one lineage up to date with one night of updates, and decide by the policy whether it may serve.

    A finished night returns its line at once; a broken one goes on from what is done.

    Args:
        night: a night of the source; by default the first that this lineage has not finished.
        lineage: by default that of the settings.
        editor: by default that of the settings.
        config: further settings, as in `errata.toml`.
        late: let the night follow all nights received so far, where a later one has changed facts already.
    """
    settings = configure(config, lineage=lineage, editor=editor)
    with lineage_lock(settings):
        night = night or next_night(settings)
        try:
            run = begin(settings, night, late=late)
        except NightClosed as closed:
            return closed.run
        show_progress(run)
        ensure_fit_store(settings)
        committed = reconcile(settings, night)
        if committed is not None:
            publish_report(settings, committed.done, committed.manifest)
            return close(run, committed.done, committed.manifest)
        refuse_unproved(settings)
        run.reach("received", records=ingest(settings, night))
        run.reach("validated", verdicts=validate(settings, night))
        for rebases in count():
            done = edit(settings, night)
            run.reach("edited", edited=len(done.edited))
            if not done.edited:
                return close(run, done, None)
            report = evaluate(settings, done)
            run.reach("evaluated", report_id=report.report_id)
            decision = gate(settings, report)
            run.reach("decided", decision_id=decision.decision_id)
            found = isolate_culprits(settings, done, report, decision)
            if found is not None:
                # The whole night stays rejected, with its evidence; what is left is a candidate like any other.
                promote(settings, done, report, decision)
                quarantine_culprits(settings, done, found)
                done = found.rest
                report = evaluate(settings, done)
                decision = gate(settings, report)
                run.reach("decided", decision_id=decision.decision_id, culprits=list(found.isolation.culprits))
            try:
                manifest = promote(settings, done, report, decision)
            except LineageMoved as lost:
                set_aside(settings, done, decision, lost, rebases)
                continue
            publish_report(settings, done, manifest)
            return close(run, done, manifest)
    raise AssertionError("a night ends by a line or by an error")
