"""What the command line prints, and how it fails."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from checks.gates.decide import decide
from flows.cli import _log_level, app, run
from flows.commands.nights import _why_not
from tasks.settings import configure
from tests.checks.support import report, score
from tests.warehouse.world import request, update, verdict
from warehouse.database.connection import Warehouse
from warehouse.lineages.reports import save_decision, save_report
from warehouse.nights.intake import receive, record_verdicts
from warehouse.nights.runs import begin_run
from warehouse.records import GatePolicy, GateRule


def test_json_output_is_the_document_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editors.reference.train.train", lambda out, config: out / "model")
    result = CliRunner().invoke(app, ["reference", "train", "--out", str(tmp_path), "--json"])
    assert json.loads(result.stdout) == {"model": str(tmp_path / "model")}


def test_a_broken_settings_file_is_one_error_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "errata.toml").write_text('lineagee = "x"\n')
    monkeypatch.setattr("sys.argv", ["errata", "status"])
    assert run() == 1
    assert "lineagee" in capsys.readouterr().err


# ---------------------------------------------------------------- what became of each record


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one judged night of two records, whose sentences hold what a terminal could take for markup."""
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    with Warehouse.open(tmp_path / "home" / "warehouse.duckdb") as wh:
        receive(wh, [update("good"), update("b[/]d")])
        bad = verdict("b[/]d").model_copy(update={"reason": "self_reference", "sentence": "Its object [red] is its subject."})
        record_verdicts(wh, "night-01", "recorded", [verdict("good", "r1"), bad], [request("r1")])
        begin_run(wh, "night-01", "main", run_id="r", editor="memit")
    return tmp_path / "home"


def test_a_user_who_sent_a_bad_file_sees_why(home: Path) -> None:
    shown = CliRunner().invoke(app, ["records", "night-01", "--verdict", "reject"])
    assert shown.exit_code == 0 and "self_reference" in shown.stdout and "1 records, 1 reject" in shown.stdout
    assert "b[/]d" in shown.stdout and "[red]" in shown.stdout and "good" not in shown.stdout
    listed = json.loads(CliRunner().invoke(app, ["records", "night-01", "--json"]).stdout)
    assert [(r["record_id"], r["verdict"], r["reason"]) for r in listed] == [
        ("good", "accept", "fresh"), ("b[/]d", "reject", "self_reference"),
    ]  # fmt: skip


def test_status_of_a_night_has_its_runs_and_its_records(home: Path) -> None:
    found = json.loads(CliRunner().invoke(app, ["status", "night-01", "--json"]).stdout)
    assert [r["lineage"] for r in found["runs"]] == ["main"] and len(found["records"]) == 2
    shown = CliRunner().invoke(app, ["status", "night-01"])
    assert "unfinished" in shown.stdout and "self_reference" in shown.stdout
    wrong = CliRunner().invoke(app, ["status", "night-1", "--json"])
    assert wrong.exit_code == 1 and "night-01" in json.loads(wrong.stdout)["message"]


def test_a_rejected_night_says_why_and_what_no_removal_would_have_cured(home: Path) -> None:
    policy = GatePolicy(name="t", version=1, rules=(GateRule(metric="GR", op=">=", threshold=0.7, judge="point", min_n=5),))
    measured = report(score("GR", 1.0, 0.5, 1.0, 2))
    decision = decide(policy, measured, datetime(2026, 10, 1, tzinfo=UTC))
    with Warehouse.open(home / "warehouse.duckdb") as wh:
        save_report(wh, measured)
        save_decision(wh, decision, policy)
    line = {"night": "night-01", "verdict": "reject", "edited": 2, "details": {"decision_id": decision.decision_id}}
    first, second, last = _why_not(configure(), line)
    assert first.startswith("night-01 does not serve (reject): GR is 1.000") and "GR counts 2 and the rule asks for 5" in second
    assert last.startswith("errata records night-01")
    assert _why_not(configure(), {**line, "verdict": "promote"}) == []


@pytest.fixture
def unusable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home below a file, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "CRITICAL")
    return tmp_path


def ran(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["errata", *arguments])
    return run("--json" in arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["refresh", "--help"], ["config", "show", "--json"]])
def test_help_and_the_settings_need_no_home(
    unusable: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(monkeypatch, *arguments) == 0
    captured = capsys.readouterr()
    assert not captured.err and len(captured.out) > 200
    if arguments[0] == "--help":
        (unusable / "errata.toml").write_text("lineagee = 1\n")
        assert ran(monkeypatch, *arguments) == 0


def test_a_home_that_cannot_be_written_is_one_line(
    unusable: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(monkeypatch, "status") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot be written" in said and "ERRATA_HOME" in said and "Traceback" not in said


@pytest.mark.parametrize(("name", "level"), [("debug", 10), ("Info", 20), ("WARN", 30), ("", 30), (" error ", 40), ("15", 15)])
def test_a_level_of_logging_is_known_in_any_case(name: str, level: int) -> None:
    assert _log_level(name) == level


def test_another_level_is_one_line(unusable: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ERRATA_LOG", "loud")
    assert ran(monkeypatch, "config", "show") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "ERRATA_LOG='loud' is no level" in said and "Traceback" not in said
