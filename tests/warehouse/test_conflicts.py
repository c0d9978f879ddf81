"""Conflict columns: what the SQL says about records of a night, before any rule reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from checks.judging.requests import record_rows
from tests.checks.nights import NOW, add_fact, change, item, small_store
from warehouse.database.connection import Warehouse
from warehouse.nights.conflicts import MAX_EVIDENCE, conflict_columns, slot_labels


@pytest.fixture
def store() -> Iterator[Warehouse]:
    with small_store() as opened:
        yield opened


def columns(store: Warehouse, *changes: Any, evidence: pd.DataFrame | None = None) -> dict[str, dict[str, Any]]:
    frame = record_rows([(c.record_id, c) for c in changes], NOW)
    return {row["record_id"]: row for row in conflict_columns(store, frame, NOW, evidence)}


def test_a_quiet_replacement_has_no_conflict(store: Warehouse) -> None:
    row = columns(store, change("r1", "set_value", "Q1", "P19", "Q2", "Q3"))["r1"]
    flags = ("type_conflict", "in_store", "stale", "contradicts_store", "low_trust", "is_addition", "held_before")
    assert [row[name] for name in flags] == [False] * len(flags)
    assert (row["live"], row["is_open"], row["replaced_key"], row["slot_objects"]) == (True, True, "Q2", "Q2")


def test_the_end_of_a_chain_knows_its_start_and_its_records(store: Warehouse) -> None:
    rows = columns(
        store, change("r1", "set_value", "Q1", "P19", "Q2", "Q3"), change("r2", "set_value", "Q1", "P19", "Q3", "Q4")
    )
    assert (rows["r2"]["chain"], rows["r2"]["replaced_key"], rows["r2"]["chain_of"]) == ("final", "Q2", "r1 r2")
    assert (rows["r1"]["chain"], rows["r1"]["live"]) == ("superseded", False)


def test_records_of_one_slot_without_statement_id_are_no_chain(store: Warehouse) -> None:
    rows = columns(store, *(change(f"r{i}", "add_statement", "Q1", "P20", None, f"Q{i + 1}", statement_id="") for i in (1, 2)))
    assert [row["chain"] for row in rows.values()] == ["alone", "alone"]
    assert rows["r1"]["contradicts"] == "r2" and rows["r2"]["contradicts"] == "r1"


def test_a_fact_that_has_ended_is_not_in_the_store(store: Warehouse) -> None:
    store.execute("UPDATE facts SET valid_to = TIMESTAMPTZ '2020-01-01' WHERE relation = 'P20'")
    assert not columns(store, change("r1", "add_statement", "Q10", "P20", None, "Q4"))["r1"]["in_store"]


def test_a_deprecated_fact_does_not_fill_its_slot(store: Warehouse) -> None:
    store.execute("UPDATE facts SET \"rank\" = 'deprecated' WHERE relation = 'P20'")
    assert columns(store, change("r1", "add_statement", "Q10", "P20", None, "Q3", references=0))["r1"]["num_kept"] == 0


def test_history_tells_a_value_that_was_held_before(store: Warehouse) -> None:
    add_fact(store, "Q10", "P19", "Q2", revision=10, until="night-01")
    add_fact(store, "Q10", "P19", "Q3", revision=900, night="night-01")
    row = columns(store, change("r1", "set_value", "Q10", "P19", "Q3", "Q2"))["r1"]
    assert row["held_before"] and row["changed_before"]


def test_evidence_from_outside_types_an_entity_that_the_store_has_not_seen(store: Warehouse) -> None:
    swap = change("r1", "set_value", "Q1", "P19", "Q2", "Q11", statement_id="x")
    assert not columns(store, swap)["r1"]["type_conflict"]
    evidence = pd.DataFrame({"subject_id": ["Q5"], "relation": ["P413"], "object_id": ["Q11"]})
    assert columns(store, swap, evidence=evidence)["r1"]["type_conflict"]


def test_a_removal_whose_inverse_moved_on_an_earlier_night_knows_it(store: Warehouse) -> None:
    add_fact(store, "Q7", "P22", "Q5", until="night-01")
    add_fact(store, "Q7", "P22", "Q9", revision=900, night="night-01")
    row = columns(store, change("r1", "remove_statement", "Q5", "P40", "Q7", None))["r1"]
    assert row["inverse_moved"] == "store"


def test_slot_labels_name_what_the_slots_hold(store: Warehouse) -> None:
    slots = pd.DataFrame({"subject_key": ["Q1"], "relation": ["P19"]})
    assert slot_labels(store, slots) == {("Q1", "P19", "Q2"): "Bern"}


def test_a_frame_with_a_missing_column_or_a_repeated_id_is_refused(store: Warehouse) -> None:
    frame = record_rows([("r1", change("r1", "set_value", "Q1", "P19", "Q2", "Q3"))], NOW)
    with pytest.raises(ValueError, match="lacks columns"):
        conflict_columns(store, frame.drop(columns="revision"), NOW)
    with pytest.raises(ValueError, match="several rows"):
        conflict_columns(store, pd.concat([frame, frame]), NOW)


# ---------------------------------------------------------------- the ledger of past edits


def test_an_edit_of_an_earlier_night_denies_what_takes_its_inverse_away(store: Warehouse) -> None:
    add_fact(store, "Q7", "P22", "Q9", revision=900, night="night-01")
    denied = change("r1", "set_value", "Q9", "P40", "Q7", "Q11")
    assert columns(store, denied)["r1"]["inverse_conflict"] == "store"
    moved = change("r2", "set_value", "Q7", "P22", "Q9", "Q5", statement_id="x")
    assert columns(store, denied, moved)["r1"]["inverse_conflict"] is None


def test_a_fact_that_was_always_there_denies_nothing(store: Warehouse) -> None:
    add_fact(store, "Q7", "P22", "Q9", revision=50)
    assert columns(store, change("r1", "set_value", "Q9", "P40", "Q7", "Q11"))["r1"]["inverse_conflict"] is None


def test_a_parent_for_whom_an_earlier_night_left_no_place_is_a_conflict(store: Warehouse) -> None:
    late = change("r1", "add_statement", "Q10", "P40", None, "Q1")
    assert columns(store, late)["r1"]["inverse_conflict"] is None
    store.execute("UPDATE facts SET known_from_night = 'night-01' WHERE subject_id = 'Q1' AND relation = 'P22'")
    assert columns(store, late)["r1"]["inverse_conflict"] == "store"


def test_a_spouse_of_an_earlier_night_does_not_fit_another_mother_now(store: Warehouse) -> None:
    store.execute("UPDATE facts SET known_to_night = 'night-01' WHERE relation = 'P26'")
    add_fact(store, "Q5", "P26", "Q10", revision=900, night="night-01")
    other, same = (change("r1", "set_value", "Q1", "P25", "Q6", new, statement_id="x") for new in ("Q11", "Q10"))
    assert columns(store, other)["r1"]["composite_conflict"] == "store"
    assert columns(store, same)["r1"]["composite_conflict"] is None


def test_a_value_outside_the_only_ones_of_a_property_is_a_type_conflict(store: Warehouse) -> None:
    store.append("property_values", [{"pid": "P413", "object_id": "Q8"}, {"pid": "P413", "object_id": "Q13"}])
    rows = columns(
        store, change("r1", "add_statement", "Q5", "P413", None, "Q12"), change("r2", "add_statement", "Q6", "P413", None, "Q8")
    )
    assert [row["type_conflict"] for row in rows.values()] == [True, False]


# ---------------------------------------------------------------- many records


def test_evidence_is_the_same_as_that_of_all_pairs(store: Warehouse) -> None:
    night = [change(f"r{i}", "add_statement", f"Q{s}", "P20", None, f"Q{o}", statement_id=f"S{i}")
             for i, (s, o) in enumerate([(1, 2), (1, 3), (1, 2), (5, 3), (5, 4), (6, 2), (1, 4)])]  # fmt: skip
    live = {record_id: row for record_id, row in columns(store, *night).items() if row["live"]}
    for record_id, row in live.items():
        rivals = {
            i for i, other in live.items() if other["subject_key"] == row["subject_key"] and other["new_key"] != row["new_key"]
        }
        assert set((row["contradicts"] or "").split()) == rivals, record_id


@pytest.mark.parametrize("shape", ["one slot", "one statement"])
def test_thousands_of_records_of_one_slot_are_compared_in_seconds(store: Warehouse, shape: str) -> None:
    num = 6_000
    night = [
        change(f"r{i}", "add_statement" if shape == "one slot" else "set_value", "Q1", "P20",
               None if shape == "one slot" else item(f"Q9{i}", "x"), item(f"Q9{i + 1}", "x"),
               statement_id=f"S{i}" if shape == "one slot" else "S")
        for i in range(num)
    ]  # fmt: skip
    frame = record_rows([(c.record_id, c) for c in night], NOW)
    started = time.process_time()
    rows = conflict_columns(store, frame, NOW)
    # Compared pair by pair, four thousand took 4 s; the clock is that of this process alone.
    assert time.process_time() - started < 3.0
    named = [row["contradicts"] if shape == "one slot" else row["chain_of"] for row in rows]
    assert all(text and len(text.split()) <= MAX_EVIDENCE for text in named)
