"""Signatures: what was signed verifies, anything else does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from warehouse.checkpoints.directory import DirectoryStore
from warehouse.checkpoints.signing import (
    KeyProblem,
    generate_key,
    public_key_of,
    sign,
    signature_key,
    trusted_keys,
    verify_signature,
)
from warehouse.errors import IntegrityError, NotFound

ID = "a" * 64


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    (path / "inner").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights" * 100)
    (path / "inner" / "config.json").write_text("{}")
    return path


@pytest.fixture
def private(tmp_path: Path) -> Path:
    generate_key(tmp_path / "key.pem", tmp_path / "key.pub")
    return tmp_path / "key.pem"


def test_a_signed_folder_verifies(store: DirectoryStore, folder: Path, private: Path) -> None:
    signed_by = sign(store, ID, folder, str(private))
    assert verify_signature(store, ID, folder, [public_key_of(str(private))]) == signed_by


def test_a_key_from_the_environment_signs_like_its_file(store: DirectoryStore, folder: Path, private: Path) -> None:
    assert sign(store, ID, folder, private.read_text()) == sign(store, ID, folder, str(private))


def test_signing_again_keeps_the_first_signature(store: DirectoryStore, folder: Path, private: Path) -> None:
    name = signature_key(ID, sign(store, ID, folder, str(private)))
    before = store.read(name)
    sign(store, ID, folder, str(private))
    assert store.read(name) == before


@pytest.mark.parametrize("change", ["byte", "extra", "missing", "renamed"])
def test_a_changed_folder_does_not_verify(store: DirectoryStore, folder: Path, private: Path, change: str) -> None:
    sign(store, ID, folder, str(private))
    weights = folder / "model.safetensors"
    if change == "byte":
        weights.write_bytes(b"W" + weights.read_bytes()[1:])
    elif change == "extra":
        (folder / "more.txt").write_text("x")
    elif change == "missing":
        weights.unlink()
    else:
        weights.rename(folder / "other.safetensors")
    with pytest.raises(IntegrityError, match=ID):
        verify_signature(store, ID, folder, [public_key_of(str(private))])


def test_another_folder_under_the_same_id_is_not_signed_over(store: DirectoryStore, folder: Path, private: Path) -> None:
    sign(store, ID, folder, str(private))
    (folder / "inner" / "config.json").write_text("[]")
    with pytest.raises(IntegrityError):
        sign(store, ID, folder, str(private))


def test_a_key_that_is_not_trusted_counts_for_nothing(
    store: DirectoryStore, folder: Path, private: Path, tmp_path: Path
) -> None:
    sign(store, ID, folder, str(private))
    generate_key(tmp_path / "other.pem", tmp_path / "other.pub")
    with pytest.raises(NotFound, match="1 signatures by others"):
        verify_signature(store, ID, folder, trusted_keys([str(tmp_path / "other.pub")]))


def test_a_damaged_signature_does_not_verify(store: DirectoryStore, folder: Path, private: Path, tmp_path: Path) -> None:
    name = signature_key(ID, sign(store, ID, folder, str(private)))
    data = bytearray(store.read(name))
    data[len(data) // 2] ^= 1
    other = DirectoryStore(tmp_path / "other-store")
    other.create(name, bytes(data))
    with pytest.raises(IntegrityError):
        verify_signature(other, ID, folder, [public_key_of(str(private))])


def test_the_private_key_is_its_owners_alone(private: Path) -> None:
    assert private.stat().st_mode & 0o077 == 0


def test_a_key_is_never_overwritten(private: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyProblem, match="exists"):
        generate_key(private, tmp_path / "new.pub")


@pytest.mark.parametrize("content", ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(store: DirectoryStore, folder: Path, tmp_path: Path, content: str) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text(content)
    with pytest.raises(KeyProblem):
        sign(store, ID, folder, str(bad))
