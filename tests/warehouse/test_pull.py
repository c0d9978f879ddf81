"""Pull: what is handed out is what was published, whole and verified, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.warehouse.small_checkpoint import NOON
from warehouse.checkpoints.directory import DirectoryStore
from warehouse.checkpoints.manifests import checkpoint_files, file_digests
from warehouse.checkpoints.promotion import publish
from warehouse.checkpoints.pull import pull
from warehouse.checkpoints.rejection import reject
from warehouse.digests import canonical_json, sha256_bytes
from warehouse.errors import Conflict, IntegrityError, NotFound, WarehouseError
from warehouse.limits import Limits
from warehouse.records import Manifest


@pytest.fixture
def published(store: DirectoryStore, make: Any) -> Manifest:
    manifest, files = make("c1")
    publish(store, manifest, files, channel="production", expected_parent=None, moved_at=NOON)
    return manifest


@pytest.mark.parametrize("name", ["production", "c1"])
def test_a_pulled_folder_is_the_published_one(store: DirectoryStore, published: Manifest, tmp_path: Path, name: str) -> None:
    assert pull(store, name, tmp_path / "deep" / "out") == published
    out = tmp_path / "deep" / "out"
    assert file_digests(checkpoint_files("c1", out)) == {
        key: digest for key, digest in published.files.items() if key.startswith("checkpoints/")
    }
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_pulling_onto_the_same_content_or_an_empty_folder_is_fine(
    store: DirectoryStore, published: Manifest, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    pull(store, "production", out)
    assert pull(store, "production", out) == published


@pytest.mark.parametrize("change", ["another file", "other content", "a file", "a link"])
def test_pulling_onto_something_else_is_refused(
    store: DirectoryStore, published: Manifest, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "out"
    if change in ("another file", "other content"):
        pull(store, "production", out)
        (out / ("note.txt" if change == "another file" else "config.json")).write_text("mine")
    elif change == "a file":
        out.write_text("mine")
    else:
        (tmp_path / "elsewhere").mkdir()
        out.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict, match="give an empty folder"):
        pull(store, "production", out)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_object_is_not_handed_out(store: DirectoryStore, published: Manifest, tmp_path: Path, damage: str) -> None:
    path = store.root / "checkpoints/c1/model.safetensors"
    if damage == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        path.unlink()
    with pytest.raises(IntegrityError, match=r"checkpoints/c1/model\.safetensors"):
        pull(store, "production", tmp_path / "pulled" / "out")
    assert list((tmp_path / "pulled").iterdir()) == []


@pytest.mark.parametrize(
    "key", ["checkpoints/c1/../../../evil", "/etc/evil", "checkpoints/c1/a\\..\\evil", "checkpoints/c2/config.json"]
)
def test_a_manifest_that_names_a_path_elsewhere_is_not_followed(
    store: DirectoryStore, published: Manifest, tmp_path: Path, key: str
) -> None:
    evil = published.model_copy(update={"files": {**published.files, key: sha256_bytes(b"evil")}})
    (store.root / "manifests/c1.json").write_bytes(canonical_json(evil))
    with pytest.raises(IntegrityError, match="not to be trusted"):
        pull(store, "c1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_larger_than_the_limit_is_not_pulled(store: DirectoryStore, published: Manifest, tmp_path: Path) -> None:
    size = sum((store.root / key).stat().st_size for key in published.files if key.startswith("checkpoints/"))
    with pytest.raises(WarehouseError, match="larger than the limit"):
        pull(store, "production", tmp_path / "pulled" / "out", limits=Limits(total_bytes=size - 1))
    assert list((tmp_path / "pulled").iterdir()) == []
    pull(store, "production", tmp_path / "pulled" / "out", limits=Limits(total_bytes=size))


def test_an_unknown_name_is_not_found(store: DirectoryStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no checkpoint productoin"):
        pull(store, "productoin", tmp_path / "out")


def test_a_rejected_checkpoint_cannot_be_pulled_and_says_where_the_reasons_are(
    store: DirectoryStore, make: Any, tmp_path: Path
) -> None:
    reject(store, *make("c1", verdict="reject"), ["why"])
    with pytest.raises(NotFound, match=r"rejected/c1/reasons\.json"):
        pull(store, "c1", tmp_path / "out")
