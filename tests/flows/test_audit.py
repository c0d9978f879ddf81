"""The audit of a real night: sound as it is, and every kind of tampering found."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.audit import AuditReport, audit
from tasks.notes import export_warehouse
from tasks.settings import configure
from tests.flows.conftest import FinishedNight, Home


def audited(home: Home) -> AuditReport:
    return audit(configure(home.config))


@pytest.fixture
def copied(undisturbed: FinishedNight, tmp_path: Path) -> Home:
    """A copy of the finished home that a test may damage."""
    target = tmp_path / "home"
    shutil.copytree(undisturbed.home.path, target)
    return Home({**undisturbed.home.config, "home": str(target)})


def files_of(home: Home) -> list[Path]:
    """Every file of the store that anything depends on."""
    root = home.path / "store"
    return sorted(p for p in root.rglob("*") if p.is_file() and not p.relative_to(root).parts[0].startswith("."))


def test_an_undisturbed_night_holds(copied: Home) -> None:
    found = audited(copied)
    assert found.breaks == ()
    assert found.checkpoints == 1 and found.objects > 5


def test_the_trail_has_what_happened_in_order(copied: Home) -> None:
    kinds = [row["kind"] for row in copied.rows("SELECT kind FROM audit ORDER BY seq")]
    assert [k for k in kinds if k != "verdicts"] == ["policy", "decision", "edits", "promotion"]


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))


def cut(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    at = chance.randrange(len(data))
    path.write_bytes(data[:at] + data[at + 1 :])


def insert(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    at = chance.randrange(len(data) + 1)
    path.write_bytes(data[:at] + bytes([chance.randrange(256)]) + data[at:])


def delete(path: Path, _chance: random.Random) -> None:
    path.unlink()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("damage", [flip, cut, insert, delete])
def test_a_damaged_object_of_the_store_is_found(copied: Home, damage: Callable[[Path, random.Random], None], seed: int) -> None:
    chance = random.Random(f"{damage.__name__}-{seed}")
    path = chance.choice(files_of(copied))
    damage(path, chance)
    assert audited(copied).breaks, path


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE verdicts SET sentence = sentence || ' ' WHERE record_id = (SELECT min(record_id) FROM verdicts)",
        "DELETE FROM edits WHERE edit_id = (SELECT min(edit_id) FROM edits)",
        "UPDATE edit_requests SET other_relations = ['P1'] WHERE request_id = (SELECT min(request_id) FROM edit_requests)",
        "UPDATE edits SET patch_digest = 'x'",
        "UPDATE scores SET value = value + 1e-9 WHERE metric = 'SR'",
        "UPDATE decisions SET verdict = 'reject'",
        "UPDATE audit SET reason = 'x' WHERE seq = 1",
        "DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)",
    ],
)
def test_a_changed_row_of_the_warehouse_is_found(copied: Home, sql: str) -> None:
    from warehouse.store import Warehouse

    with Warehouse.open(copied.path / "warehouse.duckdb") as wh:
        assert wh.execute(sql) > 0
    assert audited(copied).breaks


@pytest.mark.parametrize("damage", [flip, cut, insert, delete])
def test_a_damaged_export_is_found(copied: Home, tmp_path: Path, damage: Callable[[Path, random.Random], None]) -> None:
    settings = configure(copied.config)
    export_warehouse(settings, tmp_path / "export")
    assert audit(settings, exported=tmp_path / "export").breaks == ()
    chance = random.Random(damage.__name__)
    full = [p for p in sorted((tmp_path / "export").iterdir()) if p.stat().st_size]
    damage(chance.choice(full), chance)
    assert audit(settings, exported=tmp_path / "export").breaks


def test_an_object_that_nobody_promoted_is_found(copied: Home) -> None:
    copied.store.create("manifests/" + "a" * 64 + ".json", b"{}")
    assert [b.what for b in audited(copied).breaks] == ["manifests/" + "a" * 64 + ".json"]
