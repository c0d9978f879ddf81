"""Damage of every kind in every place is found; and, one by one, the places where damage once was not."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.recheck.audit import audit
from tests.flows.conftest import bare
from tests.flows.tamper import Target, small_homes, tamper
from warehouse.checkpoints.manifests import pointer_of
from warehouse.checkpoints.opening import open_store
from warehouse.digests import canonical_json
from warehouse.lineages.audit import chain_id, read_mirrored


@pytest.fixture(scope="module")
def homes(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    with pytest.MonkeyPatch.context() as patched:
        bare(patched)
        return {target.name: target for target in small_homes(world, tmp_path_factory.mktemp("tamper"))}


def test_every_one_of_many_random_damages_is_found(homes: dict[str, Target]) -> None:
    count = int(os.environ.get("ERRATA_TAMPERS", "40"))
    tally = tamper(list(homes.values()), count, seed=1)
    assert tally.done.total() == count
    assert tally.missed == []


def test_what_is_put_back_is_sound_again(homes: dict[str, Target]) -> None:
    tamper(list(homes.values()), 2, seed=2)
    assert [target.breaks() for target in homes.values()] == [[], []]


# ---------------------------------------------------------------- what was not found at first


@pytest.fixture
def store(homes: dict[str, Target], tmp_path: Path) -> Path:
    """The store of a copy of the signed home."""
    shutil.copytree(homes["memit"].settings.home, tmp_path / "home")
    return tmp_path / "home" / "store"


@pytest.fixture
def breaks(homes: dict[str, Target], store: Path) -> Callable[[], list[str]]:
    settings = homes["memit"].settings.model_copy(update={"home": store.parent})
    return lambda: [f"{b.what}: {b.found}" for b in audit(settings).breaks]


def first(folder: Path, pattern: str) -> Path:
    return min(folder.rglob(pattern))


def test_a_pointer_with_another_time_is_found(store: Path, breaks: Callable[[], list[str]]) -> None:
    there = pointer_of(open_store(str(store)), "production")
    assert there is not None
    later = there[0].model_copy(update={"moved_at": there[0].moved_at + timedelta(days=1)})
    (store / "channels" / "production.json").write_bytes(canonical_json(later))
    assert breaks() == ["channel production: its pointer is not the one that the trail vouches for"]


def test_a_channel_that_the_trail_never_moved_is_found(store: Path, breaks: Callable[[], list[str]]) -> None:
    there = pointer_of(open_store(str(store)), "production")
    assert there is not None
    (store / "channels" / "staging.json").write_bytes(canonical_json(there[0].model_copy(update={"channel": "staging"})))
    assert breaks() == ["channels/staging.json: the trail never moved a channel of this name"]


def test_a_space_in_a_signature_file_is_found(store: Path, breaks: Callable[[], list[str]]) -> None:
    """The signature still verifies: its library reads JSON, to which the space means nothing."""
    path = first(store / "signatures", "*.json")
    path.write_bytes(path.read_bytes() + b" ")
    (found,) = breaks()
    assert "signatures/" in found and "the trail says" in found


@pytest.mark.parametrize("name", ["manifest.json", "report.json", "decision.json", "reasons.json", "patch.safetensors"])
def test_damaged_evidence_of_a_rejection_is_found(store: Path, breaks: Callable[[], list[str]], name: str) -> None:
    path, chance = first(store / "rejected", name), random.Random(name)
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1
    path.write_bytes(data)
    assert any(name in found for found in breaks())


@pytest.mark.parametrize("place", ["patches", "reports", "decisions", "rejected", "signatures", "elsewhere"])
def test_an_object_that_nothing_vouches_for_is_found(store: Path, breaks: Callable[[], list[str]], place: str) -> None:
    path = store / place / "ab" / "patch.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{}")
    assert breaks() == [f"{place}/ab/patch.json: the audit trail knows of no promotion or rejection that it belongs to"]


def test_a_broken_trail_of_another_warehouse_on_the_store_is_found(
    homes: dict[str, Target], store: Path, breaks: Callable[[], list[str]]
) -> None:  # fmt: skip
    other = homes["ledger"].settings.home / "store"
    (name,) = (folder.name for folder in (other / "audit").iterdir())
    shutil.copytree(other / "audit" / name, store / "audit" / name)
    assert breaks() == []
    assert chain_id(read_mirrored(open_store(str(store)), name)) == name
    sorted((store / "audit" / name).iterdir())[1].unlink()
    assert any("is missing" in found for found in breaks())


def test_weights_are_made_again_from_the_patches_of_the_store_and_not_from_this_machine(
    store: Path, breaks: Callable[[], list[str]]
) -> None:  # fmt: skip
    """A machine's own copy of a patch may be gone or bad: it is no witness, and no reason for an audit to fail."""
    for path in (store.parent / "patches").rglob("patch.safetensors"):
        path.write_bytes(b"bad")
    assert breaks() == []


def test_a_pulled_folder_with_a_file_more_is_not_taken_for_the_checkpoint(homes: dict[str, Target]) -> None:
    extra = homes["ledger"].pulled / "extra.txt"
    extra.write_text("x", encoding="utf-8")
    try:
        (found,) = homes["ledger"].breaks()
    finally:
        extra.unlink()
    assert "is not checkpoint" in found
