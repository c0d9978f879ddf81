"""Publish a promoted candidate, or keep a rejected one with its reasons."""

from __future__ import annotations

import logging
import shutil
from datetime import UTC, datetime
from typing import Any

from prefect import task

from editors.export.plain import materialise, why_not_plain
from editors.writing import writing
from tasks.candidate import Candidate
from tasks.night.gate import reasons
from tasks.night.settle import settle
from tasks.proving.canaries import make_canaries
from tasks.proving.engine import engine_facts, write_card
from tasks.serving.form import plain_form
from tasks.serving.forms import how_to_ask
from tasks.serving.models import at_checkpoint, base_revision, patch_folder
from tasks.serving.signing import sign_checkpoint
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.trail import mirror_audit, pointer_payload
from tasks.workspace import night_folder, store_of, warehouse
from warehouse.checkpoints.promotion import (
    canaries_digest,
    checkpoint_files,
    file_digests,
    patch_files,
    publish,
    read_manifest,
    reject,
)
from warehouse.records import EvaluationReport, GateDecision, Manifest

log = logging.getLogger(__name__)


@task(name="promote", **STEP)
def promote(settings: Settings, done: Candidate, report: EvaluationReport, decision: GateDecision) -> Manifest:
    """Publish or reject by the decision. Safe to kill and to run again: the channel's move is the commit point.

    Raises:
        LineageMoved: the channel no longer serves the checkpoint that this night edited.
        IntegrityError: something in the store does not have the digest that it should have.
    """
    store = store_of(settings)
    model = at_checkpoint(settings, store, done)
    checkpoint = done.checkpoint(settings, base_revision(settings, model), decision.decided_at)
    folder = night_folder(settings, done.night) / "model"
    with writing(folder):
        written = materialise(model, checkpoint, folder, plain_form(settings, model))
    if not written.whole:
        # Served by Errata it holds its edits, so the night may promote it; who pulls it is refused.
        log.warning("%s", why_not_plain(folder))
    manifest = Manifest(
        checkpoint=checkpoint,
        lineage=settings.lineage,
        night=done.night,
        editor=done.editor,
        verdict=decision.verdict,
        report=report,
        decision=decision,
    )
    canaries = None
    if decision.verdict == "promote":
        facts = engine_facts(folder, model.anatomy, how_to_ask(settings).forms.names)
        canaries = make_canaries(settings, done, report)
        manifest = manifest.model_copy(update={"engine": facts, "canaries": canaries and canaries_digest(canaries)})
        with writing(folder):
            write_card(folder, manifest)
    files = checkpoint_files(checkpoint.checkpoint_id, folder)
    for digest in done.patch_digests:
        files |= patch_files(digest, patch_folder(settings, digest))
    manifest = manifest.model_copy(update={"files": file_digests(files)})
    proof: dict[str, Any] = {"signed_by": None}
    if decision.verdict == "promote":
        proof = sign_checkpoint(settings, store, checkpoint.checkpoint_id, folder)
        pointer = publish(
            store,
            manifest,
            files,
            channel=settings.channel_name,
            expected_parent=done.parent,
            moved_at=datetime.now(UTC),
            canaries=canaries,
        )
        # That of whoever published this checkpoint first.
        manifest = read_manifest(store, checkpoint.checkpoint_id, expected_digest=pointer.manifest_digest)
        proof |= pointer_payload(pointer)
    else:
        # Evidence of a refusal: patches and reasons. Its weights can be made again from them.
        kept = {key: path for key, path in files.items() if key.startswith("patches/")}
        manifest = manifest.model_copy(update={"files": file_digests(kept)})
        manifest = reject(store, manifest, kept, list(reasons(decision)))
    with warehouse(settings):
        settle(settings, done, manifest, proof)
        mirror_audit(settings)
    shutil.rmtree(folder)
    log.info("checkpoint %s: %s", checkpoint.checkpoint_id[:12], decision.verdict)
    return manifest
