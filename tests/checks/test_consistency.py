"""What reaches an editor never contradicts itself: the survey's eq. 3, and inverse and functional rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checks.judging.consistency import mutual_denials, read_logic, rival_targets
from tests.checks.nights import PROPERTIES, change, judged, outcomes, request, small_store
from warehouse.database.connection import Warehouse
from warehouse.nights.conflict_sql import MAX_EVIDENCE
from warehouse.records import EditRequest
from warehouse.world.changes import Change

ENTITIES = ("Q1", "Q3", "Q5", "Q6", "Q7", "Q9")
RELATIONS = ("P19", "P22", "P25", "P40", "P26", "P155", "P156")
#: Rules that a person may have waived for a record.
HELD = ("inverse_conflict", "contradiction_with_store", "contradiction_within_night", "logical_conflict", "low_trust",
        "retraction_without_replacement")  # fmt: skip


@pytest.fixture(scope="module")
def store() -> Iterator[Warehouse]:
    """The small store with a pair of strict inverses of which both hold one value."""
    with small_store() as opened:
        opened.append("properties", [
            {"pid": pid, "label": label, "cardinality": "single", "single_in_practice": True, "inverse_pid": other,
             "symmetric": False, "value_type": "any", "subject_type": "any", "temporal": False}
            for pid, label, other in (("P155", "follows", "P156"), ("P156", "followed by", "P155"))
        ])  # fmt: skip
        opened.append("templates", [
            {"relation": pid, "idx": 0, "prompt": "x {s}", "phrase": "x", "inverse": None} for pid in ("P155", "P156")
        ])  # fmt: skip
        yield opened


@st.composite
def nights(draw: st.DrawFn) -> tuple[list[Any], dict[str, frozenset[str]]]:
    """Any changes and requests over few entities, some of them released with any rule waived."""
    records: list[Any] = []
    for number in range(draw(st.integers(1, 10))):
        subject, target, old = (draw(st.sampled_from(ENTITIES)) for _ in range(3))
        relation = draw(st.sampled_from(RELATIONS))
        op = draw(st.sampled_from(["set_value", "add_statement", "remove_statement", "set_rank", "request"]))
        if op == "request":
            records.append(request(f"r{number}", f"E{subject}", f"E{target}", relation=relation, subject_id=subject,
                                   target_new_id=target, target_true=draw(st.sampled_from([None, f"E{old}"])),
                                   prompt=f"{relation} of E{subject} is"))  # fmt: skip
            continue
        records.append(change(
            f"r{number}", op, subject, relation, None if op == "add_statement" else old,
            None if op in ("remove_statement", "set_rank") else target, rank="deprecated" if op == "set_rank" else "normal",
            references=draw(st.integers(0, 1)), statement_id=draw(st.sampled_from(["S1", "S2", f"T{number}"])),
        ))  # fmt: skip
    numbers, rules = st.sampled_from(range(10)), st.sampled_from(HELD)
    waived = {f"r{number}": frozenset({rule}) for number, rule in draw(st.dictionaries(numbers, rules)).items()}
    return records, waived


def parts(edit: Change | EditRequest) -> tuple[str, str, str | None, str | None]:
    """Subject, relation, the value that goes and the value that comes."""
    if isinstance(edit, EditRequest):
        old = None if edit.target_true is None else edit.target_true.removeprefix("E")
        return edit.subject_id, edit.relation, old, edit.target_new_id
    return edit.subject.id, edit.relation, edit.old.id if edit.old else None, edit.new.id if edit.new else None


def inverses_of(relation: str) -> set[str]:
    if relation in ("P155", "P156"):
        return {"P155", "P156"} - {relation}
    stated = set((PROPERTIES[relation][2] or "").split("|")) - {""}
    return stated | {pid for pid, row in PROPERTIES.items() if relation in (row[2] or "").split("|")}


def contradictions(edits: list[tuple[str, str, str | None, str | None]]) -> list[Any]:
    """Brute force over all pairs, told apart from the code under test: by the definition and by nothing else."""
    single = {pid for pid, row in PROPERTIES.items() if row[1] == "single"} | {"P155", "P156"}
    found: list[Any] = []
    for s, p, _, o in edits:
        for t, q, gone, come in edits:
            if (s, p) == (t, q) and o is not None and come is not None and o != come:
                found.append(("eq 3", s, p, o, come))
            if o is not None and t == o and q in inverses_of(p) and gone == s and come != s:
                found.append(("denied inverse", s, p, o, q))
        inverses = inverses_of(p)
        if o is not None and inverses and inverses <= single:
            taken = [{c for t, q, _, c in edits if (t, q) == (o, inverse) and c is not None} for inverse in inverses]
            if all(values and s not in values for values in taken):
                found.append(("no place left", s, p, o))
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(night=nights())
def test_what_reaches_an_editor_does_not_contradict_itself(
    store: Warehouse, night: tuple[list[Any], Mapping[str, frozenset[str]]]
) -> None:
    records, waived = night
    assert contradictions([parts(edit) for edit in judged(store, records, waived=waived).edits]) == []


def test_the_brute_force_finds_each_kind_of_contradiction() -> None:
    assert contradictions([("Q1", "P19", None, "Q3"), ("Q1", "P19", None, "Q4")])[0][0] == "eq 3"
    assert contradictions([("Q1", "P22", "Q5", "Q9"), ("Q9", "P40", "Q1", "Q7")])[0][0] == "denied inverse"
    assert contradictions([("Q1", "P155", None, "Q3"), ("Q3", "P156", None, "Q5")])[0][0] == "no place left"


def test_two_released_records_that_deny_each_other_wait_again(store: Warehouse) -> None:
    night = [change("r1", "set_value", "Q1", "P22", "Q5", "Q9"), change("r2", "set_value", "Q9", "P40", "Q1", "Q7")]
    released = {i: frozenset({"inverse_conflict"}) for i in ("r1", "r2")}
    result = judged(store, night, waived=released)
    assert [(v.reason, v.rule) for v in result.verdicts] == [("inverse_conflict", "no_mutual_denial")] * 2
    assert outcomes(judged(store, night, waived={"r1": released["r1"]})) == {
        "r1": ("supersede", "newer_referenced_value"), "r2": ("quarantine", "inverse_conflict")
    }  # fmt: skip


def test_two_released_rivals_wait_again(store: Warehouse) -> None:
    night = [change(f"r{i}", "add_statement", "Q1", "P20", None, f"Q{i + 2}") for i in (1, 2)]
    released = {i: frozenset({"contradiction_within_night"}) for i in ("r1", "r2")}
    assert {v.rule for v in judged(store, night, waived=released).verdicts} == {"one_target_per_slot"}


def row(record_id: str, s: str, p: str, new: str, **other: Any) -> dict[str, Any]:
    fields = {"record_id": record_id, "subject_key": s, "relation": p, "new_key": new, "old_key": None,
              "replaced_key": None, "asserts": True, "is_closing": False, "single": True}  # fmt: skip
    return fields | other


def test_a_crowd_of_rivals_names_a_few() -> None:
    found = rival_targets([row(f"r{i:04}", "Q1", "P19", f"Q{i}") for i in range(500)])
    assert len(found) == 500 and {len(others) for others in found.values()} <= {MAX_EVIDENCE - 1, MAX_EVIDENCE}


def test_the_guard_reads_inverses_both_ways(store: Warehouse) -> None:
    logic = read_logic(store)
    assert logic.inverses["P22"] == {"P40"} and logic.inverses["P40"] == {"P22", "P25"} and "P155" in logic.single
    pair = [row("r1", "Q1", "P155", "Q3"), row("r2", "Q3", "P156", "Q5")]
    assert mutual_denials(pair, logic) == {"r1": ("r2",), "r2": ("r1",)}


def test_an_old_value_that_another_request_names_with_its_id_is_denied_by_it(store: Warehouse) -> None:
    """Nobody loses a father who is given that child tonight; the old value has a label alone."""
    asked = {"target_new_id": "Q1", "subject_id": "Q5", "target_true": "EQ7", "prompt": "P22 of EQ5 is"}
    father = request("r1", "EQ5", "EQ1", relation="P22", **asked)
    child = request("r2", "EQ7", "EQ5", relation="P40", subject_id="Q7", target_new_id="Q5", prompt="P40 of EQ7 is")
    assert contradictions([parts(edit) for edit in judged(store, [father, child]).edits]) == []
