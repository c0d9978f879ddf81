"""Promotion, rejection and pull: what a checkpoint is in the store, and when a channel may name it.

The channel's move is the commit point. Everything before it only adds objects that are named by their content, so a
publish can be killed at any instant and run again: it ends in the same state, and a channel never names a checkpoint
of which something is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from warehouse.checkpoints.object_store import (
    ObjectStore,
    Version,
    canaries_key,
    channel_key,
    checkpoint_key,
    decision_key,
    manifest_key,
    patch_key,
    rejected_key,
    report_key,
    source_digest,
    swap_conflict,
    validate_key,
)
from warehouse.digests import canonical_json, sha256_bytes
from warehouse.errors import Conflict, IntegrityError, LineageMoved, NotFound, RefusedName
from warehouse.limits import refuse_names
from warehouse.records import CanarySet, ChannelPointer, Manifest, Record

# A promoted manifest may name objects here; anything else, channels above all, is written by nobody but this module.
_NAMEABLE = ("patches/", "checkpoints/")
MAX_RECORD_BYTES = 256 << 20

RecordT = TypeVar("RecordT", bound=Record)


# ---------------------------------------------------------------- what goes into a manifest


def checkpoint_files(checkpoint_id: str, folder: Path) -> dict[str, Path]:
    """Every file of a Hugging Face directory by the store key it gets.

    Raises:
        NotFound: the folder is missing or empty.
        RefusedName: a name in it cannot be a store key.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not paths:
        raise NotFound(f"checkpoint {checkpoint_id}: no files in {folder}; save the model there first")
    return {checkpoint_key(checkpoint_id, path.relative_to(folder).as_posix()): path for path in paths}


def patch_files(patch_digest: str, folder: Path) -> dict[str, Path]:
    """`patch.safetensors` and `patch.json` of one saved patch by the store keys they get."""
    return {patch_key(patch_digest, name): folder / name for name in ("patch.safetensors", "patch.json")}


def file_digests(files: Mapping[str, Path]) -> dict[str, str]:
    """Store key -> sha256: the `files` of a `Manifest`."""
    return {key: source_digest(files[key]) for key in sorted(files)}


def manifest_digest(manifest: Manifest) -> str:
    """sha256 of the manifest's canonical JSON, which is exactly what the store holds."""
    return sha256_bytes(canonical_json(manifest))


def canaries_digest(canaries: CanarySet) -> str:
    """The `canaries` of a manifest: sha256 of the set's canonical JSON, which is exactly what the store holds."""
    return sha256_bytes(canonical_json(canaries))


# ---------------------------------------------------------------- reading


def read_manifest(store: ObjectStore, checkpoint_id: str, *, expected_digest: str | None = None) -> Manifest:
    """The manifest of a promoted checkpoint.

    Raises:
        NotFound: there is none, or the checkpoint was rejected.
        IntegrityError: it does not have `expected_digest`, is not canonical, or speaks of another checkpoint.
    """
    key = manifest_key(checkpoint_id)
    try:
        data = store.read(key, MAX_RECORD_BYTES)
    except NotFound:
        if store.exists(rejected_key(checkpoint_id, "manifest.json")):
            why = rejected_key(checkpoint_id, "reasons.json")
            raise NotFound(f"checkpoint {checkpoint_id} was rejected, not promoted; its reasons are in {why}") from None
        raise NotFound(f"no checkpoint {checkpoint_id} in {store.url}") from None
    found = sha256_bytes(data)
    if expected_digest is not None and found != expected_digest:
        raise IntegrityError(
            f"{key} in {store.url} has sha256 {found}, the channel says {expected_digest}: "
            "the manifest was changed; restore it or move the channel to a sound checkpoint"
        )
    manifest = _parse(Manifest, data, key, store)
    if manifest.checkpoint.checkpoint_id != checkpoint_id:
        raise IntegrityError(f"{key} in {store.url} speaks of checkpoint {manifest.checkpoint.checkpoint_id}")
    return manifest


def read_canaries(store: ObjectStore, manifest: Manifest) -> CanarySet:
    """What a server of this checkpoint is asked.

    Raises:
        NotFound: the checkpoint has none: a release before this one promoted it, or `serving.canaries` was 0.
        IntegrityError: they are missing, have another digest, or speak of another checkpoint.
    """
    checkpoint_id = manifest.checkpoint.checkpoint_id
    if manifest.canaries is None:
        raise NotFound(
            f"checkpoint {checkpoint_id[:12]} has no canaries to ask a server: it was promoted by an earlier release, or with "
            "serving.canaries 0; the next promotion writes them"
        )
    key = canaries_key(manifest.canaries)
    try:
        data = store.read(key, MAX_RECORD_BYTES)
    except NotFound as error:
        raise IntegrityError(f"the manifest of {checkpoint_id} names {key}, which is missing in {store.url}") from error
    if (found := sha256_bytes(data)) != manifest.canaries:
        raise IntegrityError(f"{key} in {store.url} has sha256 {found}; restore it from a copy of the store")
    canaries = _parse(CanarySet, data, key, store)
    if canaries.checkpoint_id != checkpoint_id:
        raise IntegrityError(f"{key} in {store.url} speaks of checkpoint {canaries.checkpoint_id}")
    return canaries


def read_pointer(store: ObjectStore, channel: str) -> tuple[ChannelPointer, Version] | None:
    """Where a channel points, with the version for a swap; None for a channel that nobody has set.

    Raises:
        IntegrityError: the pointer is damaged, or the manifest it names is missing or has another digest.
    """
    there = pointer_of(store, channel)
    if there is None:
        return None
    manifest_at(store, there[0])
    return there


def pointer_of(store: ObjectStore, channel: str) -> tuple[ChannelPointer, Version] | None:
    """The pointer without its manifest, so that a channel can be moved away from a broken one."""
    key = channel_key(channel)
    try:
        data, version = store.read_versioned(key)
    except NotFound:
        return None
    pointer = _parse(ChannelPointer, data, key, store)
    if pointer.channel != channel:
        raise IntegrityError(f"{key} in {store.url} is the pointer of channel {pointer.channel!r}")
    return pointer, version


def manifest_at(store: ObjectStore, pointer: ChannelPointer) -> Manifest:
    try:
        return read_manifest(store, pointer.checkpoint_id, expected_digest=pointer.manifest_digest)
    except NotFound as error:
        raise IntegrityError(f"channel {pointer.channel!r} in {store.url} points at nothing: {error}") from error


def _parse(kind: type[RecordT], data: bytes, key: str, store: ObjectStore) -> RecordT:
    try:
        record = kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise IntegrityError(f"{key} in {store.url} is no {kind.__name__}: {first['loc']} {first['msg']}") from error
    if canonical_json(record) != data:
        raise IntegrityError(f"{key} in {store.url} is not in canonical form: something else than Errata wrote it")
    return record


# ---------------------------------------------------------------- publishing and rejecting


def publish(
    store: ObjectStore,
    manifest: Manifest,
    files: Mapping[str, Path],
    *,
    channel: str,
    expected_parent: str | None,
    moved_at: datetime,
    canaries: CanarySet | None = None,
) -> ChannelPointer:
    """Store a promoted checkpoint whole, verify it whole, and only then move the channel to it.

    Safe to kill and to run again with the same manifest; after a complete success it returns the pointer as it is,
    also where `moved_at` is now another. The manifest goes first and claims the checkpoint: of two writers that made
    the same one, the second carries on with the first one's manifest (the pointer says which), so that neither is left
    with half of each.

    Args:
        files: local files by store key, or by their path inside the checkpoint. What the manifest names and is not
            here must be in the store already (patches of earlier nights).
        expected_parent: the checkpoint that the channel served when the work began; None for a new channel.
        moved_at: the time to write into the pointer (there is no clock in here, so digests repeat).
        canaries: the set whose digest the manifest names.

    Raises:
        LineageMoved: the channel serves another checkpoint than expected.
        Conflict: an object of one of these names has other content.
        IntegrityError: a file is not what the manifest says, here or in the store, or something it names is missing.
        RefusedName: the manifest names something it may not.
        ValueError: it was not decided "promote", or the canaries are not those that the manifest names.
    """
    if manifest.canaries != (None if canaries is None else canaries_digest(canaries)):
        raise ValueError(f"checkpoint {manifest.checkpoint.checkpoint_id}: its manifest names canaries {manifest.canaries}")
    if manifest.verdict != "promote" or manifest.decision.verdict != "promote":
        raise ValueError(
            f"checkpoint {manifest.checkpoint.checkpoint_id}: verdict {manifest.verdict!r}, decision "
            f"{manifest.decision.verdict!r}; only a promoted one can be published, use reject()"
        )
    check_names(manifest)
    local = _local_files(manifest, files)
    there = pointer_of(store, channel)
    if there is None or there[0].checkpoint_id != manifest.checkpoint.checkpoint_id:
        # Asked here too, so that a lost race costs no upload; the swap at the end is what decides.
        _check_parent(store, channel, there, expected_parent)
    manifest = _claim(store, manifest)
    if there is not None and there[0].manifest_digest == manifest_digest(manifest):
        return there[0]

    for key in sorted(local):
        store.create(key, local[key])
    store.create(report_key(manifest.report.report_id), canonical_json(manifest.report))
    store.create(decision_key(manifest.decision.decision_id), canonical_json(manifest.decision))
    if canaries is not None:
        store.create(canaries_key(canaries_digest(canaries)), canonical_json(canaries))
    return move_channel(store, channel, manifest.checkpoint.checkpoint_id, expected_parent=expected_parent, moved_at=moved_at)


def _claim(store: ObjectStore, manifest: Manifest) -> Manifest:
    """Store the manifest, or give the one that is there if it says the same but for times and seconds."""
    try:
        store.create(manifest_key(manifest.checkpoint.checkpoint_id), canonical_json(manifest))
    except Conflict:
        held = read_manifest(store, manifest.checkpoint.checkpoint_id)
        if _said(held) != _said(manifest):
            raise
        return held
    return manifest


def _said(manifest: Manifest) -> tuple[object, ...]:
    """What is equal wherever and whenever the same checkpoint is made and decided on."""
    checkpoint = manifest.checkpoint.model_dump(exclude={"created_at"})
    ids = (manifest.report.report_id, manifest.decision.decision_id)
    said = (manifest.lineage, manifest.night, manifest.editor, manifest.verdict, *ids, manifest.files, manifest.canaries)
    return (checkpoint, *said)


def move_channel(
    store: ObjectStore, channel: str, checkpoint_id: str, *, expected_parent: str | None, moved_at: datetime
) -> ChannelPointer:
    """Point a channel at a checkpoint that is in the store (the end of a publish, or a rollback).

    Reads every object that the manifest names and compares its digest first.

    Raises:
        Conflict: "lineage moved": the channel does not serve `expected_parent`.
        NotFound: no such promoted checkpoint.
        IntegrityError: something that its manifest names is missing or damaged; the channel stays where it is.
    """
    manifest = read_manifest(store, checkpoint_id)
    verify(store, manifest)
    there = pointer_of(store, channel)
    wanted = manifest_digest(manifest)
    if there is not None and (there[0].checkpoint_id, there[0].manifest_digest) == (checkpoint_id, wanted):
        return there[0]
    _check_parent(store, channel, there, expected_parent)
    pointer = ChannelPointer(
        channel=channel,
        checkpoint_id=checkpoint_id,
        manifest_digest=wanted,
        parent=expected_parent,
        moved_at=moved_at,
    )
    try:
        store.compare_and_swap(channel_key(channel), there[1] if there else None, canonical_json(pointer))
    except LineageMoved:
        # Two writers of one checkpoint: the other one's pointer, of another second, says the same.
        now = pointer_of(store, channel)
        if now is None or (now[0].checkpoint_id, now[0].manifest_digest) != (checkpoint_id, wanted):
            raise
        return now[0]
    return pointer


def reject(store: ObjectStore, manifest: Manifest, files: Mapping[str, Path], reasons: Sequence[str]) -> Manifest:
    """Keep a refused checkpoint's evidence under `rejected/`; no channel is read or moved.

    Every key that has a local file moves under `rejected/<checkpoint_id>/`, in the store and in the manifest that is
    kept; the other keys must be in the store already. The manifest is written last, so where it is, all is.

    Returns:
        The manifest as stored.

    Raises:
        Conflict: this checkpoint was rejected before with other evidence.
        IntegrityError: a file is not what the manifest says.
        ValueError: the manifest was decided "promote", or no reason is given.
    """
    checkpoint_id = manifest.checkpoint.checkpoint_id
    if "promote" in (manifest.verdict, manifest.decision.verdict):
        raise ValueError(f"checkpoint {checkpoint_id} was decided 'promote'; use publish()")
    if not reasons:
        raise ValueError(f"checkpoint {checkpoint_id} is rejected without a reason; give the failed rules")
    check_names(manifest)
    local = _local_files(manifest, files)
    moved = {key: rejected_key(checkpoint_id, key) if key in local else key for key in manifest.files}
    kept = manifest.model_copy(update={"files": {moved[key]: digest for key, digest in manifest.files.items()}})

    for key in sorted(local):
        store.create(moved[key], local[key])
    *evidence, last = rejected_records(kept, reasons).items()
    for key, data in evidence:
        store.create(key, data)
    _verify_files(store, kept)
    store.create(*last)
    return kept


def verify(store: ObjectStore, manifest: Manifest) -> None:
    """Read every object that belongs to a promoted manifest and compare digests.

    Raises:
        IntegrityError: names the first key that is missing or has other content.
    """
    _verify_files(store, manifest)
    records: dict[str, Record] = {
        report_key(manifest.report.report_id): manifest.report,
        decision_key(manifest.decision.decision_id): manifest.decision,
        manifest_key(manifest.checkpoint.checkpoint_id): manifest,
    }
    for key, record in records.items():
        _verify_object(store, key, sha256_bytes(canonical_json(record)))
    if manifest.canaries is not None:
        _verify_object(store, canaries_key(manifest.canaries), manifest.canaries)


def rejected_records(manifest: Manifest, reasons: Sequence[str]) -> dict[str, bytes]:
    """The records beside a rejected manifest, by store key, as `reject` wrote them; the manifest itself among them."""
    checkpoint_id = manifest.checkpoint.checkpoint_id
    return {
        rejected_key(checkpoint_id, "report.json"): canonical_json(manifest.report),
        rejected_key(checkpoint_id, "decision.json"): canonical_json(manifest.decision),
        rejected_key(checkpoint_id, "reasons.json"): canonical_json(list(reasons)),
        rejected_key(checkpoint_id, "manifest.json"): canonical_json(manifest),
    }


def read_rejected(store: ObjectStore, checkpoint_id: str, *, expected_digest: str) -> Manifest:
    """The manifest that `reject` kept.

    Raises:
        IntegrityError: it is missing, has another digest or is not canonical.
    """
    key = rejected_key(checkpoint_id, "manifest.json")
    try:
        data = store.read(key, MAX_RECORD_BYTES)
    except NotFound as error:
        raise IntegrityError(f"the evidence of a rejection is missing: {error}") from error
    if (found := sha256_bytes(data)) != expected_digest:
        raise IntegrityError(f"{key} in {store.url} has sha256 {found}, the audit trail says {expected_digest}")
    return _parse(Manifest, data, key, store)


def verify_rejected(store: ObjectStore, manifest: Manifest, reasons: Sequence[str]) -> None:
    """Read all evidence of a rejection and compare digests; IntegrityError names the first key that differs."""
    _verify_files(store, manifest)
    for key, data in rejected_records(manifest, reasons).items():
        _verify_object(store, key, sha256_bytes(data))


def promoted_keys(manifest: Manifest) -> set[str]:
    """Every store key that a promoted manifest vouches for, its own among them."""
    return {
        *manifest.files,
        report_key(manifest.report.report_id),
        decision_key(manifest.decision.decision_id),
        manifest_key(manifest.checkpoint.checkpoint_id),
        *([] if manifest.canaries is None else [canaries_key(manifest.canaries)]),
    }


def _verify_files(store: ObjectStore, manifest: Manifest) -> None:
    for key in sorted(manifest.files):
        _verify_object(store, key, manifest.files[key])


def _verify_object(store: ObjectStore, key: str, wanted: str) -> None:
    try:
        found = store.digest(key)
    except NotFound:
        found = "nothing"
    if found != wanted:
        raise IntegrityError(f"{key} in {store.url}: expected sha256 {wanted}, found {found}; no channel was moved")


def check_names(manifest: Manifest) -> None:
    own = checkpoint_key(manifest.checkpoint.checkpoint_id, "x").removesuffix("x")
    for key in manifest.files:
        validate_key(key)
        if not key.startswith(_NAMEABLE) or (key.startswith("checkpoints/") and not key.startswith(own)):
            raise RefusedName(
                f"the manifest of {manifest.checkpoint.checkpoint_id} names {key!r}; "
                f"it may name files under patches/ and {own} only"
            )
    # Code is a matter of who asks: a base model that needs some has it in its folder.
    refuse_names(manifest.files, allow_code=True)


def _local_files(manifest: Manifest, files: Mapping[str, Path]) -> dict[str, Path]:
    """`files` by full store key, each checked against the manifest's digest."""
    local: dict[str, Path] = {}
    for name, path in files.items():
        key = name if name in manifest.files else checkpoint_key(manifest.checkpoint.checkpoint_id, name)
        if key not in manifest.files:
            raise ValueError(f"the manifest of {manifest.checkpoint.checkpoint_id} does not name {name!r} ({path})")
        found = source_digest(path)
        if found != manifest.files[key]:
            raise IntegrityError(
                f"{path} for {key}: the manifest says sha256 {manifest.files[key]}, the file has {found}; "
                "make the checkpoint again"
            )
        local[key] = path
    return local


def _check_parent(
    store: ObjectStore, channel: str, there: tuple[ChannelPointer, Version] | None, expected_parent: str | None
) -> None:
    found = there[0].checkpoint_id if there else None
    if found != expected_parent:
        expected = Version(expected_parent) if expected_parent else None
        raise swap_conflict(store.url, channel_key(channel), expected, Version(found) if found else None)
