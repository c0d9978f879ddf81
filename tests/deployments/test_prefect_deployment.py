"""A real Prefect server and a real worker: the deployments are put on it, the schedule plans, and a night is run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.flows.nights import NUM_RECORDS, config_of, write_world

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deployments" / "prefect.yaml"
PREFECT = (sys.executable, "-m", "prefect")
#: Seconds; several times what an idle machine of two cores needs, because tests share theirs with others.
PATIENCE_S = 150.0


@dataclass(frozen=True)
class Server:
    api: str
    environment: dict[str, str]
    logs: Path

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.api}{path}", timeout=30).raise_for_status().json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return httpx.post(f"{self.api}{path}", json=body, timeout=30).raise_for_status().json()

    def prefect(self, *arguments: str) -> None:
        done = subprocess.run(
            [*PREFECT, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, f"prefect {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"


def wait_for(what: str, ask: Callable[[], Any], logs: Path, every_s: float = 0.5) -> Any:
    """The first answer that is true; fails with the logs after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := ask():
            return found
        time.sleep(every_s)
    tails = [f"--- {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in sorted(logs.glob("*.log"))]
    raise AssertionError(f"no {what} within {PATIENCE_S:.0f} s\n" + "\n".join(tails))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(logs: Path, name: str, environment: dict[str, str], *arguments: str) -> Iterator[None]:
    """A `prefect` process and its children, ended together at the end."""
    with (logs / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [*PREFECT, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield
        finally:
            # The session is ours alone: a worker's flow runs end with it.
            for number, wait_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
                try:
                    os.killpg(process.pid, number)
                    process.wait(timeout=wait_s)
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue
            process.wait(timeout=10)


def answers(api: str) -> bool:
    try:
        return httpx.get(f"{api}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the deployments of the repository and a process worker."""
    folder, port = tmp_path_factory.mktemp("prefect-server"), free_port()
    api = f"http://127.0.0.1:{port}/api"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ERRATA_"))}
    environment = clean | {
        "PREFECT_HOME": str(folder), "PREFECT_API_URL": api, "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1", "PREFECT_WORKER_QUERY_SECONDS": "2", "PREFECT_SERVER_UI_ENABLED": "false",
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    own = {k: v for k, v in environment.items() if k != "PREFECT_API_URL"}
    found = Server(api, environment, folder)
    with running(folder, "server", own, "server", "start", "--host", "127.0.0.1", "--port", str(port)):
        wait_for("answer of the server", lambda: answers(api), folder)
        found.prefect("work-pool", "create", "local", "--type", "process")
        found.prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(FILE.relative_to(ROOT)))
        with running(folder, "worker", environment, "worker", "start", "--pool", "local", "--type", "process"):
            yield found


def test_no_path_and_no_host_of_a_machine_is_in_the_file() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert "://" not in text
    assert {d["entrypoint"] for d in yaml.safe_load(text)["deployments"]} == {
        "flows/nightly.py:nightly_refresh",
        "flows/rollback.py:roll_back",
    }


@pytest.mark.integration
def test_the_nightly_deployment_really_gets_scheduled_runs(server: Server) -> None:
    deployment = server.get("/deployments/name/nightly-refresh/nightly")

    def planned() -> list[dict[str, Any]]:
        wanted = {"deployments": {"id": {"any_": [deployment["id"]]}},
                  "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}  # fmt: skip
        return server.post("/flow_runs/filter", wanted)

    runs = wait_for("scheduled run: is the SQLAlchemy pin in force?", planned, server.logs)
    assert all(run["auto_scheduled"] for run in runs)


@pytest.mark.integration
def test_late_nights_wait_for_the_one_that_is_running(server: Server) -> None:
    deployment = server.get("/deployments/name/nightly-refresh/nightly")
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"


@pytest.mark.integration
def test_nobody_plans_a_rollback(server: Server) -> None:
    assert server.get("/deployments/name/rollback/rollback")["schedules"] == []


@pytest.mark.integration
def test_the_worker_runs_a_night(server: Server, tmp_path: Path) -> None:
    from warehouse.database.connection import Warehouse
    from warehouse.nights.runs import runs

    config = config_of(write_world(tmp_path / "world"), tmp_path / "home")
    deployment = server.get("/deployments/name/nightly-refresh/nightly")
    run = server.post(
        f"/deployments/{deployment['id']}/create_flow_run",
        {"parameters": {"night": "night-01", "lineage": "main", "config": config}, "state": {"type": "SCHEDULED"}},
    )

    def ended() -> dict[str, Any] | None:
        state = server.get(f"/flow_runs/{run['id']}")["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    state = wait_for("end of the night", ended, server.logs)
    assert state["type"] == "COMPLETED", f"{state['message']}\n{(server.logs / 'worker.log').read_text()[-3000:]}"
    with Warehouse.open(tmp_path / "home" / "warehouse.duckdb") as wh:
        (line,) = runs(wh)
    assert (line.night, line.records, line.verdict) == ("night-01", NUM_RECORDS, "promote")
