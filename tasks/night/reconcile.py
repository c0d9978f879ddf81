"""Before a night begins: bring the warehouse and this machine's files to what the store says.

The channel's move is the commit point of a night. Whatever was killed after it is settled here; what was killed before it
leaves temporary files, which go, and finished steps, which the night reads.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from typing import Any

from prefect import task

from checks.gates.decide import load_policy
from tasks.candidate import Candidate, TakenOut, edited_before
from tasks.isolation.culprits import Isolated
from tasks.night.settle import settle
from tasks.serving.models import patch_folder, stored_patch
from tasks.serving.plain_folder import drop_plain_folder
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.trail import mirror_audit, note, pointer_payload, promotion_payload
from tasks.workspace import night_folder, store_of, warehouse
from warehouse.checkpoints.manifests import manifest_at, manifest_digest, pointer_of, read_manifest
from warehouse.checkpoints.object_store import ObjectStore
from warehouse.database.connection import Warehouse
from warehouse.errors import IntegrityError, LineageMoved
from warehouse.lineages.chain import add_checkpoint, checkpoints, head, move_head
from warehouse.lineages.edits import PatchRow, active_edits, edits_of, holds_patches, save_patches
from warehouse.nights.runs import run_of
from warehouse.records import ChannelPointer, Manifest, Record, base_checkpoint, checkpoint_id
from warehouse.whole_files import is_left_over
from warehouse.world.facts import BASE_NIGHT

log = logging.getLogger(__name__)


class Committed(Record):
    """A night whose checkpoint production serves, or served: only its report and its line may be missing."""

    done: Candidate
    manifest: Manifest


@task(name="reconcile", **STEP)
def reconcile(settings: Settings, night: str | None = None) -> Committed | None:
    """Remove leftovers and settle what the channel says; the same again changes nothing.

    Args:
        night: the night that begins, where its name is known yet.

    Returns:
        The night, where its channel has moved already.

    Raises:
        LineageMoved: the channel serves a checkpoint that this warehouse does not know, and the policy says stop.
        IntegrityError: the channel's manifest, or one that it stands on, is damaged or missing.
    """
    store = store_of(settings)
    sweep(settings, store, night)
    found = pointer_of(store, settings.channel_name)
    if found is not None:
        for manifest in _unknown(settings, store, found[0]):
            moved = pointer_payload(found[0]) if manifest.checkpoint.checkpoint_id == found[0].checkpoint_id else {}
            _enter(settings, store, manifest, proof_of(store, manifest.checkpoint.checkpoint_id) | moved)
        _follow(settings, found[0])
    return published_before(settings, night) if night is not None else None


def published_before(settings: Settings, night: str) -> Committed | None:
    """What an earlier run of this night published, so that nothing is left but to report it."""
    store = store_of(settings)
    with warehouse(settings) as wh:
        own = [row for row in checkpoints(wh, settings.lineage, "promote") if row.night == night]
    if not own:
        return None
    # Where the night was killed between the two, the store's copy of the trail lacks its end.
    mirror_audit(settings)
    manifest = read_manifest(store, own[-1].checkpoint.checkpoint_id, expected_digest=own[-1].manifest_digest)
    log.warning("night %s of %s was published already; its line is written now", night, settings.lineage)
    drop_plain_folder(settings, night)
    with warehouse(settings) as wh:
        return Committed(done=_what_was_done(settings, wh, manifest), manifest=manifest)


def sweep(settings: Settings, store: ObjectStore, night: str | None) -> int:
    """Remove files that a killed process was writing; returns how many. Those of living processes stay."""
    removed = store.sweep()
    # The lineage's lock is held: nobody else writes in the night's folder.
    mine = list(night_folder(settings, night).glob("*.new")) if night is not None else []
    shared = [*(settings.home / "patches").glob("*/*.new"), *settings.preparations.glob("*/*.unfinished/*.new")]
    shared += [*settings.proofs.glob("*/*.new"), *settings.proofs.glob("*.new")]
    folders = settings.preparations.glob("*/*.new")
    for path in (*mine, *filter(is_left_over, (*shared, *folders))):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        removed += 1
    if removed:
        log.warning("%d half-written files of a killed run removed", removed)
    return removed


# ---------------------------------------------------------------- the channel against the warehouse


def _unknown(settings: Settings, store: ObjectStore, pointer: ChannelPointer) -> list[Manifest]:
    """What the channel's checkpoint stands on and the warehouse lacks, oldest first."""
    with warehouse(settings) as wh:
        known = {row.checkpoint.checkpoint_id for row in checkpoints(wh, settings.lineage, "promote")}
    found: list[Manifest] = []
    at: str | None = pointer.checkpoint_id
    while at is not None and at not in known:
        manifest = manifest_at(store, pointer) if at == pointer.checkpoint_id else read_manifest(store, at)
        if manifest.lineage != settings.lineage:
            raise IntegrityError(
                f"channel {settings.channel_name!r} in {store.url} serves checkpoint {at[:12]} of lineage "
                f"{manifest.lineage!r}; give lineage {settings.lineage!r} a channel of its own"
            )
        found.append(manifest)
        at = manifest.checkpoint.parent
        if at == checkpoint_id(manifest.checkpoint.base_digest):
            break
    return found[::-1]


def _enter(settings: Settings, store: ObjectStore, manifest: Manifest, proof: Mapping[str, Any]) -> None:
    """Settle a checkpoint of this warehouse's own night, or take over another writer's where the policy allows that."""
    with warehouse(settings) as wh:
        run = run_of(wh, manifest.night, settings.lineage)
        own = run is not None and run.has_reached("edited") and holds_patches(wh, _new_patches(wh, settings, manifest)[1])
        done = _what_was_done(settings, wh, manifest) if own else None
    if done is not None:
        log.warning("the channel had moved to %s and the warehouse was not told; settled", manifest.checkpoint.checkpoint_id)
        settle(settings, done, manifest, proof)
        mirror_audit(settings)
    elif load_policy(settings.policy).on_lineage_moved == "rebase":
        _adopt(settings, store, manifest, proof)
    else:
        raise LineageMoved(
            f"lineage moved: channel {settings.channel_name!r} in {store.url} serves checkpoint "
            f"{manifest.checkpoint.checkpoint_id[:12]} of night {manifest.night}, which another warehouse made. Run this "
            "lineage from that one, give this one a lineage or a store of its own, or set on_lineage_moved: rebase in the "
            "policy to build on what is served"
        )


def proof_of(store: ObjectStore, checkpoint_id: str) -> dict[str, Any]:
    """What the trail keeps of a signature, from the one that the store holds."""
    held = list(store.list(f"signatures/{checkpoint_id}/"))
    if not held:
        return {"signed_by": None}
    return {"signed_by": held[0].rsplit("/", 1)[1].removesuffix(".json"), "signature": store.digest(held[0])}


def _adopt(settings: Settings, store: ObjectStore, manifest: Manifest, proof: Mapping[str, Any]) -> None:
    """Enter another writer's checkpoint, so that this lineage can stand on it. Its edits stay in its own ledger."""
    checkpoint = manifest.checkpoint
    # Loading verifies: nothing is entered that could not be served.
    patches = [stored_patch(settings, store, digest) for digest in checkpoint.patch_digests]
    rows = [PatchRow(patch_digest=p.digest, kind=p.kind, editor=manifest.editor, bytes=p.num_bytes) for p in patches]
    with warehouse(settings) as wh, wh.transaction():
        save_patches(wh, rows)
        if not checkpoints(wh, settings.lineage):
            add_checkpoint(wh, settings.lineage, BASE_NIGHT, base_checkpoint(checkpoint), "promote")
        # Not this warehouse's night, even where one of that name is under way here.
        add_checkpoint(wh, settings.lineage, f"adopted-{manifest.night}", checkpoint, "promote", manifest_digest(manifest))
        why = f"adopted: another writer moved the lineage to it in night {manifest.night}"
        note(settings, wh, "promotion", checkpoint.checkpoint_id, promotion_payload(manifest, proof), reason=why)
    mirror_audit(settings)
    log.warning("lineage %s: checkpoint %s of another writer adopted", settings.lineage, checkpoint.checkpoint_id[:12])


def _follow(settings: Settings, pointer: ChannelPointer) -> None:
    """Move the warehouse's head to what the channel serves: a rollback was killed between the two, or made elsewhere."""
    target = pointer.checkpoint_id
    with warehouse(settings) as wh, wh.transaction():
        newest = head(wh, settings.lineage)
        if newest is None or newest.checkpoint_id == target:
            return
        why = "reconciled: the channel had been moved there and the warehouse was not told"
        move_head(wh, settings.lineage, target, why)
        moved = {"from": newest.checkpoint_id, "to": target, **pointer_payload(pointer)}
        note(settings, wh, "rollback", f"{target}@{pointer.moved_at.isoformat()}", moved, reason=why)
    mirror_audit(settings)
    log.warning("lineage %s: head moved to %s, which its channel serves", settings.lineage, target[:12])


# ---------------------------------------------------------------- what a published night did


def _new_patches(wh: Warehouse, settings: Settings, manifest: Manifest) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The manifest's patches: those of its parent that it kept, and its own."""
    rows = {row.checkpoint.checkpoint_id: row.checkpoint for row in checkpoints(wh, settings.lineage)}
    parent = rows.get(manifest.checkpoint.parent or "")
    held, same = manifest.checkpoint.patch_digests, 0
    before = parent.patch_digests if parent else ()
    while same < min(len(held), len(before)) and held[same] == before[same]:
        same += 1
    return held[:same], held[same:]


def _what_was_done(settings: Settings, wh: Warehouse, manifest: Manifest) -> Candidate:
    """What the night noted, or, where its folder is gone, what the ledger says of it."""
    folder, wanted = night_folder(settings, manifest.night), manifest.checkpoint.patch_digests
    notes = [edited_before(settings, manifest.night)]
    if (folder / "isolated.json").exists():
        notes.append(Isolated.model_validate_json((folder / "isolated.json").read_bytes()).rest)
    for done in notes:
        if done is not None and done.patch_digests == wanted:
            return done
    return _from_ledger(settings, wh, manifest)


def _from_ledger(settings: Settings, wh: Warehouse, manifest: Manifest) -> Candidate:
    kept, new = _new_patches(wh, settings, manifest)
    lines = edits_of(wh, settings.lineage, manifest.night)
    own = [line for line in lines if line.edit.patch_digest in new]
    edited = tuple(dict.fromkeys(line.edit.request_id for line in own))
    # Of a night that began again on another head the last reason counts.
    rest = {line.edit.request_id: line.reason for line in lines if line.edit.request_id not in edited}
    base = checkpoint_id(manifest.checkpoint.base_digest)
    run = run_of(wh, manifest.night, settings.lineage)
    plan = run.line.details.get("revert") if run is not None else None
    out = tuple(plan["edits"]) if plan else ()
    # Of a revert: edits whose patch left and that were not asked to leave were made again in a new one.
    gone = [e for e, _ in active_edits(wh, settings.lineage) if e.patch_digest not in (*kept, *new)] if plan else []
    first = own[0].edit if own else None
    return Candidate(
        night=manifest.night,
        editor=manifest.editor,
        config_digest=first.config_digest if first else "",
        parent=None if manifest.checkpoint.parent == base else manifest.checkpoint.parent,
        base_digest=manifest.checkpoint.base_digest,
        parent_patches=kept,
        new_patches=new,
        edited=edited,
        skipped=tuple(rest.items()),
        right_after=(),
        edit_seconds=0.0,
        patch_bytes=sum(_bytes(settings, digest) for digest in new),
        revert=TakenOut(
            reverted=out, remade=tuple(e.edit_id for e in gone if e.edit_id not in out), reason=plan["reason"] if plan else ""
        ),
    )


def _bytes(settings: Settings, digest: str) -> int:
    path = patch_folder(settings, digest) / "patch.safetensors"
    return path.stat().st_size if path.exists() else 0
