"""Bring ledger, lineage and trail of the warehouse to what the store says of a candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.candidate import Candidate
from tasks.night.gate import judged, reasons
from tasks.settings import Settings
from tasks.takeback.plan import REVERTED
from tasks.trail import note, promotion_payload
from tasks.workspace import warehouse
from warehouse.checkpoints.manifests import manifest_digest
from warehouse.database.connection import Warehouse
from warehouse.keys import Slots
from warehouse.lineages.audit import edits_payload, last_of
from warehouse.lineages.chain import add_checkpoint, checkpoints
from warehouse.lineages.edits import active_edits, edits_of, settle_edits, supersede
from warehouse.nights.intake import requests_by_id
from warehouse.records import Checkpoint, Manifest, base_checkpoint
from warehouse.world.facts import BASE_NIGHT


def settle(settings: Settings, done: Candidate, manifest: Manifest, proof: Mapping[str, Any]) -> None:
    """Write into the warehouse what the store now says; the same again changes nothing."""
    checkpoint, promoted = manifest.checkpoint, manifest.verdict == "promote"
    with warehouse(settings) as wh, wh.transaction():
        tonight = Slots(requests_by_id(wh, list(done.edited)))
        earlier = [e.edit_id for e, r in active_edits(wh, settings.lineage) if r in tonight and e.request_id not in done.edited]
        if not checkpoints(wh, settings.lineage):
            add_checkpoint(wh, settings.lineage, BASE_NIGHT, base_checkpoint(checkpoint), "promote")
        add_checkpoint(wh, settings.lineage, done.night, checkpoint, manifest.verdict, manifest_digest(manifest))
        reason = "" if promoted else " ".join(reasons(manifest.decision))
        settle_edits(
            wh,
            settings.lineage,
            done.night,
            checkpoint.checkpoint_id,
            status="active" if promoted else "rejected",
            reason=reason,
            edit_ids=_own_edits(settings, wh, done, checkpoint, promoted=promoted),
        )
        _note(settings, wh, done, manifest, proof)
        if promoted:
            # Before what is superseded by slot: an edit keeps its first reason.
            revert, again = done.revert, f"made again in {done.night}"
            for gone, why in ((revert.reverted, REVERTED + revert.reason), (revert.remade, again)):
                supersede(wh, settings.lineage, gone, in_checkpoint=checkpoint.checkpoint_id, reason=why)
        if promoted and earlier:
            supersede(
                wh,
                settings.lineage,
                earlier,
                in_checkpoint=checkpoint.checkpoint_id,
                reason=f"a newer update of {done.night}",
            )


def _own_edits(settings: Settings, wh: Warehouse, done: Candidate, checkpoint: Checkpoint, *, promoted: bool) -> list[str]:
    """The night's edits in this candidate's patches; a night has two candidates where culprits were taken out.

    A patch may be in both: what the second one promoted is not rejected again when a killed night is run once more.
    """
    own = (None, checkpoint.checkpoint_id)
    return [
        line.edit.edit_id
        for line in edits_of(wh, settings.lineage, done.night)
        if line.edit.patch_digest in done.patch_digests and (promoted or line.checkpoint_id in own)
    ]


def _note(settings: Settings, wh: Warehouse, done: Candidate, manifest: Manifest, proof: Mapping[str, Any]) -> None:
    """The trail gets the night's edits, a change of key, and the promotion or rejection with its reasons."""
    signed_by = proof["signed_by"]
    used = last_of(wh, "key", settings.lineage)
    if signed_by is not None and (used is None or used.subject != signed_by):
        before = used and used.subject
        why = f"signing.private_key is now this key; it was {before[:16]}" if before else "the first key of this lineage"
        note(settings, wh, "key", signed_by, {"before": before}, reason=why)
    made = f"{len(done.edited)} edits by {done.editor} on {done.before[:12]}"
    note(settings, wh, "edits", done.night, edits_payload(wh, done.night, settings.lineage), reason=made)
    if done.revert.reverted:
        out = list(done.revert.reverted)
        taken = {"checkpoint": manifest.checkpoint.checkpoint_id, "edits": out, "verdict": manifest.verdict}
        note(settings, wh, "revert", done.night, taken, reason=done.revert.reason)
    kind = "promotion" if manifest.verdict == "promote" else "rejection"
    why = " ".join(reasons(manifest.decision)) or f"the gate let it pass: {judged(manifest.decision)}"
    note(settings, wh, kind, manifest.checkpoint.checkpoint_id, promotion_payload(manifest, proof), reason=why)
