"""A real Prefect server and real workers: `errata deploy`, the schedule plans, nights are run, and every alarm arrives."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.flows.nights import NUM_RECORDS, before_nights, write_before_nights, write_world
from tests.receiver import Receiver, receiving

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deployments" / "prefect.yaml"
PREFECT = (sys.executable, "-m", "prefect")
#: Seconds; several times what an idle machine of two cores needs, because tests share theirs with others.
PATIENCE_S = 280.0
#: Of one request: SQLite's lock may be another's for a while.
ANSWER_S = 120.0
SECRET = "a secret of the tests"


@dataclass(frozen=True)
class Server:
    api: str
    environment: dict[str, str]
    logs: Path
    receiver: Receiver

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.api}{path}", timeout=ANSWER_S).raise_for_status().json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        def answer() -> Any:
            # 503: SQLite is locked by another request. Prefect's own client asks again as well.
            found = httpx.post(f"{self.api}{path}", json=body, timeout=ANSWER_S)
            return None if found.status_code == 503 else found

        return wait_for("answer", answer, self.logs).raise_for_status().json()

    def errata(self, *arguments: str) -> Any:
        """The document of a command."""
        command = [sys.executable, "-m", "flows.cli", *arguments, "--json"]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.stdout, f"errata {' '.join(arguments)}:\n{done.stderr}"
        return json.loads(done.stdout)

    def start(self, deployment: str, queue: str = "default", **parameters: Any) -> str:
        """A run of a deployment as a person starts it; returns its id."""
        found = self.get(f"/deployments/name/{deployment}")
        body = {"parameters": {**found["parameters"], **parameters}, "state": {"type": "SCHEDULED"}, "work_queue_name": queue}
        return self.post(f"/deployments/{found['id']}/create_flow_run", body)["id"]

    def end_of(self, run: str) -> dict[str, Any]:
        """The run once it has ended."""

        def ended() -> dict[str, Any] | None:
            found = self.get(f"/flow_runs/{run}")
            return found if found["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        return wait_for("end of the run", ended, self.logs)

    def alarm(self, kind: str, **wanted: str) -> dict[str, Any]:
        """The first alarm of a kind and of what else is wanted; it has to be signed."""

        def come() -> list[dict[str, Any]]:
            return [body for body in self.receiver.of_kind(kind) if wanted.items() <= body.items()]

        found = wait_for(f"alarm {kind}", come, self.logs)[0]
        assert self.receiver.is_signed[self.receiver.bodies.index(found)]
        return found


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
    """A server with the deployments of two lineages, and a worker that takes what is in the queue `default`."""
    folder, port = tmp_path_factory.mktemp("prefect-server"), free_port()
    api = f"http://127.0.0.1:{port}/api"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ERRATA_"))}
    with receiving(SECRET) as receiver:
        environment = clean | {
            "PREFECT_HOME": str(folder), "PREFECT_API_URL": api, "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1", "PREFECT_WORKER_QUERY_SECONDS": "2", "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "2",
            # SQLite on a machine that others keep busy: fewer planned runs to write, and patience with its lock.
            "PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS": "5", "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), clean.get("PYTHONPATH", "")])), "OMP_NUM_THREADS": "1",
            "ERRATA_HOME": str(folder / "home"), "ERRATA_ALERTS_SECRET": SECRET, "ERRATA_ALERTS__WEBHOOK": receiver.url,
            "ERRATA_ALERTS__LINK": "http://errata.example/{lineage}/{night}",
            # Short hours: 11 s for a night, 29 s from one to the next.
            "ERRATA_ALERTS__WITHIN": "0.003", "ERRATA_ALERTS__EVERY": "0.008",
        }  # fmt: skip
        own = {k: v for k, v in environment.items() if k != "PREFECT_API_URL"}
        found = Server(api, environment, folder, receiver)
        with running(folder, "server", own, "server", "start", "--host", "127.0.0.1", "--port", str(port)):
            wait_for("answer of the server", lambda: answers(api), folder)
            found.errata("deploy", "--lineage", "main", "--lineage", "trial", "--cron", "30 4 * * *")
            worker = ("worker", "start", "--pool", "local", "--work-queue", "default", "--type", "process")
            with running(folder, "worker", environment, *worker):
                yield found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings over a tiny model and two nights, with a home to copy."""
    found = write_world(tmp_path_factory.mktemp("world"))
    write_before_nights(found)
    return found


def test_no_path_and_no_host_of_a_machine_is_in_the_file() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert "://" not in text
    assert {d["entrypoint"] for d in yaml.safe_load(text)["deployments"]} == {
        "flows/nightly.py:nightly_refresh",
        "flows/weekly_audit.py:weekly_audit",
        "flows/rollback.py:roll_back",
        "flows/revert.py:revert_edits",
        "flows/preparation.py:prepare_editor",
        "flows/quality_benchmark.py:benchmark",
    }


@pytest.mark.integration
@pytest.mark.parametrize("name", ["nightly-refresh/nightly", "audit/audit", "nightly-refresh/nightly-trial"])
def test_a_deployment_with_an_hour_really_gets_scheduled_runs(server: Server, name: str) -> None:
    deployment = server.get(f"/deployments/name/{name}")

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
@pytest.mark.parametrize("name", ["rollback/rollback", "revert/revert", "prepare/prepare", "benchmark/benchmark"])
def test_nobody_plans_what_people_start(server: Server, name: str) -> None:
    assert server.get(f"/deployments/name/{name}")["schedules"] == []


@pytest.mark.integration
def test_a_lineage_has_deployments_of_its_own(server: Server) -> None:
    for name, lineage in (("nightly", "main"), ("nightly-trial", "trial")):
        found = server.get(f"/deployments/name/nightly-refresh/{name}")
        assert found["parameters"]["lineage"] == lineage
        assert [one["schedule"]["cron"] for one in found["schedules"]] == ["30 4 * * *"]


@pytest.mark.integration
def test_alarms_that_are_set_again_keep_their_ids_and_a_changed_hour_changes_one(server: Server) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.deploying.deploy import set_alarms
    from tasks.settings import configure

    def ids() -> dict[str, str]:
        return {one["name"]: one["id"] for one in server.post("/automations/filter", {})}

    env = server.environment
    alerts = {
        "webhook": env["ERRATA_ALERTS__WEBHOOK"],
        "link": env["ERRATA_ALERTS__LINK"],
        "within": env["ERRATA_ALERTS__WITHIN"],
        "every": env["ERRATA_ALERTS__EVERY"],
    }
    before = ids()
    with (
        temporary_settings({PREFECT_API_URL: server.api}),
        pytest.MonkeyPatch.context() as patched,
        get_client(sync_client=True) as client,
    ):
        patched.setenv("ERRATA_ALERTS_SECRET", SECRET)
        assert set(set_alarms(client, configure({"alerts": alerts}, writes=False)).values()) == {"kept"}
        changed = set_alarms(client, configure({"alerts": {**alerts, "every": 20.0}}, writes=False))
        assert {name for name, what in changed.items() if what == "changed"} == {"errata: no night came"}
        assert set_alarms(client, configure({"alerts": alerts}, writes=False))["errata: no night came"] == "changed"
    assert len(before) == 5 and ids() == before


@pytest.mark.integration
def test_a_rejected_night_is_told_and_that_none_came_after_it(server: Server, world: dict[str, Any], tmp_path: Path) -> None:
    strict = str(Path(world["policy"]).with_name("strict.yaml"))
    run = server.start(
        "nightly-refresh/nightly", night="night-01", config=before_nights(world, tmp_path / "home", policy=strict)
    )
    ended = server.end_of(run)
    assert ended["state"]["type"] == "COMPLETED", f"{ended['state']['message']}"
    told = server.alarm("rejected", night="night-01")
    assert (told["lineage"], told["verdict"], told["link"]) == ("main", "reject", "http://errata.example/main/night-01")
    assert [(rule["metric"], rule["threshold"]) for rule in told["failed_rules"]] == [("SR", 0.9)] and told["reason"]
    last = server.alarm("missing", lineage="main")
    assert last["night"] == "night-01" and "0.008 h" in last["reason"]


@pytest.mark.integration
def test_the_doctor_finds_server_schedule_worker_and_alarms(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.doctor.orchestration import check_alerts, check_prefect
    from tasks.settings import configure

    settings = configure({"lineage": "trial", "alerts": {"webhook": server.receiver.url}}, writes=False)
    monkeypatch.delenv("ERRATA_ALERTS_SECRET", raising=False)
    with temporary_settings({PREFECT_API_URL: server.api}):
        found = wait_for(
            "worker that is online", lambda: (lines := check_prefect(settings))[2].level == "ok" and lines, server.logs
        )
        assert [(line.check, line.level) for line in found] == [
            ("prefect", "ok"), ("schedule", "ok"), ("worker", "ok"), ("alarms", "ok"),
        ]  # fmt: skip
        unknown = check_prefect(settings.model_copy(update={"lineage": "elsewhere"}))[1]
        assert unknown.level == "fault" and "errata deploy" in unknown.to_do
        assert check_alerts(settings).level == "fault", "nothing can be signed"
        assert check_alerts(configure(writes=False)).level == "warning", "a server, and nobody to tell"
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        (away,) = check_prefect(settings)
    assert away.level == "fault" and "127.0.0.1:9" in away.found


@pytest.mark.integration
def test_a_run_that_breaks_is_told(server: Server) -> None:
    run = server.start("rollback/rollback", checkpoint="0" * 64, reason="a test")
    assert server.end_of(run)["state"]["type"] == "FAILED"
    assert "0000" in server.alarm("broken", lineage="main")["reason"]


@pytest.mark.integration
def test_a_night_that_no_worker_takes_is_told_when_its_hour_is_over(server: Server) -> None:
    run = server.start("nightly-refresh/nightly-trial", queue="nobody", night="night-07")
    told = server.alarm("late", lineage="trial")
    assert told["night"] == "night-07" and server.get(f"/flow_runs/{run}")["name"] in told["reason"]
    server.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLED"}, "force": True})


@pytest.mark.integration
def test_a_worker_runs_two_lineages_at_once_in_one_home(server: Server, world: dict[str, Any], tmp_path: Path) -> None:
    from warehouse.database.connection import Warehouse
    from warehouse.nights.runs import runs

    config = before_nights(world, tmp_path / "home")
    # With editors of their own: a checkpoint belongs to the lineage that published it first.
    editors = {"nightly": "memit", "nightly-trial": "ledger"}
    started = [server.start(f"nightly-refresh/{n}", night="night-01", editor=e, config=config) for n, e in editors.items()]
    main, trial = (server.end_of(run) for run in started)
    for run in (main, trial):
        said = f"{run['state']['message']}\n{(server.logs / 'worker.log').read_text()[-3000:]}"
        assert run["state"]["type"] == "COMPLETED", said
    assert max(main["start_time"], trial["start_time"]) < min(main["end_time"], trial["end_time"]), "at once"
    with Warehouse.open(tmp_path / "home" / "warehouse.duckdb") as wh:
        lines = runs(wh)
    assert [(line.lineage, line.records, line.verdict) for line in lines] == [
        ("main", NUM_RECORDS, "promote"),
        ("trial", NUM_RECORDS, "promote"),
    ]


@pytest.mark.integration
def test_the_server_knows_the_block_that_delivers() -> None:
    """An environment that was installed before the entry point has to be installed again (`pip install -e .`)."""
    assert [point.value for point in entry_points(group="prefect.collections") if point.name == "errata"] == [
        "tasks.alerts.block"
    ]
