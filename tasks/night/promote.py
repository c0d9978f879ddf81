"""Publish a promoted candidate, or keep a rejected one with its reasons."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import task

from editors.export.plain import why_not_plain
from editors.writing import writing
from tasks.candidate import Candidate
from tasks.night.gate import reasons
from tasks.night.settle import settle
from tasks.proving.canaries import make_canaries
from tasks.proving.engine import engine_facts, write_card
from tasks.serving.forms import how_to_ask
from tasks.serving.models import at_checkpoint, base_revision, patch_folder
from tasks.serving.plain_folder import drop_plain_folder, plain_folder
from tasks.serving.signing import sign_checkpoint
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.trail import mirror_audit, pointer_payload
from tasks.workspace import store_of, warehouse
from warehouse.checkpoints.canaries import canaries_digest
from warehouse.checkpoints.manifests import checkpoint_files, file_digests, patch_files, read_manifest
from warehouse.checkpoints.promotion import publish
from warehouse.checkpoints.rejection import reject
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
    manifest = Manifest(
        checkpoint=checkpoint,
        lineage=settings.lineage,
        night=done.night,
        editor=done.editor,
        verdict=decision.verdict,
        report=report,
        decision=decision,
    )
    files: dict[str, Path] = {}
    for digest in done.patch_digests:
        files |= patch_files(digest, patch_folder(settings, digest))
    proof: dict[str, Any] = {"signed_by": None}
    if decision.verdict == "promote":
        plain = plain_folder(settings, model, done)
        if plain.why_not:
            # Served by Errata it holds its edits, so the night may promote it; who pulls it is refused.
            log.warning("%s", why_not_plain(plain.path))
        facts = engine_facts(plain.path, model.anatomy, how_to_ask(settings).forms.names, plain.room)
        canaries = make_canaries(settings, done, report, plain)
        manifest = manifest.model_copy(update={"engine": facts, "canaries": canaries and canaries_digest(canaries)})
        with writing(plain.path):
            write_card(plain.path, manifest)
        files |= checkpoint_files(checkpoint.checkpoint_id, plain.path)
        manifest = manifest.model_copy(update={"files": file_digests(files)})
        proof = sign_checkpoint(settings, store, checkpoint.checkpoint_id, plain.path)
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
        manifest = manifest.model_copy(update={"files": file_digests(files)})
        manifest = reject(store, manifest, files, list(reasons(decision)))
    with warehouse(settings):
        settle(settings, done, manifest, proof)
        mirror_audit(settings)
    drop_plain_folder(settings, done.night)
    log.info("checkpoint %s: %s", checkpoint.checkpoint_id[:12], decision.verdict)
    return manifest
