"""From the raw stream to a verdict: the commands `errata replay`, `ingest wikidata` and `refresh` together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from tests.flows.conftest import Home
from tests.flows.nights import PERMISSIVE, write_policy
from tests.warehouse.live import moving_items
from tests.warehouse.soak import soak
from warehouse.errors import Conflict
from warehouse.reference import HERE
from warehouse.stream.recording import load_recording
from warehouse.stream.replay import ReplayServer, serving

ROOT = Path(__file__).parent.parent.parent
Errata = Callable[..., tuple[int, Any]]
NIGHT = "night-live"


@pytest.fixture
def errata(home: Home, tmp_path: Path, world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Errata:
    """The command line with `--json` on a home of its own: exit code and printed document."""
    variables = {
        "HOME": home.path, "MODEL__NAME": world["model"]["name"], "THREADS": 1, "WIKIDATA__BACKOFF": 0.02,
        "POLICY": write_policy(tmp_path / "policy.yaml", PERMISSIVE, "permissive"), "WIKIDATA__FLUSH": 0.2,
    }  # fmt: skip
    sizes = {f"PROBES__{name.upper()}": value for name, value in world["probes"].items()}
    for name, value in (variables | sizes).items():
        monkeypatch.setenv(f"ERRATA_{name}", str(value))

    def run(*words: str) -> tuple[int, Any]:
        from flows.cli import app

        result = CliRunner().invoke(app, [*words, "--json"])
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return result.exit_code, json.loads(result.stdout)

    return run


def ingest(errata: Errata, server: ReplayServer, *more: str) -> tuple[int, Any]:
    return errata("ingest", "wikidata", "--replay", server.url, "--idle", "0.5", *more)


# ---------------------------------------------------------------- from the stream to a verdict


@pytest.mark.usefixtures("prefect_server", "without_page")
def test_a_night_runs_from_the_raw_stream_to_its_verdicts(errata: Errata, home: Home) -> None:
    with serving(load_recording(HERE / "stream")) as server:
        code, found = ingest(errata, server, "--night", NIGHT)
    assert (code, found["records"], found["pending"], found["run"]["problem"]) == (0, 37, 0, "")
    # No night is named: the one that came over the stream is next.
    code, line = errata("refresh")
    assert (code, line["night"], line["records"]) == (0, NIGHT, 37)
    verdicts = Counter(
        row["verdict"] for row in home.rows("SELECT verdict FROM updates LEFT JOIN verdicts USING (source, record_id)")
    )
    assert verdicts[None] == 0 and verdicts["supersede"] >= 5 and verdicts["reject"] >= 3 and verdicts["quarantine"] >= 1
    assert line["edited"] >= 5
    assert home.findings() == []
    # The night is closed: later events need another.
    code, refused = errata("ingest", "wikidata", "--replay", "http://127.0.0.1:9", "--night", NIGHT)
    assert (code, refused["error"]) == (1, "Conflict") and "judged already" in refused["message"]


def test_a_second_ingest_adds_nothing(errata: Errata, home: Home) -> None:
    with serving(moving_items(3, 4)) as server:
        first, second = ingest(errata, server, "--night", NIGHT)[1], ingest(errata, server, "--night", NIGHT)[1]
    assert (first["records"], second["records"], second["run"]["frames"]) == (12, 12, 0)
    assert first["cursor"] == second["cursor"] != ""


def test_the_latest_documents_fold_the_edits_of_an_item_into_one(errata: Errata) -> None:
    with serving(moving_items(3, 4)) as server:
        _, found = ingest(errata, server, "--night", NIGHT, "--latest")
    # Three items, each from its first birthplace to its last.
    assert (found["records"], found["outcomes"]["unchanged: folded"]) == (3, 9)


def test_properties_decide_what_becomes_a_record(errata: Errata) -> None:
    with serving(moving_items(3, 4)) as server:
        _, found = ingest(errata, server, "--night", NIGHT, "--properties", "P6, P35")
    assert (found["records"], found["stored"], found["other_properties"]) == (0, 0, {"P19": 12})


def test_max_events_ends_a_run(errata: Errata) -> None:
    with serving(moving_items(3, 4)) as server:
        _, found = ingest(errata, server, "--night", NIGHT, "--max-events", "5")
    assert (found["run"]["frames"], found["records"]) == (5, 5)


# ---------------------------------------------------------------- what it refuses


def test_the_real_stream_needs_a_contact(errata: Errata) -> None:
    code, found = errata("ingest", "wikidata")
    assert code == 1 and "ERRATA_WIKIDATA__CONTACT" in found["message"]


def test_a_replay_is_on_this_machine(errata: Errata) -> None:
    code, found = errata("ingest", "wikidata", "--replay", "http://stream.example:80")
    assert code == 1 and "127.0.0.1" in found["message"]


@pytest.mark.parametrize(("option", "value"), [("--until", "soon"), ("--until", "25:00")])
def test_a_time_that_is_none_is_named(option: str, value: str, errata: Errata) -> None:
    code, found = errata("ingest", "wikidata", "--replay", "http://127.0.0.1:9", option, value)
    assert code == 1 and value in found["message"]


def test_until_ends_a_run_that_waits(errata: Errata) -> None:
    with serving(moving_items(1, 1), heartbeat_s=0.1) as server:
        end = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()
        _, found = errata("ingest", "wikidata", "--replay", server.url, "--night", NIGHT, "--idle", "60", "--until", end)
    assert found["run"]["frames"] == 1 and found["run"]["seconds"] < 15


def test_todays_night_gets_a_number_when_it_is_judged(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.settings import configure
    from tasks.workspace import todays_night

    judged: set[str] = set()
    monkeypatch.setattr("warehouse.nights.order.is_judged", lambda wh, night: night in judged)
    settings = configure(home.config)
    first = todays_night(settings)
    assert first == f"night-{datetime.now(UTC):%Y-%m-%d}" > "night-06"
    judged.add(first)
    assert todays_night(settings) == f"{first}-02"
    judged |= {f"{first}-{number:02}" for number in range(2, 100)}
    with pytest.raises(Conflict, match="--night"):
        todays_night(settings)


def test_the_clock_of_until_is_the_next_one() -> None:
    from tasks.night.live_ingest import _moment

    now = datetime.now(UTC)
    found = datetime.fromtimestamp(_moment(f"{now:%H:%M}") or 0, UTC)
    assert timedelta(0) < found - now <= timedelta(days=1)
    assert _moment("") is None and _moment("2026-10-01T00:00:00Z") == datetime(2026, 10, 1, tzinfo=UTC).timestamp()


# ---------------------------------------------------------------- processes


def test_replay_serves_the_sample_as_a_process_of_its_own(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "replay", "--port", "0", "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "ERRATA_HOME": str(tmp_path)},
    )  # fmt: skip
    assert process.stdout is not None
    about = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
    answer = httpx.get(about["url"] + "/wiki/Special:EntityData/Q1144330.json", headers={"User-Agent": "test"}, trust_env=False)
    assert answer.json()["entities"]["Q1144330"]["labels"]["en"]["value"] == "Bienvenue chez les Ch'tis"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0 and about["frames"] == 55


def sound(report: Any, kills: int) -> None:
    """Nothing lost, nothing twice, the cursor at the end."""
    assert report.kills == kills and report.kills_after_first_write > 0
    assert (report.missing_events, report.duplicate_events, report.stored_events) == (0, 0, report.expected_events)
    assert (report.differing_records, report.records, report.duplicate_requests) == (0, report.expected_records, 0)
    assert report.is_cursor_right and report.pending == 0


def test_a_client_that_is_killed_under_faults_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    report = soak(tmp_path, moving_items(8, 5, noise=1), kills=2, faults=0.05, rate=40.0)
    sound(report, kills=2)
    assert report.expected_records == 40 and sum(report.faults.values()) > 10


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("ERRATA_SLOW"), reason="minutes; set ERRATA_SLOW=1")
def test_twenty_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    report = soak(tmp_path, moving_items(20, 15, noise=1), kills=20, faults=0.05, rate=60.0)
    sound(report, kills=20)
    assert set(replace(report).faults) >= {"drop", "delay", "duplicate", "garbage", "too_many", "unavailable"}
