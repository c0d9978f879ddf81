"""Signatures of promoted checkpoints: OpenSSF model-signing with elliptic-curve keys.

A signature lies beside the checkpoint, never inside: `signatures/<checkpoint_id>/<key fingerprint>.json`. A key may be
replaced without touching what it signed; a checkpoint is good where any trusted key signed it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from warehouse.checkpoints.object_store import ObjectStore, validate_key
from warehouse.digests import sha256_bytes
from warehouse.errors import IntegrityError, NotFound, WarehouseError

MAX_SIGNATURE_BYTES = 4 << 20
_PEM = "-----BEGIN"


class KeyProblem(WarehouseError):
    """A key that cannot be read or used: names where it came from and what to do."""


def generate_key(private: Path, public: Path) -> str:
    """Write a new P-256 key pair as PEM files; the private one is readable by its owner alone.

    Returns:
        The fingerprint.

    Raises:
        KeyProblem: one of the files exists or cannot be written.
    """
    for path in (private, public):
        if path.exists():
            raise KeyProblem(f"{path} exists; a key is never overwritten, give another name")
    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
            handle.write(secret)
        public.write_bytes(_public_pem(key.public_key()))
    except OSError as error:
        raise KeyProblem(f"{error.filename or private} cannot be written: {error.strerror or error}") from error
    return fingerprint(public.read_bytes())


def public_key_of(private: str) -> bytes:
    """The public PEM of a private key (PEM text, or a path to it).

    Raises:
        KeyProblem: it is no elliptic-curve private key.
    """
    data = _pem(private, "private")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyProblem(f"the private key {_where(private)} cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyProblem(f"the private key {_where(private)} is no elliptic-curve key; make one with `errata key`")
    return _public_pem(key.public_key())


def fingerprint(public_pem: bytes) -> str:
    """sha256 of the key's own bytes, whatever the layout of its PEM file.

    Raises:
        KeyProblem: it is no public key.
    """
    try:
        key = serialization.load_pem_public_key(public_pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyProblem(f"a public key cannot be read: {error}; give a PEM file as `errata key` writes it") from error
    return sha256_bytes(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def signature_key(checkpoint_id: str, key_fingerprint: str) -> str:
    return validate_key(f"signatures/{checkpoint_id}/{key_fingerprint}.json")


def sign(store: ObjectStore, checkpoint_id: str, folder: Path, private: str) -> str:
    """Sign a checkpoint's Hugging Face folder; a signature by this key that is there already is checked and kept.

    Two signatures of one content differ (the scheme is randomised), so that a rerun must not make a second one.

    Args:
        private: PEM text of the key, or a path to it.

    Returns:
        The key's fingerprint.

    Raises:
        KeyProblem: the key cannot be used.
        IntegrityError: the store holds a signature of something else under this name.
    """
    public = public_key_of(private)
    name = signature_key(checkpoint_id, fingerprint(public))
    if store.exists(name):
        _verify(folder, store.read(name, MAX_SIGNATURE_BYTES), public, name)
        return fingerprint(public)
    import model_signing

    with tempfile.TemporaryDirectory() as scratch, _as_file(_pem(private, "private")) as key:
        made = Path(scratch) / "signature.json"
        model_signing.signing.Config().use_elliptic_key_signer(private_key=key).sign(folder, made)
        store.create(name, made)
    return fingerprint(public)


def verify_signature(store: ObjectStore, checkpoint_id: str, folder: Path, trusted: Sequence[bytes]) -> str:
    """Check that a trusted key signed exactly this folder.

    Args:
        trusted: public PEMs.

    Returns:
        The fingerprint of the first key whose signature holds.

    Raises:
        NotFound: no trusted key signed this checkpoint.
        IntegrityError: a trusted key signed something else: the folder or the signature was changed.
    """
    held = set(store.list(f"signatures/{checkpoint_id}/"))
    for public in trusted:
        name = signature_key(checkpoint_id, fingerprint(public))
        if name in held:
            _verify(folder, store.read(name, MAX_SIGNATURE_BYTES), public, name)
            return fingerprint(public)
    raise NotFound(
        f"checkpoint {checkpoint_id} has no signature of a trusted key ({len(held)} signatures by others, "
        f"{len(trusted)} trusted keys)"
    )


def _verify(folder: Path, signature: bytes, public: bytes, name: str) -> None:
    import model_signing

    with _as_file(signature) as signed, _as_file(public) as key:
        try:
            model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key).verify(folder, signed)
        except Exception as error:  # the library raises whatever its parsers raise; any of it means: not verified
            raise IntegrityError(f"signature {name} does not hold for {folder}: {error}") from error


def trusted_keys(sources: Sequence[str]) -> list[bytes]:
    """Public PEMs from texts or paths.

    Raises:
        KeyProblem: one of them cannot be read.
    """
    found = [_pem(source, "public") for source in sources]
    for public in found:
        fingerprint(public)
    return found


def _pem(source: str, what: str) -> bytes:
    if source.lstrip().startswith(_PEM):
        return source.encode()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise KeyProblem(f"the {what} key {source!r} cannot be read: {error.strerror or error}") from error


def _where(source: str) -> str:
    return "from the environment" if source.lstrip().startswith(_PEM) else repr(source)


def _public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@contextmanager
def _as_file(data: bytes) -> Iterator[Path]:
    """The library reads files only; this one is its owner's alone and gone afterwards."""
    handle, name = tempfile.mkstemp()
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
