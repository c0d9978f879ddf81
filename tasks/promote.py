"""Publish a promoted candidate, or keep a rejected one with its reasons."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import task

from editors.errors import UnsupportedModel
from editors.model import EditableModel
from editors.patches.slots import SlotPatch
from editors.patches.widen import widened
from editors.patches.widen_slots import export_plain
from editors.writing import writing
from tasks.edit import EditedNight, candidate_model
from tasks.gate import judged
from tasks.ingest import STEP
from tasks.models import base_revision, patch_folder
from tasks.notes import mirror_audit, note, pointer_payload, promotion_payload
from tasks.revert_plan import REVERTED
from tasks.settings import Settings
from tasks.signing import sign_checkpoint
from tasks.workspace import night_folder, store_of, warehouse
from warehouse.audit import edits_payload, last_of
from warehouse.intake import requests_by_id
from warehouse.keys import Slots
from warehouse.ledger import active_edits, edits_of, settle_edits, supersede
from warehouse.lineage import add_checkpoint, checkpoints
from warehouse.promotion import checkpoint_files, file_digests, manifest_digest, patch_files, publish, read_manifest, reject
from warehouse.records import Checkpoint, EvaluationReport, GateDecision, Manifest
from warehouse.store import Warehouse
from warehouse.world_store import BASE_NIGHT

log = logging.getLogger(__name__)
NOTE = "errata.json"


def materialise(model: EditableModel, checkpoint: Checkpoint, folder: Path) -> Path:
    """Write the Hugging Face directory of a candidate, with a note of what it is made of.

    Added neurons and slots become a wider feed-forward where the architecture has room for them; `slots.json` then says
    which columns hold whose edits. Where a patch is neither (a memory, a text), the weights alone do not show the edit;
    the note says so.
    """
    shutil.rmtree(folder, ignore_errors=True)
    whole = True
    try:
        if any(isinstance(p, SlotPatch) for p in model.patches):
            export_plain(model, folder)
        elif any(p.kind != "weight" for p in model.patches):
            widened(model).save_pretrained(folder, safe_serialization=True)
            model.tokenizer.save_pretrained(folder)
        else:
            model.save_pretrained(folder)
    except UnsupportedModel as error:
        log.warning("the exported weights do not show every edit: %s", error)
        model.save_pretrained(folder)
        whole = False
    kinds = sorted({p.kind for p in model.patches})
    note = {
        "checkpoint_id": checkpoint.checkpoint_id, "base_digest": checkpoint.base_digest,
        "patch_digests": list(checkpoint.patch_digests), "patch_kinds": kinds,
        "weights_hold_every_edit": whole,
    }  # fmt: skip
    (folder / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return folder


def reasons(decision: GateDecision) -> tuple[str, ...]:
    """Sentences of the rules that stopped a candidate; failed warnings stopped nothing."""
    return tuple(r.explanation for r in decision.failed_rules if r.rule.on_fail != "warn")


@task(name="promote", **STEP)
def promote(settings: Settings, done: EditedNight, report: EvaluationReport, decision: GateDecision) -> Manifest:
    """Publish or reject by the decision. Safe to kill and to run again: the channel's move is the commit point.

    Raises:
        LineageMoved: the channel no longer serves the checkpoint that this night edited.
        IntegrityError: something in the store does not have the digest that it should have.
    """
    model = candidate_model(settings, done)
    checkpoint = done.checkpoint(settings, base_revision(settings, model), decision.decided_at)
    folder = night_folder(settings, done.night) / "model"
    with writing(folder):
        materialise(model, checkpoint, folder)
    files = checkpoint_files(checkpoint.checkpoint_id, folder)
    for digest in done.patch_digests:
        files |= patch_files(digest, patch_folder(settings, digest))
    manifest = Manifest(
        checkpoint=checkpoint, lineage=settings.lineage, night=done.night, editor=done.editor,
        verdict=decision.verdict, report=report, decision=decision, files=file_digests(files),
    )  # fmt: skip
    store = store_of(settings)
    proof: dict[str, Any] = {"signed_by": None}
    if decision.verdict == "promote":
        proof = sign_checkpoint(settings, store, checkpoint.checkpoint_id, folder)
        pointer = publish(
            store, manifest, files, channel=settings.channel_name, expected_parent=done.parent,
            moved_at=datetime.now(UTC),
        )  # fmt: skip
        # That of whoever published this checkpoint first.
        manifest = read_manifest(store, checkpoint.checkpoint_id, expected_digest=pointer.manifest_digest)
        proof |= pointer_payload(pointer)
    else:
        # Evidence of a refusal: patches and reasons. Its weights can be made again from them.
        kept = {key: path for key, path in files.items() if key.startswith("patches/")}
        manifest = manifest.model_copy(update={"files": file_digests(kept)})
        manifest = reject(store, manifest, kept, list(reasons(decision)))
    settle(settings, done, manifest, proof)
    mirror_audit(settings)
    shutil.rmtree(folder)
    log.info("checkpoint %s: %s", checkpoint.checkpoint_id[:12], decision.verdict)
    return manifest


def settle(settings: Settings, done: EditedNight, manifest: Manifest, proof: Mapping[str, Any]) -> None:
    """Write into the warehouse what the store now says; the same again changes nothing."""
    checkpoint, promoted = manifest.checkpoint, manifest.verdict == "promote"
    with warehouse(settings) as wh, wh.transaction():
        tonight = Slots(requests_by_id(wh, list(done.edited)))
        earlier = [
            e.edit_id for e, r in active_edits(wh, settings.lineage)
            if r in tonight and e.request_id not in done.edited
        ]  # fmt: skip
        base = done.base_checkpoint(settings, checkpoint.base_revision, checkpoint.created_at)
        if not checkpoints(wh, settings.lineage):
            add_checkpoint(wh, settings.lineage, BASE_NIGHT, base, "promote")
        add_checkpoint(wh, settings.lineage, done.night, checkpoint, manifest.verdict, manifest_digest(manifest))
        reason = "" if promoted else " ".join(reasons(manifest.decision))
        settle_edits(
            wh, settings.lineage, done.night, checkpoint.checkpoint_id,
            status="active" if promoted else "rejected", reason=reason,
            edit_ids=_own_edits(settings, wh, done, checkpoint, promoted=promoted),
        )  # fmt: skip
        _note(settings, wh, done, manifest, proof)
        if promoted:
            # Before what is superseded by slot: an edit keeps its first reason.
            for gone, why in ((done.reverted, REVERTED + done.reason), (done.remade, f"made again in {done.night}")):
                supersede(wh, settings.lineage, gone, in_checkpoint=checkpoint.checkpoint_id, reason=why)
        if promoted and earlier:
            supersede(
                wh, settings.lineage, earlier, in_checkpoint=checkpoint.checkpoint_id,
                reason=f"a newer update of {done.night}",
            )  # fmt: skip


def _own_edits(
    settings: Settings, wh: Warehouse, done: EditedNight, checkpoint: Checkpoint, *, promoted: bool
) -> list[str]:  # fmt: skip
    """The night's edits in this candidate's patches; a night has two candidates where culprits were taken out.

    A patch may be in both: what the second one promoted is not rejected again when a killed night is run once more.
    """
    own = (None, checkpoint.checkpoint_id)
    return [
        line.edit.edit_id for line in edits_of(wh, settings.lineage, done.night)
        if line.edit.patch_digest in done.patch_digests and (promoted or line.checkpoint_id in own)
    ]  # fmt: skip


def _note(settings: Settings, wh: Warehouse, done: EditedNight, manifest: Manifest, proof: Mapping[str, Any]) -> None:
    """The trail gets the night's edits, a change of key, and the promotion or rejection with its reasons."""
    signed_by = proof["signed_by"]
    used = last_of(wh, "key", settings.lineage)
    if signed_by is not None and (used is None or used.subject != signed_by):
        before = used and used.subject
        why = f"signing.private_key is now this key; it was {before[:16]}" if before else "the first key of this lineage"
        note(settings, wh, "key", signed_by, {"before": before}, reason=why)
    made = f"{len(done.edited)} edits by {done.editor} on {done.before[:12]}"
    note(settings, wh, "edits", done.night, edits_payload(wh, done.night, settings.lineage), reason=made)
    if done.reverted:
        taken = {"checkpoint": manifest.checkpoint.checkpoint_id, "edits": list(done.reverted), "verdict": manifest.verdict}
        note(settings, wh, "revert", done.night, taken, reason=done.reason)
    kind = "promotion" if manifest.verdict == "promote" else "rejection"
    why = " ".join(reasons(manifest.decision)) or f"the gate let it pass: {judged(manifest.decision)}"
    note(settings, wh, kind, manifest.checkpoint.checkpoint_id, promotion_payload(manifest, proof), reason=why)
