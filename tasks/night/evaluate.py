"""Measure a candidate: tonight's edits, what they must not disturb, and every edit still in force."""

from __future__ import annotations

import logging
import platform
from collections.abc import Collection, Sequence
from importlib.metadata import version

from prefect import task

from checks.evaluation import evaluate as measure
from checks.metrics.efficiency import EditCost, efficiency
from editors.model import EditableModel
from tasks.candidate import Candidate
from tasks.serving.agreement import served_as_measured
from tasks.serving.corpus import calibration_subjects
from tasks.serving.forms import how_to_ask
from tasks.serving.known import FOR_A_NIGHT, ask_known
from tasks.serving.models import at_checkpoint
from tasks.serving.proof import Asking
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.workspace import WarehouseCache, store_of, warehouse
from warehouse.database.connection import Warehouse
from warehouse.keys import Slots
from warehouse.lineages.edits import active_edits, edits_of
from warehouse.lineages.reports import reports_after, save_report
from warehouse.nights.intake import requests_by_id
from warehouse.probe_identity import make_probe, make_probe_set
from warehouse.records import EditRequest, EvaluationReport, Probe, ProbeSet
from warehouse.world.own_probes import own_probes
from warehouse.world.probes import BYSTANDERS, build_edit_probes, night_counts, save_probe_set, standing_probes

log = logging.getLogger(__name__)


def in_force(settings: Settings, tonight: list[EditRequest], reverted: Collection[str] = ()) -> list[EditRequest]:
    """Every edit that the candidate must show: those of the head that tonight does not supersede, and tonight's.

    Args:
        reverted: ids of edits that the candidate takes out.
    """
    replaced = Slots(tonight)
    with warehouse(settings) as wh:
        earlier = [request for edit, request in active_edits(wh, settings.lineage) if edit.edit_id not in reverted]
    return [r for r in earlier if r not in replaced] + tonight


def probe_sets(
    settings: Settings, tonight: list[EditRequest], retained: list[EditRequest], gone: Sequence[Probe] = ()
) -> tuple[ProbeSet, ProbeSet]:
    """The night's probe set and the retain set, both stored by digest.

    The first has the edits, what their source asks about them, what must be gone, drawdown and held text.
    """
    sizes = settings.probes
    asker = ask_known(settings, each=FOR_A_NIGHT)
    with warehouse(settings) as wh:
        # Subjects of the second moment and of any edit are never asked about as bystanders.
        bystanders = calibration_subjects(wh) | {r.subject_id or r.subject for r in retained}
        edits = build_edit_probes(
            wh,
            tonight,
            excluded_subjects=bystanders,
            per_request=night_counts(len(tonight)),
            least=BYSTANDERS,
            seed=sizes.seed,
            asker=asker,
        )
        drawdown = standing_probes(
            wh,
            kind="drawdown",
            limit=sizes.drawdown,
            excluded_subjects=bystanders,
            requests=retained,
            seed=sizes.seed,
            asker=asker,
        )
        held = standing_probes(wh, kind="held_text", limit=sizes.held_texts)
        own = own_probes(wh, tonight, retained)
        probes = make_probe_set("night", [*edits.probes, *own, *gone, *drawdown.probes, *held.probes])
        retain = standing_probes(wh, kind="retain", limit=len(retained), requests=retained, asker=asker)
        save_probe_set(wh, probes)
        save_probe_set(wh, retain)
    return probes, retain


def reverted_probes(wh: Warehouse, lineage: str, reverted: Collection[str]) -> list[Probe]:
    """What reverted edits made the model say, which it should say no more."""
    taken = [line.edit.request_id for line in edits_of(wh, lineage) if line.edit.edit_id in reverted] if reverted else []
    return [make_probe("obsolete", r.prompt, [r.target_new], r.request_id) for r in requests_by_id(wh, taken)]


def environment(settings: Settings, done: Candidate, model: EditableModel) -> dict[str, str]:
    """What the numbers depend on beside the models and the probes."""
    return {
        "editor": done.editor,
        "config_digest": done.config_digest,
        "f_0": done.base_digest,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "seed": str(settings.probes.seed),
    } | ({} if model.device.type == "cpu" else {"device": model.device.type})


@task(name="evaluate", **STEP)
def evaluate(settings: Settings, done: Candidate) -> EvaluationReport:
    """The report on a candidate; one made before for the same candidate and probes is read, not made again.

    Rates compare with `f_0`, the base model; the report's `before` names the checkpoint that the candidate replaces. They are
    taken in the served dtype: where that is not the one that edits are made in, of the plain model that would be served.
    """
    with warehouse(settings) as wh:
        tonight = requests_by_id(wh, [*done.edited, *done.revert.measured])
        gone = reverted_probes(wh, settings.lineage, done.revert.reverted)
        retained = in_force(settings, tonight, done.revert.reverted)
    probes, retain = probe_sets(settings, tonight, retained, gone)
    before = done.before
    after = done.checkpoint_id
    with warehouse(settings) as wh:
        known = _known(wh, done, probes)
    if known is not None:
        return known
    asker = how_to_ask(settings)
    model = at_checkpoint(settings, store_of(settings), done)
    cost = EditCost(len(done.edited), done.edit_seconds, done.patch_bytes)
    with Asking(settings) as asking:
        states = asking.states(model)
        served = served_as_measured(settings, model, states[1], done, probes, retain)
        base, edited = served.models or states
        report = measure(
            base,
            edited,
            probes,
            retain=retain,
            # They were asked in the dtype that edits are made in.
            right_after={} if served.models else {p.probe_id: p for p in done.right_after},
            old_answers={r.request_id: [r.target_true] for r in retained if r.target_true},
            cache=WarehouseCache(settings),
            environment={
                **environment(settings, done, served.models[1] if served.models else model),
                **({} if asker.is_plain else {"forms": asker.forms.describe()}),
                **served.environment,
            },
            extra=[*efficiency(cost), *served.scores],
            before_id=before,
            after_id=after,
            form_of=asker.slicing,
        )
        # No part of the report's identity: what was proved before does not change what was found.
        report = report.model_copy(update={"environment": {**report.environment, **asking.told}})
    with warehouse(settings) as wh:
        # Another lineage may have made the same candidate meanwhile. Its report is as good, and not the same: edits took
        # other seconds there.
        known = _known(wh, done, probes)
        if known is None:
            save_report(wh, report)
    return known or report


def _known(wh: Warehouse, done: Candidate, probes: ProbeSet) -> EvaluationReport | None:
    """The report on this candidate and these probes; those of releases before say nothing of what will be served."""
    reports = [r for r in reports_after(wh, done.checkpoint_id, done.before) if r.probe_set_digest == probes.digest]
    return next((r for r in reversed(reports) if any(s.metric == "served_agreement" for s in r.scores)), None)
