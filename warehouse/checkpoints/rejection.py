"""What is kept of a refused checkpoint: its patches, its report and the reasons; no channel is read or moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from warehouse.checkpoints.manifests import MAX_RECORD_BYTES, parsed
from warehouse.checkpoints.object_store import ObjectStore, rejected_key
from warehouse.checkpoints.promotion import check_names, local_files, verify_files, verify_object
from warehouse.digests import canonical_json, sha256_bytes
from warehouse.errors import IntegrityError, NotFound
from warehouse.records import Manifest


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
    local = local_files(manifest, files)
    moved = {key: rejected_key(checkpoint_id, key) if key in local else key for key in manifest.files}
    kept = manifest.model_copy(update={"files": {moved[key]: digest for key, digest in manifest.files.items()}})

    for key in sorted(local):
        store.create(moved[key], local[key])
    *evidence, last = rejected_records(kept, reasons).items()
    for key, data in evidence:
        store.create(key, data)
    verify_files(store, kept)
    store.create(*last)
    return kept


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
    return parsed(Manifest, data, key, store)


def verify_rejected(store: ObjectStore, manifest: Manifest, reasons: Sequence[str]) -> None:
    """Read all evidence of a rejection and compare digests; IntegrityError names the first key that differs."""
    verify_files(store, manifest)
    for key, data in rejected_records(manifest, reasons).items():
        verify_object(store, key, sha256_bytes(data))
