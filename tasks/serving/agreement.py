"""Before the gate: write what would be served, load it as a server does, and ask it what the hooked model was asked."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime

from checks.evaluation import predict
from checks.metrics.outcome import unmeasured
from checks.metrics.served import SLICES, served_agreement
from checks.predictor import Scorer
from editors.errors import UnsupportedModel
from editors.export.form import PlainForm
from editors.export.plain import materialise
from editors.model import EditableModel
from editors.writing import writing
from tasks.candidate import Candidate
from tasks.serving.form import plain_form
from tasks.serving.models import base_revision
from tasks.settings import Settings
from tasks.workspace import WarehouseCache, night_folder
from warehouse.records import ProbeSet, Score

log = logging.getLogger(__name__)
#: Probes that an edit should not touch, of the night's own.
BYSTANDERS = frozenset({"neighbourhood", "relation_specificity", "unrelated", "drawdown"})
NUM_BYSTANDERS = 120


@dataclass(frozen=True)
class Served:
    """What was found of the folder that is served.

    Attributes:
        scores: of `served_agreement`.
        environment: what a report says beside them.
        models: base and candidate in the served dtype, without hooks, which the gate's rates are then taken of; None where
            edits are made in that dtype too, or nothing plain is served.
    """

    scores: tuple[Score, ...]
    environment: dict[str, str] = field(default_factory=dict)
    models: tuple[EditableModel, EditableModel] | None = None


def served_as_measured(
    settings: Settings, model: EditableModel, asked: Scorer, done: Candidate, probes: ProbeSet, retain: ProbeSet
) -> Served:
    """Ask the plain model of a candidate, in the dtype that is served, every edit in force and a sample of bystanders.

    A candidate whose weights cannot hold every edit is served by Errata, with its hooks: then the hooked model is what answers.

    Args:
        model: wears the candidate's patches; it stays as it is.
        asked: the model as its evaluation asks it.
    """
    edits = [p for p in retain.probes if p.kind == "retain"]
    others = sorted((p for p in probes.probes if p.kind in BYSTANDERS), key=lambda p: p.probe_id)[:NUM_BYSTANDERS]
    measured = predict(asked, [*edits, *others], WarehouseCache(settings))
    form = plain_form(settings, model)
    folder = night_folder(settings, done.night) / "served"
    try:
        with writing(folder):
            written = materialise(
                model, done.checkpoint(settings, base_revision(settings, model), datetime.now(UTC)), folder, form
            )
        if not written.whole:
            # One model, asked once.
            scores = served_agreement(edits, others, measured, measured)
            return Served(scores, {"served": f"by Errata, with hooks: {written.why_not}"})
        found = {"served": _name(form, model) + (f"; {written.room.sentence}" if written.room else "")}
        try:
            loaded = EditableModel.from_pretrained(str(folder), dtype=form.dtype, device=model.hf.device)
        except UnsupportedModel as error:
            log.warning("what would be served cannot be loaded: %s", error)
            lost = [unmeasured("served_agreement", name) for name in SLICES]
            return Served(tuple(lost), {"served": f"{found['served']}; cannot be loaded: {error}"})
        served = predict(loaded, [*edits, *others])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, some in zip(SLICES, (edits, others), strict=True):
        changed = [p for p in some if measured[p.probe_id].exact != served[p.probe_id].exact]
        if changed:
            log.warning("served in %s, %d of %d %s are answered otherwise", _name(form, model), len(changed), len(some), name)
        found[f"served_otherwise_{name}"] = f"{len(changed)} of {len(some)}"
    scores = served_agreement(edits, others, measured, served)
    if form.dtype in (None, model.hf.dtype):
        return Served(scores, found)
    base = EditableModel.from_pretrained(
        settings.model.name,
        revision=settings.model.revision,
        dtype=form.dtype,
        device=model.hf.device,
        trust_remote_code=settings.model.trust_remote_code,
    )
    return Served(scores, found, (base, loaded))


def _name(form: PlainForm, model: EditableModel) -> str:
    return str(form.dtype or model.hf.dtype).removeprefix("torch.")
