"""Promotion: a checkpoint whole in the store, and then the channel that names it.

The channel's move is the commit point. Everything before it only adds objects that are named by their content, so a
publish can be killed at any instant and run again: it ends in the same state, and a channel never names a checkpoint
of which something is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from warehouse.checkpoints.canaries import canaries_digest
from warehouse.checkpoints.manifests import manifest_digest, pointer_of, read_manifest
from warehouse.checkpoints.object_store import (
    ObjectStore,
    Version,
    canaries_key,
    channel_key,
    checkpoint_key,
    decision_key,
    manifest_key,
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


# ---------------------------------------------------------------- publishing


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
    local = local_files(manifest, files)
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


# ---------------------------------------------------------------- what a manifest names against what is there


def verify(store: ObjectStore, manifest: Manifest) -> None:
    """Read every object that belongs to a promoted manifest and compare digests.

    Raises:
        IntegrityError: names the first key that is missing or has other content.
    """
    verify_files(store, manifest)
    records: dict[str, Record] = {
        report_key(manifest.report.report_id): manifest.report,
        decision_key(manifest.decision.decision_id): manifest.decision,
        manifest_key(manifest.checkpoint.checkpoint_id): manifest,
    }
    for key, record in records.items():
        verify_object(store, key, sha256_bytes(canonical_json(record)))
    if manifest.canaries is not None:
        verify_object(store, canaries_key(manifest.canaries), manifest.canaries)


def promoted_keys(manifest: Manifest) -> set[str]:
    """Every store key that a promoted manifest vouches for, its own among them."""
    return {
        *manifest.files,
        report_key(manifest.report.report_id),
        decision_key(manifest.decision.decision_id),
        manifest_key(manifest.checkpoint.checkpoint_id),
        *([] if manifest.canaries is None else [canaries_key(manifest.canaries)]),
    }


def verify_files(store: ObjectStore, manifest: Manifest) -> None:
    """Read every file that a manifest names; IntegrityError names the first that is missing or has other content."""
    for key in sorted(manifest.files):
        verify_object(store, key, manifest.files[key])


def verify_object(store: ObjectStore, key: str, wanted: str) -> None:
    """IntegrityError where the object is missing or has another sha256 than `wanted`."""
    try:
        found = store.digest(key)
    except NotFound:
        found = "nothing"
    if found != wanted:
        raise IntegrityError(f"{key} in {store.url}: expected sha256 {wanted}, found {found}; no channel was moved")


def check_names(manifest: Manifest) -> None:
    """RefusedName where a manifest names something outside its own folder and the patches, a pickle or the like."""
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


def local_files(manifest: Manifest, files: Mapping[str, Path]) -> dict[str, Path]:
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
