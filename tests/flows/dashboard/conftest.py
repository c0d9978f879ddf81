"""A home of a few real nights, and a generated warehouse, each made once; and the dashboards over them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from flows.dashboard.app import create_app
from tasks.settings import Settings, configure
from tasks.workspace import publish_copy
from tests.flows.conftest import FinishedNight, Home, no_page
from tests.flows.dashboard.generated import MARKUP, generate
from tests.flows.nights import LATER, event, write_night
from warehouse.database.connection import Warehouse
from warehouse.lineages.serving import ServingCheck, save_check

GENERATED_NIGHTS, GENERATED_EDITS = 70, 12


@dataclass(frozen=True)
class Shown:
    """A home with a published copy; `night` and `subject` are there to be looked at."""

    settings: Settings
    night: str
    subject: str
    label: str

    def addresses(self) -> dict[str, str]:
        """An address of every page."""
        return {
            "overview": "/",
            "nights": "/nights",
            "night": f"/nights/main/{self.night}",
            "record": "/record?source=recorded&id=" + self.record(),
            "facts": f"/facts?q={self.label}",
            "fact": f"/fact?subject={self.subject}",
            "queue": "/queue",
            "lineage": "/lineage/main",
            "leaderboards": "/leaderboards",
            "audit": "/audit",
            "entry": "/audit/1",
            "policies": "/policies",
            "policy": f"/policies/{self.policy()}",
        }

    def record(self) -> str:
        return self._first("SELECT record_id FROM updates ORDER BY received_seq LIMIT 1")

    def policy(self) -> str:
        return self._first("SELECT policy_digest FROM policies ORDER BY policy_digest LIMIT 1")

    def _first(self, sql: str) -> str:
        # A copy of the copy: a process opens a DuckDB file once, and the dashboard has it.
        other = self.settings.home / "asked.duckdb"
        shutil.copyfile(self.settings.published_path, other)
        with Warehouse.open(other, read_only=True) as wh:
            return str(wh.scalar(sql))


@pytest.fixture(scope="session")
def real_nights(undisturbed: FinishedNight, world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """The undisturbed first night; a second one with a label that is markup; a rejected night on a lineage of its own."""
    folder = tmp_path_factory.mktemp("shown")
    shutil.copytree(undisturbed.home.path, folder / "home")
    lines = [event(i, 2, *update) for i, update in enumerate(LATER, 1)]
    lines.append(event(9, 2, ("Q999999901", f"Someone {MARKUP}"), ("P140", "religion or worldview"), ("Q432", "Islam"),
                       ("Q748", f"Faith {MARKUP}")))  # fmt: skip
    nights = Path(world["source"]["path"])
    shutil.copytree(nights, folder / "nights")
    write_night(folder / "nights", "night-02", [json.dumps(line) for line in lines])
    config = {
        **undisturbed.home.config,
        "home": str(folder / "home"),
        "source": {**world["source"], "path": str(folder / "nights")},
    }
    with pytest.MonkeyPatch.context() as patch:
        no_page(patch)
        Home(config).run("night-02")
        Home({**config, "policy": str(nights.with_name("strict.yaml"))}).run("night-01", lineage="careful")
    settings = configure(config)
    with Warehouse.open(settings.warehouse_path) as wh:
        head = wh.scalar("SELECT checkpoint_id FROM heads WHERE lineage = 'main' ORDER BY seq DESC LIMIT 1")
        check = ServingCheck(
            lineage="main",
            url="http://127.0.0.1:8000",
            model="m",
            checkpoint_id=head,
            asked_at=datetime.now(UTC),
            verdict="agrees",
            sentence="64 of 64 canaries agree.",
        )
        save_check(wh, check)
    assert publish_copy(settings)
    yield Shown(settings, "night-01", "Q243427", "Adalbert")


@pytest.fixture(scope="session")
def many_nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A generated warehouse: enough nights for several pages of each table."""
    home = tmp_path_factory.mktemp("generated") / "home"
    generate(home / "warehouse.duckdb", GENERATED_NIGHTS, GENERATED_EDITS)
    settings = configure({"home": str(home)})
    assert publish_copy(settings)
    yield Shown(settings, "night-2023-01-10", "Q8000", "Subject")


def client_of(shown: Shown, **more: Any) -> TestClient:
    """Asks the dashboard of a home as a browser on this machine would."""
    return TestClient(create_app(shown.settings, **more), base_url="http://127.0.0.1")


@pytest.fixture(scope="session")
def real(real_nights: Shown) -> Iterator[TestClient]:
    with client_of(real_nights) as client:
        yield client


@pytest.fixture(scope="session")
def many(many_nights: Shown) -> Iterator[TestClient]:
    with client_of(many_nights) as client:
        yield client
