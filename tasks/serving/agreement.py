"""Before the gate: write what would be served, load it as a server does, and ask it what the hooked model was asked."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from checks.evaluation import predict
from checks.metrics.outcome import unmeasured
from checks.metrics.served import SLICES, lost_in_serving, served_agreement
from checks.predictor import Scorer
from editors.errors import UnsupportedModel
from editors.model import EditableModel
from tasks.candidate import Candidate
from tasks.serving.plain_folder import base_as_served, plain_folder
from tasks.settings import Settings
from tasks.workspace import WarehouseCache
from warehouse.records import ProbeSet, Score

log = logging.getLogger(__name__)
#: Probes that an edit should not touch, of the night's own.
BYSTANDERS = frozenset({"neighbourhood", "relation_specificity", "unrelated", "drawdown"})
NUM_BYSTANDERS = 120
#: Where a report's environment names the requests whose edits are lost on the way to a server, one space between two.
LOST = "served_lost"


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
    plain = plain_folder(settings, model, done)
    if plain.why_not:
        # One model, asked once.
        scores = served_agreement(edits, others, measured, measured)
        return Served(scores, {"served": f"by Errata, with hooks: {plain.why_not}"})
    dtype = str(plain.dtype).removeprefix("torch.")
    found = {"served": dtype + (f"; {plain.room}" if plain.room else "")}
    try:
        loaded = plain.load(model)
    except UnsupportedModel as error:
        log.warning("what would be served cannot be loaded: %s", error)
        unserved = [unmeasured("served_agreement", name) for name in SLICES]
        return Served(tuple(unserved), {"served": f"{found['served']}; cannot be loaded: {error}"})
    # Kept, because canaries expect these answers.
    served = predict(loaded, [*edits, *others], WarehouseCache(settings))
    for name, some in zip(SLICES, (edits, others), strict=True):
        changed = [p for p in some if measured[p.probe_id].exact != served[p.probe_id].exact]
        if changed:
            log.warning("served in %s, %d of %d %s are answered otherwise", dtype, len(changed), len(some), name)
        found[f"served_otherwise_{name}"] = f"{len(changed)} of {len(some)}"
    scores = served_agreement(edits, others, measured, served)
    if lost := lost_in_serving(edits, measured, served):
        found[LOST] = " ".join(lost)
    if plain.dtype == model.hf.dtype:
        return Served(scores, found)
    return Served(scores, found, (base_as_served(settings, model, plain.dtype), loaded))
