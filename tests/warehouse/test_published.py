"""A published copy: read while the warehouse is written, replaced at once or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from warehouse.dashboard.published import PublishedCopy, publish
from warehouse.database.connection import Warehouse, WarehouseBusy
from warehouse.errors import NotFound, WarehouseError

KEEP_OPEN = """
import sys
from warehouse.database.connection import Warehouse
with Warehouse.open(sys.argv[1]) as wh:
    wh.append("aliases", [{"entity_id": "Q9", "alias": "written while the copy was read"}])
    print("open", flush=True)
    sys.stdin.readline()
"""


def write(path: Path, alias: str) -> None:
    with Warehouse.open(path) as wh:
        wh.append("aliases", [{"entity_id": "Q1", "alias": alias}])


def aliases(wh: Warehouse) -> list[str]:
    return [row["alias"] for row in wh.rows("SELECT alias FROM aliases ORDER BY alias")]


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    source = tmp_path / "warehouse.duckdb"
    write(source, "one")
    return source, tmp_path / "published" / "warehouse.duckdb"


def test_a_copy_has_what_was_committed(places: tuple[Path, Path]) -> None:
    publish(*places)
    with Warehouse.open(places[1], read_only=True) as wh:
        assert aliases(wh) == ["one"]


def test_a_newer_copy_is_taken_up_and_the_older_one_is_read_until_then(places: tuple[Path, Path]) -> None:
    publish(*places)
    copy = PublishedCopy(places[1])
    with copy.reading() as wh:
        write(places[0], "two")
        publish(*places)
        assert aliases(wh) == ["one"]
    with copy.reading() as wh:
        assert aliases(wh) == ["one", "two"]
    copy.close()


def test_who_reads_the_copy_keeps_nobody_from_writing(places: tuple[Path, Path]) -> None:
    publish(*places)
    copy = PublishedCopy(places[1])
    with copy.reading() as wh:
        writer = subprocess.Popen(
            [sys.executable, "-c", KEEP_OPEN, str(places[0])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        # And who writes keeps nobody from reading.
        assert aliases(wh) == ["one"]
        with pytest.raises(WarehouseBusy):
            publish(*places, wait_s=0.1)
        assert writer.communicate("\n", timeout=60)[0] == "" and writer.returncode == 0
    copy.close()
    publish(*places)
    with Warehouse.open(places[1], read_only=True) as wh:
        assert aliases(wh) == ["one", "written while the copy was read"]


def test_publishing_leaves_the_lock_on_the_warehouse_alone(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """To open and close the file in the process that has it open would drop DuckDB's lock (fcntl)."""
    code = "import sys, duckdb; duckdb.connect(sys.argv[1]).close()"
    said: list[str] = []
    run = subprocess.run

    def copy_and_try(*command: Any, **more: Any) -> Any:
        done = run(*command, **more)
        said.append(run([sys.executable, "-c", code, str(places[0])], capture_output=True, text=True).stderr)
        return done

    monkeypatch.setattr("warehouse.dashboard.published.subprocess.run", copy_and_try)
    publish(*places)
    assert len(said) == 1 and "lock" in said[0]


def test_a_copy_that_fails_leaves_the_one_before(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    publish(*places)
    write(places[0], "two")

    def cut_off(command: list[str], **_: object) -> None:
        Path(command[-1]).write_bytes(places[0].read_bytes()[:5000])
        raise subprocess.CalledProcessError(1, command, stderr="No space left on device")

    monkeypatch.setattr("warehouse.dashboard.published.subprocess.run", cut_off)
    with pytest.raises(WarehouseError, match="No space left on device"):
        publish(*places)
    assert [path.name for path in places[1].parent.iterdir()] == ["warehouse.duckdb"]
    with Warehouse.open(places[1], read_only=True) as wh:
        assert aliases(wh) == ["one"]


def test_what_a_killed_publisher_left_is_swept(places: tuple[Path, Path]) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    places[1].parent.mkdir()
    left = places[1].with_name(f"warehouse.duckdb.{dead.pid}-{dead.pid}.new")
    left.write_bytes(b"half a copy")
    publish(*places)
    assert [path.name for path in places[1].parent.iterdir()] == ["warehouse.duckdb"]


def test_without_a_copy_it_is_said_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="errata warehouse publish"), PublishedCopy(tmp_path / "none").reading():
        pass
    with pytest.raises(NotFound, match="first nightly run"):
        publish(tmp_path / "none", tmp_path / "copy")


def test_a_copy_that_has_no_place_is_an_error_of_the_warehouse(places: tuple[Path, Path]) -> None:
    places[1].parent.write_text("a file where the folder should be")
    with pytest.raises(WarehouseError, match="could not be copied"):
        publish(*places)
