"""The canaries of a checkpoint in the store, under their own digest, which the manifest names."""

from __future__ import annotations

from warehouse.checkpoints.manifests import MAX_RECORD_BYTES, parsed
from warehouse.checkpoints.object_store import ObjectStore, canaries_key
from warehouse.digests import canonical_json, sha256_bytes
from warehouse.errors import IntegrityError, NotFound
from warehouse.records import CanarySet, Manifest


def canaries_digest(canaries: CanarySet) -> str:
    """The `canaries` of a manifest: sha256 of the set's canonical JSON, which is exactly what the store holds."""
    return sha256_bytes(canonical_json(canaries))


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
    canaries = parsed(CanarySet, data, key, store)
    if canaries.checkpoint_id != checkpoint_id:
        raise IntegrityError(f"{key} in {store.url} speaks of checkpoint {canaries.checkpoint_id}")
    return canaries
