"""A night begins by settling what the store says and removing what a killed process left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.night.reconcile import reconcile, sweep
from tasks.recheck.audit import audit
from tasks.settings import configure
from tests.flows.conftest import FinishedNight, Home
from tests.flows.test_nightly import Broken, identity
from warehouse.errors import LineageMoved

pytestmark = pytest.mark.usefixtures("bare_nights")


def power_cut(*_: Any, **__: Any) -> None:
    raise Broken


def broken_at(home: Home, place: str, night: str = "night-01") -> None:
    """A night that dies there."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        patch.setattr(place, power_cut)
        home.run(night)


def sound(home: Home) -> None:
    assert home.findings() == []
    assert audit(configure(home.config)).breaks == ()


def test_a_night_killed_after_the_move_ends_without_its_folder(home: Home, undisturbed: FinishedNight) -> None:
    """The folder is scratch: without it the night edited its own checkpoint again, and nothing could settle it."""
    broken_at(home, "tasks.night.settle.settle_edits")
    shutil.rmtree(home.path / "work")
    line = home.run()
    assert (line.verdict, line.edited) == ("promote", undisturbed.line.edited)
    assert identity(home) == identity(undisturbed.home)
    sound(home)


def test_the_next_night_settles_one_that_was_killed_after_the_move(home: Home) -> None:
    """It used to edit what it found, move the channel, and then fail for good: its parent was in no lineage."""
    broken_at(home, "tasks.night.settle.settle_edits")
    assert home.run("night-02").verdict == "promote"
    assert home.run("night-01").verdict == "promote"
    assert home.head().night == "night-02"
    heads = home.rows("SELECT night FROM heads JOIN checkpoints USING (checkpoint_id) ORDER BY seq")
    assert [row["night"] for row in heads] == ["", "night-01", "night-02"]
    sound(home)


def test_a_rollback_killed_after_the_move_is_followed(copied: Home, undisturbed: FinishedNight) -> None:
    home, first = copied, undisturbed.line.checkpoint_id
    home.run("night-02")
    from tasks.takeback.rollback import restore

    assert first is not None
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        patch.setattr("tasks.takeback.rollback.move_head", power_cut)
        restore(configure(home.config), first, "to test")
    reconcile.fn(configure(home.config))
    assert home.rows("SELECT checkpoint_id FROM heads ORDER BY seq DESC LIMIT 1") == [{"checkpoint_id": first}]
    before = home.rows("SELECT * FROM audit")
    reconcile.fn(configure(home.config))
    assert home.rows("SELECT * FROM audit") == before
    sound(home)


def test_a_warehouse_that_does_not_know_what_is_served_edits_nothing(home: Home, undisturbed: FinishedNight) -> None:
    """A new machine on an old store used to move the channel first and find out afterwards."""
    other = Home({**home.config, "store": str(undisturbed.home.path / "store")})
    before = other.listing()
    with pytest.raises(LineageMoved, match=r"of night night-01, which another warehouse made.*on_lineage_moved: rebase"):
        other.run("night-02")
    assert other.listing() == before


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(home: Home, tmp_path: Path) -> None:
    settings = configure(home.config)
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout.strip()
    patches, tmp, night = home.path / "patches" / "p", home.path / "store" / ".store" / "tmp", home.path / "work/main/night-01"
    for folder in (patches, tmp, night):
        folder.mkdir(parents=True)
    gone = (patches / f"patch.json.{dead}.new", tmp / "0123", night / "edited.new")
    stays = (patches / f"patch.json.{os.getppid()}.new", patches / "patch.json")
    for path in (*gone, *stays):
        path.write_bytes(b"half")
    unfinished = night / f"plain.{dead}-1.new"
    (unfinished / "more").mkdir(parents=True)
    assert sweep(settings, home.store, "night-01") == len(gone) + 1
    assert not unfinished.exists()
    assert [path.exists() for path in (*gone, *stays)] == [False] * 3 + [True] * 2


def test_a_file_that_a_living_process_writes_into_the_store_is_not_swept(home: Home, tmp_path: Path) -> None:
    source = tmp_path / "slow.bin"
    source.write_bytes(b"x" * 1000)
    with pytest.MonkeyPatch.context() as patch:
        from warehouse.checkpoints import directory as artifacts_directory

        plain = artifacts_directory.sha256_file
        swept: list[int] = []

        def between(path: Path) -> str:
            swept.append(home.store.sweep())
            return plain(path)

        patch.setattr(artifacts_directory, "sha256_file", between)
        home.store.create("checkpoints/a/model", source)
    assert swept[0] == 0
    assert home.store.read("checkpoints/a/model") == source.read_bytes()
