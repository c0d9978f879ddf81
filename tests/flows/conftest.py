"""One Prefect server for all flow tests, one small world, and one night that nothing disturbed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect import Flow, Task

from tests.flows.nights import before_nights, config_of, write_before_nights, write_world
from warehouse.checkpoints.manifests import read_manifest, read_pointer
from warehouse.checkpoints.object_store import ObjectStore
from warehouse.checkpoints.opening import open_store
from warehouse.records import Manifest, NightRun


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The temporary server of Prefect's own harness; flows of a test run in the test's process."""
    os.environ.setdefault("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
    os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings over a tiny model and two nights; read-only, shared by every home."""
    found = write_world(tmp_path_factory.mktemp("world"))
    write_before_nights(found)
    return found


def begun(world: dict[str, Any], folder: Path, **changes: Any) -> Home:
    """A home that begins as `before_nights` says; `undisturbed`, with which such nights are compared, begins with none."""
    return Home(before_nights(world, folder, **changes))


@dataclass(frozen=True)
class Home:
    """One ERRATA_HOME and what a test asks of it."""

    config: dict[str, Any]

    @property
    def path(self) -> Path:
        return Path(self.config["home"])

    @property
    def store(self) -> ObjectStore:
        return open_store(self.config.get("store") or str(self.path / "store"))

    def run(self, night: str = "night-01", **more: Any) -> NightRun:
        from flows.nightly import nightly_refresh

        return nightly_refresh(night=night, config=self.config, **more)

    def head(self, channel: str = "production") -> Manifest:
        found = read_pointer(self.store, channel)
        assert found is not None, f"channel {channel} was never moved"
        return read_manifest(self.store, found[0].checkpoint_id)

    def listing(self) -> list[str]:
        """Every key of the store with its content's digest; not the audit trail, whose entries bear the time."""
        return [f"{key} {self.store.digest(key)}" for key in sorted(self.store.list()) if not key.startswith("audit/")]

    def rows(self, sql: str) -> list[dict[str, Any]]:
        from warehouse.database.connection import Warehouse

        with Warehouse.open(self.path / "warehouse.duckdb") as wh:
            return wh.rows(sql)

    def findings(self) -> list[Any]:
        from warehouse.database.connection import Warehouse
        from warehouse.upkeep.integrity import check

        with Warehouse.open(self.path / "warehouse.duckdb") as wh:
            return check(wh)


@pytest.fixture
def home(world: dict[str, Any], tmp_path: Path) -> Home:
    return begun(world, tmp_path / "home")


#: What Great Expectations found in the frames that it has seen in this process.
_FOUND: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def each_frame_once() -> Iterator[None]:
    """What Great Expectations finds in a frame of requests is found once: most nights here have the same few.

    Not for the length of a session: a worker goes on to the tests of the suite itself.
    """
    from checks.judging import expectations

    real, known = expectations._validated, _FOUND

    def validated(frame: pd.DataFrame) -> list[dict[str, Any]]:
        key = f"{frame.to_json(orient='split')}{list(frame.dtypes)}"
        if key not in known:
            known[key] = json.dumps(real(frame))
        return json.loads(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expectations, "_validated", validated)
        yield


def no_page(patch: pytest.MonkeyPatch) -> None:
    """No Evidently page: it takes most of a tiny night's seconds, and the undisturbed night makes a real one."""

    def write(folder: Path, *_: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder / "evidently.html"

    patch.setattr("tasks.reporting.publish_report.write_evidently", write)


@pytest.fixture
def without_page(monkeypatch: pytest.MonkeyPatch) -> None:
    no_page(monkeypatch)


def bare(patch: pytest.MonkeyPatch) -> None:
    """Flows and steps as plain functions and no page: what Prefect keeps decides nothing, and takes a quarter of a tiny night.

    `test_nightly`, `test_faults` and `test_stopping` have their nights under Prefect.
    """
    from prefect.server.api.server import SubprocessASGIServer

    from flows import nightly, revert
    from tasks.night import close

    # Whatever calls a step as Prefect's task: left as one, it starts a server of its own in the middle of a night.
    for module in (nightly, revert, close):
        for name, value in list(vars(module).items()):
            if isinstance(value, (Flow, Task)):
                patch.setattr(module, name, value.fn)

    def start(*_: Any, **__: Any) -> None:
        pytest.fail("a step of a bare night is still a task of Prefect")

    patch.setattr(SubprocessASGIServer, "start", start)
    no_page(patch)


@pytest.fixture
def bare_nights(monkeypatch: pytest.MonkeyPatch) -> None:
    bare(monkeypatch)


def revert_edits(target: str, reason: str, **more: Any) -> NightRun:
    """The flow, as it is now: under Prefect or `bare`."""
    from flows import revert

    return revert.revert_edits(target, reason, **more)


@dataclass(frozen=True)
class FinishedNight:
    home: Home
    line: NightRun


@pytest.fixture(scope="session")
def undisturbed(prefect_server: None, world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> FinishedNight:
    """Night 1, run to its end in one go with everything real."""
    found = Home(config_of(world, tmp_path_factory.mktemp("undisturbed") / "home"))
    return FinishedNight(found, found.run())


@pytest.fixture
def copied(undisturbed: FinishedNight, tmp_path: Path) -> Home:
    """A copy of the home of that night, for a test to damage or to go on with."""
    shutil.copytree(undisturbed.home.path, tmp_path / "copied")
    return Home({**undisturbed.home.config, "home": str(tmp_path / "copied")})
