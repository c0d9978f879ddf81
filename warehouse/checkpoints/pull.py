"""Hand a checkpoint out: every digest, and its signature, checked before the folder appears."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from warehouse.checkpoints.manifests import manifest_at, pointer_of, read_manifest
from warehouse.checkpoints.object_store import ObjectStore, checkpoint_key
from warehouse.checkpoints.promotion import check_names
from warehouse.digests import sha256_file
from warehouse.errors import Conflict, IntegrityError, NotFound, RefusedName, WarehouseError
from warehouse.limits import DEFAULT, Limits, check_folder, refuse_names
from warehouse.records import Manifest
from warehouse.whole_files import whole_folder


def pull(
    store: ObjectStore,
    channel_or_checkpoint: str,
    out: Path,
    *,
    limits: Limits = DEFAULT,
    allow_code: bool = False,
    check: Callable[[Path, Manifest], None] = lambda _folder, _manifest: None,
) -> Manifest:
    """Download a checkpoint's Hugging Face directory, verified, to `out`, which appears at once or not at all.

    Args:
        channel_or_checkpoint: a channel's name; where there is no such channel, a checkpoint id.
        limits: how many files of which sizes may come.
        allow_code: also hand out files that a loader may run, for a base model that needs its own code.
        check: a further check of the whole folder (its signature) before it appears; what it raises stops the pull.

    Returns:
        The manifest of what is now in `out`.

    Raises:
        NotFound: neither a channel nor a promoted checkpoint has this name.
        IntegrityError: a digest differs, the manifest names a path outside its own folder, a pickle or code, or see
            `warehouse.limits.check_folder`.
        Conflict: `out` holds something else.
        WarehouseError: the files are larger than `limits.total_bytes`.
    """
    there = pointer_of(store, channel_or_checkpoint)
    manifest = manifest_at(store, there[0]) if there else read_manifest(store, channel_or_checkpoint)
    digests = _directory_digests(manifest, store, limits, allow_code)
    if os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir())):
        if not out.is_symlink() and out.is_dir() and _content_of(out) == digests:
            check(out, manifest)
            return manifest
        raise Conflict(f"{out} exists and is not checkpoint {manifest.checkpoint.checkpoint_id}; give an empty folder")

    try:
        with whole_folder(out) as fresh:
            _download(store, manifest, digests, fresh, limits.total_bytes)
            check_folder(fresh, limits, allow_code=allow_code)
            check(fresh, manifest)
    except OSError as error:
        raise WarehouseError(f"could not write {out}: {error.strerror or error}") from error
    return manifest


def _directory_digests(manifest: Manifest, store: ObjectStore, limits: Limits, allow_code: bool) -> dict[str, str]:
    """Path inside the directory -> sha256, for the manifest's own files; IntegrityError for a key that may not be."""
    try:
        check_names(manifest)
        refuse_names(manifest.files, allow_code=allow_code)
        if len(manifest.files) > limits.files:
            raise RefusedName(f"it names {len(manifest.files)} files, {limits.files} are allowed (limits.files)")
    except RefusedName as error:
        raise IntegrityError(f"the manifest in {store.url} is not to be trusted: {error}") from error
    own = checkpoint_key(manifest.checkpoint.checkpoint_id, "x").removesuffix("x")
    digests = {key.removeprefix(own): value for key, value in manifest.files.items() if key.startswith(own)}
    if not digests:
        raise NotFound(f"checkpoint {manifest.checkpoint.checkpoint_id} in {store.url} has no model files")
    return digests


def _download(store: ObjectStore, manifest: Manifest, digests: dict[str, str], folder: Path, max_bytes: int) -> None:
    left = max_bytes
    for name in sorted(digests):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        key = checkpoint_key(manifest.checkpoint.checkpoint_id, name)
        try:
            found = store.read_to(key, path, left)
        except NotFound as error:
            raise IntegrityError(f"the manifest names {key}, which is missing in {store.url}") from error
        if found != digests[name]:
            raise IntegrityError(f"{key} in {store.url}: expected sha256 {digests[name]}, found {found}; not pulled")
        left -= path.stat().st_size


def _content_of(folder: Path) -> dict[str, str] | None:
    """Path -> sha256 of a folder's files; None where it holds a symbolic link."""
    digests = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            return None
        if path.is_file():
            digests[path.relative_to(folder).as_posix()] = sha256_file(path)
    return digests
