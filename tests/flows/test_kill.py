"""Nights killed at every named step and at random instants end as the undisturbed one; the harness sees what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.conftest import Home
from tests.flows.kill import Wrong, served, state_of
from tests.flows.kill_steps import STEPS
from warehouse.errors import IntegrityError

ROOT = Path(__file__).parents[2]
#: `make kill` sets 200.
KILLS = os.environ.get("ERRATA_KILLS", "2")


@pytest.mark.timeout(3600)
def test_a_killed_night_ends_as_the_undisturbed_one() -> None:
    # A process of its own: it forks, which a process with Prefect's threads must not.
    command = [sys.executable, "-m", "tests.flows.kill", "--chain", "--night", "night-01", "--kills", KILLS]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{KILLS} kills at random instants" in done.stdout
    assert f"{len(STEPS)} at named steps, 0 wrong" in done.stdout


def test_the_harness_refuses_production_of_which_an_object_is_missing(copied: Home) -> None:
    assert served(copied) == copied.head().checkpoint.checkpoint_id
    key = next(key for key in copied.head().files if key.endswith("model.safetensors"))
    (copied.path / "store" / key).unlink()
    with pytest.raises(IntegrityError, match="found nothing"):
        served(copied)


@pytest.mark.parametrize("table", ["updates", "edits", "verdicts"])
def test_the_harness_sees_a_lost_row(copied: Home, table: str) -> None:
    from warehouse.database.connection import Warehouse

    state_of(copied)
    with Warehouse.open(copied.path / "warehouse.duckdb") as wh:
        assert wh.execute(f"DELETE FROM {table} WHERE rowid = (SELECT min(rowid) FROM {table})") == 1
    with pytest.raises(Wrong):
        state_of(copied)
