"""A night tells of itself where no Prefect server outlives it: what it decided, and that it broke off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import begun
from tests.receiver import Receiver, receiving

SECRET = "a secret of the tests"
pytestmark = pytest.mark.usefixtures("prefect_server", "without_page")


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Of a machine on which nights begin by `errata refresh` alone."""
    # The harness of the tests is a server that outlives a night; a user's has none.
    monkeypatch.setattr("tasks.alerts.tell.has_server", lambda: False)
    monkeypatch.setenv("ERRATA_ALERTS_SECRET", SECRET)
    with receiving(SECRET) as found:
        yield found


def test_a_night_tells_that_it_broke_off_and_then_that_it_was_rejected(
    world: dict[str, Any], tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = str(Path(world["policy"]).with_name("strict.yaml"))
    alerts = {"webhook": receiver.url, "link": "http://e/{night}"}
    home = begun(world, tmp_path / "home", policy=strict, alerts=alerts)
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr("flows.nightly.evaluate", lambda *_: 1 / 0)
        home.run()
    (broken,) = receiver.bodies
    assert (broken["kind"], broken["night"], broken["link"]) == ("broken", "night-01", "http://e/night-01")
    assert "after `edited`" in broken["reason"] and "errata refresh --night night-01" in broken["reason"]
    assert home.run().verdict == "reject"
    rejected = receiver.bodies[1]
    assert rejected["kind"] == "rejected" and [rule["metric"] for rule in rejected["failed_rules"]] == ["SR"]
    assert receiver.is_signed == [True, True]
    home.run()
    assert len(receiver.bodies) == 2, "a finished night tells nothing again"
