"""Culprits of a night wait in the quarantine queue with their evidence; a person releases them to the next night, or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks.recheck.audit import audit
from tasks.settings import configure
from tests.flows.conftest import Home, bare, begun
from tests.flows.culprit import CULPRIT, RULE, plant
from tests.flows.nights import LATER, TEACHER, UPDATES, event, first_night, write_night
from warehouse.database.connection import Warehouse
from warehouse.lineages.history import blame

pytestmark = pytest.mark.usefixtures("bare_nights")
VALUE = UPDATES[1][3][1]


@pytest.fixture(scope="module")
def original(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A night of three updates, promoted without its culprit."""
    folder = tmp_path_factory.mktemp("held")
    policy = folder / "policy.yaml"
    text = f"name: isolating\nversion: 1\nallow_unsigned: true\nisolate_evaluations: 20\nrules:\n  - {RULE}\n"
    policy.write_text(text, encoding="utf-8")
    write_night(folder / "nights", "night-01", first_night())
    write_night(folder / "nights", "night-02", [json.dumps(event(i, 2, *update)) for i, update in enumerate(LATER, 1)])
    source = {"kind": "recorded", "path": str(folder / "nights")}
    home = begun(world, folder / "home", policy=str(policy), editor=TEACHER, source=source)
    with pytest.MonkeyPatch.context() as patched:
        bare(patched)
        plant(patched)
        assert home.run("night-01").verdict == "promote"
    return home


@pytest.fixture
def home(original: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    shutil.copytree(original.path, tmp_path / "home")
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ERRATA_ACTOR", "ada")
    return Home({**original.config, "home": str(tmp_path / "home")})


def asked(*args: str) -> Any:
    result = CliRunner().invoke(app, ["quarantine", *args, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def waiting() -> str:
    (entry,) = asked("list")
    return entry["record_id"]


def ledger(home: Home, night: str) -> dict[str, str]:
    rows = home.rows(
        "SELECT r.subject, e.status FROM edits AS e JOIN edit_requests AS r USING (request_id) "
        f"WHERE e.night = '{night}' ORDER BY e.edit_seq"
    )
    return {row["subject"]: row["status"] for row in rows}


def test_a_culprit_is_listed_with_the_probes_that_it_broke(home: Home) -> None:
    (entry,) = asked("list")
    assert (entry["kind"], entry["source"], entry["reason"], entry["state"]) == ("edit", "edits:main", "culprit", "waiting")
    shown = asked("show", entry["record_id"])
    assert (shown["edit"]["subject"], shown["edit"]["target_new"]) == (CULPRIT, VALUE)
    assert shown["evidence"]["broken"] >= 1 and shown["evidence"]["probes"]
    assert shown["audit"] == []
    assert home.findings() == []


def test_a_released_culprit_is_edited_in_the_next_night_and_only_in_that_one(home: Home) -> None:
    asked("release", waiting(), "--reason", "the editor was broken")
    line = home.run("night-02")
    assert (line.verdict, line.edited) == ("promote", 3)
    assert ledger(home, "night-02")[CULPRIT] == "active"
    (entry,) = asked("list", "--state", "joined")
    assert entry["joined_night"] == "night-02"
    assert [(a["action"], a["actor"]) for a in asked("show", entry["record_id"])["audit"]] == [
        ("release", "ada"), ("join", "errata"),
    ]  # fmt: skip
    with Warehouse.open(home.path / "warehouse.duckdb") as wh:
        newest = blame(wh, "main", CULPRIT, UPDATES[1][1][0])[0]
    assert (newest.fact.target_new, newest.in_force) == (VALUE, True)
    assert home.findings() == []
    assert audit(configure(home.config)).breaks == ()


def test_a_night_killed_after_the_join_takes_the_same_edit_up_again(home: Home) -> None:
    asked("release", waiting(), "--reason", "the editor was broken")
    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("tasks.night.edit.make_edits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        home.run("night-02")
    assert home.run("night-02").edited == 3
    assert len(home.rows("SELECT * FROM quarantine_actions WHERE action = 'join'")) == 1


def test_a_culprit_that_breaks_the_next_night_too_waits_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    first = waiting()
    asked("release", first, "--reason", "to try again")
    plant(monkeypatch)
    line = home.run("night-02")
    assert (line.verdict, line.edited) == ("promote", 2)
    second = waiting()
    assert second != first
    assert asked("show", second)["night"] == "night-02"
    assert home.findings() == []


def test_a_rejected_culprit_never_joins(home: Home) -> None:
    asked("reject", held := waiting(), "--reason", "vandalism")
    assert home.run("night-02").edited == 2
    assert CULPRIT not in ledger(home, "night-02")
    assert asked("show", held)["state"] == "rejected"
    (noted,) = home.rows("SELECT actor, reason FROM audit WHERE kind = 'quarantine'")
    assert (noted["actor"], noted["reason"]) == ("ada", "vandalism")


def test_a_released_culprit_gives_way_to_a_newer_request_of_its_slot(home: Home) -> None:
    subject, prop, _, was = UPDATES[1]
    path = Path(home.config["source"]["path"]).parent / f"{home.path.parent.name}-nights"
    newer = event(9, 2, subject, prop, was, ("Q557632", "Decca"))
    write_night(path, "night-02", [json.dumps(newer), json.dumps(event(10, 2, *LATER[1]))])
    asked("release", waiting(), "--reason", "the editor was broken")
    line = Home({**home.config, "source": {"kind": "recorded", "path": str(path)}}).run("night-02")
    rows = home.rows(
        "SELECT r.target_new, e.status, e.reason FROM edits AS e JOIN edit_requests AS r USING (request_id) "
        f"WHERE e.night = 'night-02' AND r.subject = '{CULPRIT}'"
    )
    found = {row["target_new"]: (row["status"], row["reason"]) for row in rows}
    assert found[VALUE] == ("skipped", "released, but a newer request stands")
    assert found["Decca"][0] == "active" and line.verdict == "promote"
