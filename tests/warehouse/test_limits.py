"""What came from elsewhere is looked at before it is opened: links, pickles, code, sizes, each refused by name."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.warehouse.small_checkpoint import NOON, make_manifest, safetensors_text
from warehouse.checkpoints.directory import DirectoryStore
from warehouse.checkpoints.manifests import checkpoint_files, file_digests
from warehouse.checkpoints.object_store import validate_key
from warehouse.checkpoints.promotion import publish
from warehouse.checkpoints.pull import pull
from warehouse.digests import canonical_json, sha256_bytes
from warehouse.errors import IntegrityError
from warehouse.limits import CODE, PICKLES, Limits, check_folder
from warehouse.records import Manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A harmless checkpoint of two files."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}", encoding="utf-8")
    (made / "model.safetensors").write_text(safetensors_text("nothing"), encoding="utf-8")
    return made


def with_header(path: Path, header: bytes, body: bytes = b"", length: int | None = None) -> None:
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + body)


def test_a_harmless_folder_passes(folder: Path) -> None:
    check_folder(folder)
    (folder / "deep" / "er").mkdir(parents=True)
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    with_header(folder / "deep" / "er" / "t.safetensors", json.dumps({"t": entry}).encode(), b"\0" * 8)
    check_folder(folder)


# ---------------------------------------------------------------- kinds of file


@pytest.mark.parametrize("target", ["/etc/passwd", "config.json", "nowhere"])
def test_a_link_in_a_folder_is_refused_wherever_it_leads(folder: Path, target: str) -> None:
    (folder / "tokenizer.json").symlink_to(target)
    with pytest.raises(IntegrityError, match=rf"tokenizer\.json is a symbolic link to {target}"):
        check_folder(folder)


def test_a_linked_folder_is_refused_inside_and_as_itself(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(IntegrityError, match="link is a symbolic link"):
        check_folder(tmp_path / "link")
    (folder / "sub").symlink_to(tmp_path)
    with pytest.raises(IntegrityError, match="sub is a symbolic link"):
        check_folder(folder)


def test_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "vocab.json")
    with pytest.raises(IntegrityError, match=r"vocab\.json is neither a file nor a folder"):
        check_folder(folder)


@pytest.mark.parametrize("ending", [*sorted(PICKLES), ".BIN"])
def test_a_pickle_is_refused_by_its_name(folder: Path, ending: str) -> None:
    (folder / f"pytorch_model{ending}").write_bytes(pickle.dumps({}))
    with pytest.raises(IntegrityError, match=rf"pytorch_model{ending}' is a pickle"):
        check_folder(folder, allow_code=True)


@pytest.mark.parametrize("ending", sorted(CODE))
def test_code_is_refused_unless_it_is_trusted(folder: Path, ending: str) -> None:
    (folder / f"modeling_x{ending}").write_text("", encoding="utf-8")
    with pytest.raises(IntegrityError, match="trust_remote_code"):
        check_folder(folder)
    check_folder(folder, allow_code=True)


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        (Limits(files=1), r"model has 2 files, 1 are allowed; raise limits\.files"),
        (Limits(json_bytes=1), r"config\.json has 2 bytes, 1 are allowed; raise limits\.json_bytes"),
        (Limits(total_bytes=9), r"model has \d+ bytes, 9 are allowed; raise limits\.total_bytes"),
        (Limits(header_bytes=5), r"model\.safetensors has \d+ bytes of header, 5 are allowed; raise limits\.header_bytes"),
    ],
)
def test_each_limit_names_the_file_what_was_found_and_what_is_allowed(folder: Path, limits: Limits, found: str) -> None:
    with pytest.raises(IntegrityError, match=found):
        check_folder(folder, limits)


@pytest.mark.parametrize(
    ("header", "body", "length", "found"),
    [
        (b"{}", b"", 1 << 62, r"declares a header of 4611686018427387904 bytes and has 2"),
        (b'{"t": {"data_offsets": [0, 99999999999]}}', b"", None, "declares 99999999999 bytes of tensors and has 0"),
        (b"{}", b"hidden", None, "declares 0 bytes of tensors and has 6"),
        (b"[" * 5000, b"", None, "no safetensors header"),
        (b"[]", b"", None, "no safetensors header"),
        (b'{"t": {"data_offsets": "ab"}}', b"", None, "no safetensors header"),
        (b"\xff\xfe", b"", None, "no safetensors header"),
    ],
    ids=["length", "offsets", "bytes beyond", "nested", "a list", "text for numbers", "no text"],
)
def test_a_header_that_lies_is_found_out_before_memory_is_reserved(
    folder: Path, header: bytes, body: bytes, length: int | None, found: str
) -> None:
    with_header(folder / "model.safetensors", header, body, length)
    with pytest.raises(IntegrityError, match=found):
        check_folder(folder)


def test_a_file_too_short_for_a_header_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(IntegrityError, match="declares a header"):
        check_folder(folder)


# ---------------------------------------------------------------- keys, manifests, the store


@pytest.mark.parametrize(
    "key",
    ["../a", "a/../b", "/a", "a//b", "a/./b", "a\0b", "a\\b", "a\\..\\b", "..", "", "a/", "C:\\a", "a\nb", ".store/tmp/a"],
)
def test_a_key_that_leads_elsewhere_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="is refused"):
        validate_key(key)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def published(store: DirectoryStore, folder: Path) -> Manifest:
    files = checkpoint_files("c1", folder)
    manifest = make_manifest("c1", file_digests(files))
    publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON)
    return manifest


def rewritten(store: DirectoryStore, manifest: Manifest, name: str, data: bytes) -> None:
    """Somebody with the store's rights adds a file to a checkpoint and to its manifest."""
    key = f"checkpoints/c1/{name}"
    evil = manifest.model_copy(update={"files": {**manifest.files, key: sha256_bytes(data)}})
    store.create(key, data)
    (store.root / "manifests/c1.json").write_bytes(canonical_json(evil))


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("pytorch_model.bin", b"x", "is a pickle"),
        ("deep/optimizer.pt", b"x", "is a pickle"),
        ("modeling_evil.py", b"x", "is code"),
        ("more.safetensors", b"\xff" * 16, "declares a header"),
    ],
)
def test_what_may_run_or_lie_is_not_pulled(
    store: DirectoryStore, published: Manifest, tmp_path: Path, name: str, data: bytes, found: str
) -> None:
    rewritten(store, published, name, data)
    with pytest.raises(IntegrityError, match=found):
        pull(store, "c1", tmp_path / "pulled" / "out")
    assert not (tmp_path / "pulled").exists() or list((tmp_path / "pulled").iterdir()) == []


def test_code_is_pulled_where_it_is_trusted(store: DirectoryStore, published: Manifest, tmp_path: Path) -> None:
    rewritten(store, published, "modeling_own.py", b"x")
    pull(store, "c1", tmp_path / "out", allow_code=True)
    assert (tmp_path / "out" / "modeling_own.py").exists()


def test_a_manifest_of_too_many_files_is_refused_before_any_is_fetched(
    store: DirectoryStore, published: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError, match=r"names 2 files, 1 are allowed \(limits\.files\)"):
        pull(store, "c1", tmp_path / "pulled" / "out", limits=Limits(files=1))
    assert not (tmp_path / "pulled").exists()


def test_a_pickle_cannot_be_published(store: DirectoryStore, folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    files = checkpoint_files("c2", folder)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin' is a pickle"):
        publish(store, make_manifest("c2", file_digests(files)), files, channel="p", expected_parent=None, moved_at=NOON)
    assert list(store.list()) == []


def test_a_link_inside_the_store_is_no_object(store: DirectoryStore, published: Manifest, tmp_path: Path) -> None:
    path = store.root / "checkpoints/c1/config.json"
    path.rename(path.with_name("other.json"))
    path.symlink_to("other.json")
    attempts: list[Any] = [lambda: store.read("checkpoints/c1/config.json"), lambda: list(store.list()),
                           lambda: pull(store, "production", tmp_path / "pulled" / "out")]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(IntegrityError, match="is a symbolic link to"):
            attempt()
