"""Sign what is promoted, and check what is handed out, with the keys of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checks.gates.decide import load_policy
from tasks.settings import Settings
from warehouse.checkpoints.object_store import ObjectStore
from warehouse.checkpoints.signing import KeyProblem, public_key_of, sign, signature_key, trusted_keys, verify_signature
from warehouse.errors import IntegrityError, NotFound
from warehouse.records import Manifest


def trusted_by(settings: Settings) -> list[bytes]:
    """Public keys whose signatures count: the configured ones, and the private key's own.

    Raises:
        KeyProblem: a key cannot be read.
    """
    own = [public_key_of(settings.signing.private_key)] if settings.signing.private_key else []
    return [*own, *trusted_keys(settings.signing.trusted)]


def sign_checkpoint(settings: Settings, store: ObjectStore, checkpoint_id: str, folder: Path) -> dict[str, Any]:
    """Sign a candidate's folder before it is published.

    Returns:
        `signed_by` (the key's fingerprint; None where there is no key and the policy allows that) and, where there is
        one, `signature` (the digest of the signature's file, some bytes of which the signature itself does not cover).

    Raises:
        KeyProblem: there is no key and the policy asks for one, or the key cannot be used.
    """
    if settings.signing.private_key:
        signed_by = sign(store, checkpoint_id, folder, settings.signing.private_key)
        return {"signed_by": signed_by, "signature": store.digest(signature_key(checkpoint_id, signed_by))}
    if load_policy(settings.policy).allow_unsigned:
        return {"signed_by": None}
    raise KeyProblem(
        f"policy {settings.policy!r} asks for a signature and there is no key; make one with `errata key` and set "
        "signing.private_key (or ERRATA_SIGNING__PRIVATE_KEY), or set allow_unsigned in the policy"
    )


def check_signature(settings: Settings, store: ObjectStore, manifest: Manifest, folder: Path) -> None:
    """Refuse a folder that no trusted key signed, where keys are trusted or the policy asks for signatures.

    Raises:
        IntegrityError: no signature of a trusted key holds for it.
        KeyProblem: a key cannot be read.
    """
    trusted = trusted_by(settings)
    if not trusted and load_policy(settings.policy).allow_unsigned:
        return
    try:
        verify_signature(store, manifest.checkpoint.checkpoint_id, folder, trusted)
    except NotFound as error:
        raise IntegrityError(f"not handed out: {error}") from error
