"""Faults of the machine in the middle of a night: each is named with what to do, and the night then ends as ever."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest

from editors.errors import NotWritten, PatchError
from tasks.recheck.audit import audit
from tasks.settings import configure
from tasks.workspace import LineageBusy, lineage_lock
from tests.flows.conftest import FinishedNight, Home
from tests.flows.test_audit import flip
from tests.flows.test_nightly import Broken, identity
from warehouse.checkpoints.object_store import StoreUnavailable
from warehouse.errors import WarehouseError

pytestmark = pytest.mark.usefixtures("prefect_server", "without_page")
ROOT = Path(__file__).parents[2]


def around(place: str, patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Act before the call of a step of the flow."""
    import flows.nightly

    plain = getattr(flows.nightly, place)

    def step(*args: Any, **kwargs: Any) -> Any:
        act()
        return plain(*args, **kwargs)

    patch.setattr(flows.nightly, place, step)


def ended_well(home: Home, undisturbed: FinishedNight) -> None:
    assert home.run().verdict == "promote"
    assert identity(home) == identity(undisturbed.home)
    assert home.findings() == []
    assert audit(configure(home.config)).breaks == ()


# ---------------------------------------------------------------- no space


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """From the call on no file of this process grows past 4 KiB: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_night_without_space_says_where_and_goes_on_when_there_is(
    home: Home, undisturbed: FinishedNight, full: Callable[[], None]
) -> None:
    """One night that finds no space at every step that writes, run after run."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for step in ("validate", "edit", "evaluate", "promote"):
        reached = False

        def fill() -> None:
            nonlocal reached
            reached = True
            full()

        with pytest.MonkeyPatch.context() as patch:
            around(step, patch, fill)
            with pytest.raises((WarehouseError, NotWritten)) as caught:
                home.run()
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert reached and str(home.path) in str(caught.value), step
    ended_well(home, undisturbed)


# ---------------------------------------------------------------- the store goes away


class Bucket:
    """An S3 server whose objects outlive it: stopped and started on one port."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self._make, self.port = ThreadedMotoServer, 0
        # moto keeps objects for as long as the process lives.
        self.url = f"s3://faults/{uuid.uuid4().hex}"
        self.start()

    def start(self) -> None:
        self._server = self._make(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    import boto3

    server = Bucket()
    for name, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}", "AWS_ACCESS_KEY_ID": "test",
                        "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="faults")
    yield server
    server.stop()


def test_a_store_that_goes_away_stops_the_night_and_a_rerun_ends_it(
    home: Home, undisturbed: FinishedNight, bucket: Bucket
) -> None:
    remote = Home({**home.config, "store": bucket.url})
    with pytest.MonkeyPatch.context() as patch:
        around("promote", patch, bucket.stop)
        with pytest.raises(StoreUnavailable, match=bucket.url):
            remote.run()
    bucket.start()
    ended_well(remote, undisturbed)


def test_a_store_that_comes_back_in_time_is_not_noticed(home: Home, undisturbed: FinishedNight, bucket: Bucket) -> None:
    remote = Home({**home.config, "store": bucket.url})

    def away() -> None:
        bucket.stop()
        threading.Timer(2.0, bucket.start).start()

    with pytest.MonkeyPatch.context() as patch:
        around("promote", patch, away)
        ended_well(remote, undisturbed)


# ---------------------------------------------------------------- two at once


def test_two_nights_at_once_make_one_checkpoint_and_one_move() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "tests.flows.race"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "one home: both ended" in done.stdout and "one store: one move" in done.stdout


def test_a_second_night_that_waited_too_long_says_who_holds_the_lineage(home: Home) -> None:
    settings = configure(home.config)
    with (
        lineage_lock(settings),
        pytest.raises(LineageBusy, match=r"'main' is held by another run .*main\.lock.*wait for it or stop it"),
        lineage_lock(settings, wait_s=0.0),
    ):
        raise AssertionError("two runs hold one lineage")


# ---------------------------------------------------------------- the clock


#: Weeks before the night that ran just now, and no earlier than the records of the next one.
SET_BACK = datetime(2026, 10, 3, tzinfo=UTC)


class Earlier(datetime):
    """A clock that was set back by 25 years."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return SET_BACK.astimezone(tz)


def test_a_clock_set_back_changes_no_order(copied: Home, undisturbed: FinishedNight, monkeypatch: pytest.MonkeyPatch) -> None:
    home, first = copied, undisturbed.line
    for module in (
        "tasks.night.gate",
        "tasks.night.promote",
        "warehouse.lineages.audit",
        "warehouse.lineages.edits",
        "warehouse.lineages.chain",
        "warehouse.nights.runs",
    ):
        monkeypatch.setattr(f"{module}.datetime", Earlier)
    second = home.run("night-02")
    assert home.head().decision.decided_at == SET_BACK
    assert home.head().checkpoint.checkpoint_id == second.checkpoint_id
    assert home.head().checkpoint.parent == first.checkpoint_id
    assert home.rows("SELECT checkpoint_id FROM heads ORDER BY seq DESC LIMIT 1") == [{"checkpoint_id": second.checkpoint_id}]
    assert home.findings() == []
    assert audit(configure(home.config)).breaks == ()


# ---------------------------------------------------------------- damaged patches


@pytest.mark.parametrize("name", ["patch.safetensors", "patch.json"])
def test_a_damaged_copy_of_a_promoted_patch_is_fetched_again(name: str, copied: Home) -> None:
    (path,) = (copied.path / "patches").glob(f"*/{name}")
    sound = path.read_bytes()
    flip(path, random.Random(name))
    assert copied.run("night-02").verdict == "promote"
    assert path.read_bytes() == sound
    assert audit(configure(copied.config)).breaks == ()


def test_a_patch_that_is_damaged_everywhere_is_refused_by_name(copied: Home) -> None:
    (digest,) = (path.name for path in (copied.path / "patches").iterdir())
    for root in (copied.path / "patches", copied.path / "store" / "patches"):
        flip(root / digest / "patch.safetensors", random.Random(1))
    before = copied.listing()
    with pytest.raises(PatchError, match=rf"patches/{digest}/.* in file://.* is damaged.*`errata audit`"):
        copied.run("night-02")
    assert copied.listing() == before


@pytest.mark.parametrize("name", ["patch.safetensors", "patch.json"])
def test_a_damaged_patch_of_an_unfinished_night_is_made_again(name: str, home: Home, undisturbed: FinishedNight) -> None:
    def power_cut(*_: Any, **__: Any) -> None:
        raise Broken

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        patch.setattr("flows.nightly.evaluate", power_cut)
        home.run()
    (path,) = (home.path / "patches").glob(f"*/{name}")
    flip(path, random.Random(name))
    ended_well(home, undisturbed)
