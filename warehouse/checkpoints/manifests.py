"""What a checkpoint is in the store: the files and digests of its manifest, and the pointer of a channel that names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from warehouse.checkpoints.object_store import (
    ObjectStore,
    Version,
    channel_key,
    checkpoint_key,
    manifest_key,
    patch_key,
    rejected_key,
    source_digest,
)
from warehouse.digests import canonical_json, sha256_bytes
from warehouse.errors import IntegrityError, NotFound
from warehouse.records import ChannelPointer, Manifest, Record

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
    manifest = parsed(Manifest, data, key, store)
    if manifest.checkpoint.checkpoint_id != checkpoint_id:
        raise IntegrityError(f"{key} in {store.url} speaks of checkpoint {manifest.checkpoint.checkpoint_id}")
    return manifest


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
    pointer = parsed(ChannelPointer, data, key, store)
    if pointer.channel != channel:
        raise IntegrityError(f"{key} in {store.url} is the pointer of channel {pointer.channel!r}")
    return pointer, version


def manifest_at(store: ObjectStore, pointer: ChannelPointer) -> Manifest:
    try:
        return read_manifest(store, pointer.checkpoint_id, expected_digest=pointer.manifest_digest)
    except NotFound as error:
        raise IntegrityError(f"channel {pointer.channel!r} in {store.url} points at nothing: {error}") from error


def parsed(kind: type[RecordT], data: bytes, key: str, store: ObjectStore) -> RecordT:
    """A record from the bytes of an object.

    Raises:
        IntegrityError: they are no such record, or not in canonical form.
    """
    try:
        record = kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise IntegrityError(f"{key} in {store.url} is no {kind.__name__}: {first['loc']} {first['msg']}") from error
    if canonical_json(record) != data:
        raise IntegrityError(f"{key} in {store.url} is not in canonical form: something else than Errata wrote it")
    return record
