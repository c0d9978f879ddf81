"""Every event that changes what is served, or why, is an entry of the trail: who did it, and for what reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks.recheck.audit import audit
from tasks.settings import configure
from tasks.takeback.rollback import restore
from tasks.trail import export_warehouse
from tests.flows.conftest import Home, bare, begun, revert_edits
from tests.flows.nights import LATER, PERMISSIVE, STRICT, UPDATES, event, write_night, write_policy
from warehouse.checkpoints.signing import generate_key
from warehouse.database.connection import Warehouse
from warehouse.lineages.audit import AuditEntry, chain_id, entries, read_mirrored

pytestmark = pytest.mark.usefixtures("bare_nights")
WHO = "ada"


def doubtful(number: int) -> dict[str, Any]:
    """A replacement by a new account, unpatrolled and without reference: it waits in the queue."""
    return event(number, 1, *UPDATES[number - 1]) | {"references": 0, "editor": {"class": "newcomer", "patrolled": False}}


@pytest.fixture(scope="module")
def home(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Home:
    """One of everything: three nights, two policies, two keys, a release and a rejection, a rollback, a revert, an export."""
    folder = tmp_path_factory.mktemp("trail")
    for name in ("first", "second"):
        generate_key(folder / f"{name}.pem", folder / f"{name}.pub")
    write_night(folder / "nights", "night-01", [json.dumps(e) for e in (event(1, 1, *UPDATES[0]), doubtful(2), doubtful(3))])
    write_night(folder / "nights", "night-02", [json.dumps(event(1, 2, *LATER[0]))])
    write_night(folder / "nights", "night-03", [json.dumps(event(1, 3, *LATER[1]))])
    trusted = [str(folder / "first.pub"), str(folder / "second.pub")]
    found = begun(
        world, folder / "home", editor={"name": "memit"}, actor=WHO,
        source={"kind": "recorded", "path": str(folder / "nights")},
        policy=str(write_policy(folder / "loose.yaml", PERMISSIVE, "loose")),
        signing={"private_key": str(folder / "first.pem"), "trusted": trusted},
    )  # fmt: skip
    strict = Home({**found.config, "policy": str(write_policy(folder / "strict.yaml", STRICT, "strict"))})
    second = Home({**found.config, "signing": {"private_key": str(folder / "second.pem"), "trusted": trusted}})
    with pytest.MonkeyPatch.context() as patched:
        bare(patched)
        patched.setenv("ERRATA_HOME", str(found.path))
        assert found.run("night-01").verdict == "promote"
        assert strict.run("night-02").verdict == "reject"
        for verb, record in (("release", "t01-002"), ("reject", "t01-003")):
            args = ["quarantine", verb, record, "--reason", f"to {verb} it", "--by", WHO]
            assert CliRunner(env={"ERRATA_ACTOR": WHO}).invoke(app, args).exit_code == 0
        assert second.run("night-03").verdict == "promote"
        restore(configure(found.config), _checkpoint(found, "night-01"), "the third night was wrong")
        revert_edits("production", "the first was wrong too", config=found.config)
        export_warehouse(configure(found.config), folder / "export")
    return found


def _checkpoint(home: Home, night: str) -> str:
    return home.rows(f"SELECT checkpoint_id FROM checkpoints WHERE night = '{night}'")[0]["checkpoint_id"]


def trail(home: Home) -> list[AuditEntry]:
    with Warehouse.open(home.path / "warehouse.duckdb") as wh:
        return entries(wh)


@pytest.mark.parametrize(
    ("kind", "subject", "why"),
    [
        ("verdicts", "night-01", "2 quarantine; 1 supersede"),
        ("edits", "night-01", "1 edits by memit on "),
        ("policy", "loose", "loose version 1 is the first policy that judges this lineage"),
        ("policy", "strict", "strict version 1 judges from here on; it was loose version 1"),
        ("key", "", "the first key of this lineage"),
        ("key", "", "signing.private_key is now this key; it was "),
        ("decision", "", "promote by loose version 1: all 1 rules are met."),
        ("decision", "", "reject by strict version 1: SR is "),
        ("promotion", "", "the gate let it pass: all 1 rules are met."),
        ("rejection", "", "SR is "),
        ("quarantine", "t01-002", "to release it"),
        ("quarantine", "t01-003", "to reject it"),
        ("rollback", "", "the third night was wrong"),
        ("revert", "revert-", "the first was wrong too"),
        ("export", "", "the tables were written as plain files"),
    ],
)
def test_an_event_is_in_the_trail_with_who_and_why(home: Home, kind: str, subject: str, why: str) -> None:
    found = [e for e in trail(home) if e.kind == kind and e.subject.startswith(subject) and why in e.reason]
    assert found, [(e.kind, e.subject, e.reason) for e in trail(home) if e.kind == kind]
    assert {e.actor for e in found} == {WHO}


def test_every_entry_says_who_and_why(home: Home) -> None:
    assert [(e.kind, e.subject) for e in trail(home) if not (e.actor and e.reason)] == []


def test_the_store_holds_the_same_trail(home: Home) -> None:
    chain = trail(home)
    assert read_mirrored(home.store, chain_id(chain)) == chain


def test_the_audit_of_all_of_it_finds_nothing(home: Home) -> None:
    report = audit(configure(home.config))
    assert report.breaks == ()
    assert (report.checkpoints, report.signatures) == (3, 3)
