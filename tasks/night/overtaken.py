"""A lost race: somebody else moved the lineage's channel while a night was under way."""

from __future__ import annotations

import logging

from prefect import task

from checks.gates.decide import load_policy
from tasks.candidate import Candidate
from tasks.night.reconcile import proof_of, reconcile
from tasks.serving.models import base_model, base_revision
from tasks.serving.plain_folder import drop_plain_folder
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.trail import mirror_audit, note
from tasks.workspace import night_folder, store_of, warehouse
from warehouse.checkpoints.manifests import pointer_of
from warehouse.checkpoints.object_store import manifest_key
from warehouse.errors import LineageMoved
from warehouse.lineages.chain import add_checkpoint, checkpoints
from warehouse.lineages.edits import edits_of, settle_edits
from warehouse.records import GateDecision, base_checkpoint
from warehouse.world.facts import BASE_NIGHT

log = logging.getLogger(__name__)
#: How often one run of a night may begin on a new head.
MAX_REBASES = 3


@task(name="set aside", **STEP)
def set_aside(settings: Settings, done: Candidate, decision: GateDecision, lost: LineageMoved, rebases: int) -> None:
    """Keep a candidate that came too late, with its reason, and clear the way for the night to begin on the new head.

    Its checkpoint is on hold, its edits rejected with the reason, its notes renamed; report and decision stay.

    Args:
        rebases: how often this run has begun anew already.

    Raises:
        LineageMoved: the policy says stop, or the run has been overtaken too often.
    """
    candidate = done.checkpoint_id
    checkpoint = done.checkpoint(settings, base_revision(settings, base_model(settings)), decision.decided_at)
    store = store_of(settings)
    found = pointer_of(store, settings.channel_name)
    body = {
        "expected": done.parent,
        "found": found[0].checkpoint_id if found else None,
        "decision": decision.decision_id,
        "night": done.night,
        **proof_of(store, candidate),
    }
    if store.exists(manifest_key(candidate)):
        # Overtaken between its first object and the swap: what it left is no stray.
        body["manifest"] = store.digest(manifest_key(candidate))
    with warehouse(settings) as wh, wh.transaction():
        if not checkpoints(wh, settings.lineage):
            add_checkpoint(wh, settings.lineage, BASE_NIGHT, base_checkpoint(checkpoint), "promote")
        add_checkpoint(wh, settings.lineage, done.night, checkpoint, "hold")
        own = [
            line.edit.edit_id
            for line in edits_of(wh, settings.lineage, done.night)
            if line.edit.patch_digest in done.new_patches and line.checkpoint_id is None
        ]
        settle_edits(wh, settings.lineage, done.night, candidate, status="rejected", reason=str(lost), edit_ids=own)
        note(settings, wh, "lineage", candidate, body, reason=str(lost))
    for name in ("edited.json", "isolated.json"):
        path = night_folder(settings, done.night) / name
        if path.exists():
            path.replace(path.with_name(f"{candidate[:12]}-{name}"))
    drop_plain_folder(settings, done.night)
    mirror_audit(settings)
    again = "run the night again: it is then edited, evaluated and gated on what is served now"
    if load_policy(settings.policy).on_lineage_moved == "stop":
        raise LineageMoved(
            f"{lost}. The candidate {candidate[:12]} is kept on hold; {again}, or set on_lineage_moved: rebase in the policy"
        ) from lost
    if rebases == MAX_REBASES:
        raise LineageMoved(
            f"{lost}. The night was overtaken {rebases + 1} times; find out who else moves "
            f"{settings.channel_name!r}, then {again}"
        ) from lost
    log.warning("%s; night %s begins again on what is served now", lost, done.night)
    reconcile.fn(settings, done.night)
