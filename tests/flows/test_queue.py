"""`errata quarantine` and `errata conflicts` as a user meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from tasks.settings import Settings
from tasks.workspace import warehouse
from warehouse.nights.intake import receive, record_verdicts
from warehouse.records import UpdateRecord, Verdict

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    with warehouse(Settings(home=tmp_path)) as wh:
        records = [UpdateRecord(record_id=i, source="recorded", night="night-01", received_at=None, raw='{"op": "x"}')
                   for i in ("r1", "r2")]  # fmt: skip
        receive(wh, records)
        held = [Verdict(record_id=r.record_id, verdict="quarantine", reason="low_trust", rule="low_trust", sentence="It waits.")
                for r in records]  # fmt: skip
        record_verdicts(wh, "night-01", "recorded", held, [])
    return lambda *args: CliRunner().invoke(app, list(args))


def read(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_queue_is_listed_and_a_release_leaves_it(run: Run) -> None:
    assert [e["record_id"] for e in read(run("quarantine", "list", "--json"))] == ["r1", "r2"]
    act = read(run("quarantine", "release", "r1", "--reason", "checked", "--by", "ada", "--json"))
    assert (act["action"], act["actor"], act["new"]) == ("release", "ada", True)
    assert [e["record_id"] for e in read(run("quarantine", "list", "--json"))] == ["r2"]
    assert len(read(run("quarantine", "list", "--state", "all", "--json"))) == 2


def test_a_record_is_shown_with_its_trail(run: Run) -> None:
    run("quarantine", "reject", "r1", "--reason", "spam", "--by", "ada")
    shown = read(run("quarantine", "show", "r1", "--json"))
    assert (shown["state"], shown["record"], shown["verdict_after_release"]) == ("rejected", {"op": "x"}, None)
    assert [(a["action"], a["reason"]) for a in shown["audit"]] == [("reject", "spam")]


def test_acting_twice_says_so_and_the_other_way_is_refused(run: Run) -> None:
    first = run("quarantine", "release", "r1", "--reason", "checked", "--by", "ada")
    again = run("quarantine", "release", "r1", "--reason", "checked", "--by", "bob")
    assert "joins the next night" in first.output and "already, by ada" in " ".join(again.output.split())
    refused = run("quarantine", "reject", "r1", "--reason", "no")
    assert refused.exit_code == 1 and "was released by ada" in " ".join(refused.output.split())


def test_a_reason_is_asked_for_and_an_unknown_state_named(run: Run) -> None:
    assert run("quarantine", "release", "r1").exit_code == 2
    assert "'odd': expected one of waiting" in run("quarantine", "list", "--state", "odd").output


def test_people_see_tables(run: Run) -> None:
    assert "low_trust" in run("quarantine", "list").output and "low_trust" in run("quarantine", "show", "r2").output


def test_a_file_of_no_cases_is_refused_in_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("{}\n")
    result = run("conflicts", "score", str(tmp_path / "none.jsonl"))
    assert result.exit_code == 1 and "no conflict case" in result.output
