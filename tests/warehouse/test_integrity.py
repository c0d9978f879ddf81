"""Integrity: a sound warehouse has no finding, and each kind of damage has its own."""

from __future__ import annotations

import pytest

from tests.warehouse.world import NIGHT, full_night
from warehouse.database.connection import Warehouse
from warehouse.records import Fact
from warehouse.upkeep.integrity import Finding, check
from warehouse.world.facts import apply_fact_changes
from warehouse.world.probes import make_probe_set, save_probe_set


@pytest.fixture
def sound():
    with Warehouse.open(":memory:") as wh:
        full_night(wh)
        wh.execute("INSERT INTO properties VALUES ('P19', 'place of birth', 'single', true, NULL, false, '', '', false)")
        apply_fact_changes(wh, NIGHT, [fact("Q1", "Q2")])
        yield wh


def fact(subject: str, obj: str) -> Fact:
    return Fact(subject_id=subject, subject="Ada", relation="P19", object_id=obj, object="Oslo", source="test")


def found(wh: Warehouse) -> set[tuple[str, str, str]]:
    return {(f.severity, f.check, f.table) for f in check(wh)}


def test_a_sound_warehouse_has_no_finding(sound: Warehouse) -> None:
    assert check(sound) == []


def test_an_empty_warehouse_has_no_finding() -> None:
    with Warehouse.open(":memory:") as wh:
        assert check(wh) == []


def test_a_set_that_was_made_empty_is_no_orphan(sound: Warehouse) -> None:
    """As the retain set of a lineage whose every edit was reverted."""
    save_probe_set(sound, make_probe_set("retain", []))
    assert check(sound) == []


REFERENCES = {
    "check of a server without checkpoint": (
        "INSERT INTO serving_checks VALUES ('main', 1, 'http://h/v1', 'm', 'gone', now(), 'agrees', '', '{}')",
        "serving_checks", "checkpoints gone",
    ),
    "verdict without record": ("DELETE FROM updates", "verdicts", "rec-a"),
    "verdict without request": ("UPDATE verdicts SET request_id = 'gone'", "verdicts", "gone"),
    "batch without request": ("DELETE FROM edit_requests", "batches", "req-a"),
    "edit without request": ("UPDATE edits SET request_id = 'gone'", "edits", "edit_requests gone"),
    "edit without batch": ("DELETE FROM batches", "edits", "batches batch-1"),
    "edit without patch": ("DELETE FROM patches", "edits", "patches patch-1"),
    "edit without checkpoint": ("UPDATE edits SET checkpoint_id = 'gone'", "edits", "checkpoints gone"),
    "edit superseded nowhere": (
        "UPDATE edits SET superseded_in = 'gone'", "edits", "checkpoints gone",
    ),
    "checkpoint without parent": ("UPDATE checkpoints SET parent = 'gone' WHERE parent <> ''", "checkpoints", "gone"),
    "checkpoint without patch": ("DELETE FROM patches", "checkpoints", "patches patch-1"),
    "head without checkpoint": ("UPDATE heads SET checkpoint_id = 'gone' WHERE seq = 2", "heads", "gone"),
    "head never promoted": ("UPDATE checkpoints SET verdict = 'reject' WHERE checkpoint_id = 'cp-1'", "heads", "cp-1"),
    "run without checkpoint": ("UPDATE runs SET checkpoint_id = 'gone'", "runs", "gone"),
    "probe without set": ("DELETE FROM probe_sets", "probes", "probe_sets"),
    "probe of a decided set without request": ("DELETE FROM edit_requests", "probes", "edit_requests req-a"),
    "report without probe set": ("DELETE FROM probe_sets", "reports", "probe_sets"),
    "report after nothing": ("UPDATE reports SET after = 'gone'", "reports", "checkpoints gone"),
    "report before nothing": ("UPDATE reports SET before = 'gone'", "reports", "checkpoints gone"),
    "scores without report": ("DELETE FROM reports", "scores", "report-1"),
    "decision without report": ("DELETE FROM reports", "decisions", "reports report-1"),
    "decision without policy": ("DELETE FROM policies", "decisions", "policies"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_to_nothing_is_found(sound: Warehouse, name: str) -> None:
    damage, table, text = REFERENCES[name]
    sound.execute(damage)
    findings = [f for f in check(sound) if f.check == "reference" and f.table == table and text in f.found]
    assert findings
    assert all(f.severity == "error" and f.advice and f.key for f in findings)


def test_a_fact_of_an_unknown_property_is_a_warning(sound: Warehouse) -> None:
    sound.execute("DELETE FROM properties")
    assert found(sound) == {("warning", "reference", "facts")}


DIGESTS = {
    "fact": ("UPDATE facts SET object = 'Rome'", {"facts"}),
    "request": ("UPDATE edit_requests SET target_new = 'Rome'", {"edit_requests"}),
    "request of no allowed kind": ("UPDATE edit_requests SET kind = 'guess'", {"edit_requests"}),
    "probe prompt": ("UPDATE probes SET prompt = 'Where?' WHERE kind = 'success'", {"probes"}),
    "probe left out of its set": ("DELETE FROM probes WHERE kind = 'success'", {"probe_sets"}),
    "probe of no allowed kind": ("UPDATE probes SET kind = 'guess' WHERE kind = 'success'", {"probes", "probe_sets"}),
    "policy": ("UPDATE policies SET body = replace(body::TEXT, '0.9', '0.1')::JSON", {"policies"}),
    "policy of no known shape": ("UPDATE policies SET body = '{}'", {"policies"}),
}


@pytest.mark.parametrize("name", DIGESTS)
def test_content_that_does_not_match_its_digest_is_found(sound: Warehouse, name: str) -> None:
    damage, tables = DIGESTS[name]
    sound.execute(damage)
    assert found(sound) == {("error", "digest", table) for table in tables}


def test_a_fact_believed_twice_at_once_is_found(sound: Warehouse) -> None:
    sound.execute("INSERT INTO facts SELECT * REPLACE ('copy' AS fact_id) FROM facts")
    assert ("error", "duplicate", "facts") in found(sound)


def test_a_fact_believed_again_later_is_no_duplicate(sound: Warehouse) -> None:
    apply_fact_changes(sound, "night-02", [], [("Q1", "P19", "Q2")])
    apply_fact_changes(sound, "night-03", [fact("Q1", "Q2")])
    assert check(sound) == []


def test_a_request_applied_twice_in_one_checkpoint_is_found(sound: Warehouse) -> None:
    sound.execute("INSERT INTO edits SELECT * REPLACE ('edit-2' AS edit_id) FROM edits")
    assert found(sound) == {("error", "duplicate", "edits")}


ORPHANS = {
    "probe_sets": "INSERT INTO probe_sets VALUES ('empty', 'night', 1, now())",
    "patches": "INSERT INTO patches VALUES ('unused', 'weight', 'memit', 1, '{}')",
    "edit_requests": "UPDATE verdicts SET request_id = NULL",
    "policies": "DELETE FROM decisions",
    "reports": "DELETE FROM scores",
}


@pytest.mark.parametrize("table", ORPHANS)
def test_an_orphan_is_a_warning(sound: Warehouse, table: str) -> None:
    sound.execute(ORPHANS[table])
    assert found(sound) == {("warning", "orphan", table)}


STATES = {
    "facts": "UPDATE facts SET known_to_night = known_from_night",
    "runs": "UPDATE runs SET finished_at = NULL",
    "checkpoints": "DELETE FROM heads WHERE seq = 1",
}


@pytest.mark.parametrize("table", STATES)
def test_an_impossible_state_is_found(sound: Warehouse, table: str) -> None:
    sound.execute(STATES[table])
    assert found(sound) == {("error", "state", table)}


def test_errors_come_before_warnings_and_say_what_to_do(sound: Warehouse) -> None:
    sound.execute("DELETE FROM properties")
    sound.execute("UPDATE runs SET checkpoint_id = 'gone'")
    assert check(sound)[0] == Finding(
        check="reference", severity="error", table="runs", key="night-01 / memit",
        found="names checkpoints gone, which is not stored",
        advice="run that night of that lineage to its end; if it is finished, restore the row from its manifest",
    )  # fmt: skip
    assert [f.severity for f in check(sound)] == ["error", "warning"]
