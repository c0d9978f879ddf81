"""Verdict rules of the update policy, each on the smallest night that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checks.judging.conflicts import RULES, noop_verdict
from tests.checks.nights import add_fact, change, item, judged, outcomes, request, small_store
from warehouse.database.connection import Warehouse
from warehouse.nights.conflicts import MIN_SHARED_ENTITIES
from warehouse.world.changes import Malformed


@pytest.fixture
def store() -> Iterator[Warehouse]:
    with small_store() as opened:
        yield opened


def set_(record_id: str, s: str, p: str, old: str, new: Any, **other: Any) -> Any:
    return change(record_id, "set_value", s, p, old, new, **other)


def add(record_id: str, s: str, p: str, new: Any, **other: Any) -> Any:
    return change(record_id, "add_statement", s, p, None, new, **other)


def remove(record_id: str, s: str, p: str, old: str, **other: Any) -> Any:
    return change(record_id, "remove_statement", s, p, old, None, **other)


ENDED = {"qualifiers": {"P582": ("+2026-09-15T00:00:00Z",)}}
NEW_ACCOUNT = {"editor_class": "newcomer", "patrolled": False}
DEPRECATED = {"rank": "deprecated"}
SAME = {"statement_id": "Q1$P19-base"}

CASES: dict[str, tuple[list[Any], dict[str, tuple[str, str]]]] = {
    "a replaced value supersedes": (
        [set_("r1", "Q1", "P19", "Q2", "Q3")], {"r1": ("supersede", "newer_referenced_value")}),
    "a fact for an empty slot is new": ([add("r1", "Q1", "P20", "Q3")], {"r1": ("accept", "new_fact")}),
    "a further value of a multi-valued property joins": (
        [add("r1", "Q1", "P413", "Q13")], {"r1": ("accept", "additional_value_of_multi_valued_property")}),
    "an ended value is not current": ([add("r1", "Q1", "P20", "Q3", **ENDED)], {"r1": ("reject", "not_current")}),
    "a value that ended at an unknown time is not current": (
        [add("r1", "Q1", "P20", "Q3", qualifiers={"P582": ["somevalue"]})], {"r1": ("reject", "not_current")}),
    "a value stated as deprecated is not current": (
        [add("r1", "Q1", "P20", "Q3", rank="deprecated")], {"r1": ("reject", "not_current")}),
    "a value of the future waits": (
        [add("r1", "Q1", "P20", "Q3", qualifiers={"P580": ("+2027-06-01T00:00:00Z",)})],
        {"r1": ("quarantine", "not_yet_valid")}),
    "the same event twice is one": (
        [set_("r1", "Q1", "P19", "Q2", "Q3", revision_new=1001),
         set_("r2", "Q1", "P19", "Q2", "Q3", revision_new=1001)],
        {"r1": ("supersede", "newer_referenced_value"), "r2": ("merge_duplicate", "redelivered_event")}),
    "the same triple on another statement is a duplicate": (
        [add("r1", "Q1", "P20", "Q3"), add("r2", "Q1", "P20", "Q3")],
        {"r1": ("accept", "new_fact"), "r2": ("merge_duplicate", "same_triple_again")}),
    "references for a value set tonight are a duplicate": (
        [set_("r1", "Q1", "P19", "Q2", "Q3"), set_("r2", "Q1", "P19", "Q3", "Q3", references=4)],
        {"r1": ("supersede", "newer_referenced_value"), "r2": ("merge_duplicate", "same_triple_again")}),
    "references for an old value change nothing": (
        [set_("r1", "Q1", "P19", "Q2", "Q2", references=4)], {"r1": ("reject", "no_change")}),
    "what the store holds is a duplicate": (
        [add("r1", "Q1", "P19", "Q2")], {"r1": ("merge_duplicate", "already_in_store")}),
    "only the last value of a chain counts": (
        [set_("r1", "Q1", "P19", "Q2", "Q3"), set_("r2", "Q1", "P19", "Q3", "Q4")],
        {"r1": ("reject", "superseded_within_night"), "r2": ("supersede", "newer_referenced_value")}),
    "a chain is ordered by revision, not by arrival": (
        [set_("r1", "Q1", "P19", "Q3", "Q4", revision_new=1009),
         set_("r2", "Q1", "P19", "Q2", "Q3", revision_new=1003)],
        {"r1": ("supersede", "newer_referenced_value"), "r2": ("reject", "superseded_within_night")}),
    "a chain that ends where it began is dropped": (
        [set_("r1", "Q1", "P19", "Q2", "Q3"), set_("r2", "Q1", "P19", "Q3", "Q2")],
        {"r1": ("reject", "reverted_same_night"), "r2": ("reject", "net_noop")}),
    "a statement added and removed again is dropped": (
        [add("r1", "Q1", "P20", "Q3", statement_id="S"), remove("r2", "Q1", "P20", "Q3", statement_id="S")],
        {"r1": ("reject", "reverted_same_night"), "r2": ("reject", "net_noop")}),
    "two values for one single-valued slot wait": (
        [add("r1", "Q1", "P20", "Q3"), add("r2", "Q1", "P20", "Q4")],
        {"r1": ("quarantine", "contradiction_within_night"), "r2": ("quarantine", "contradiction_within_night")}),
    "two values for a multi-valued slot are both fine": (
        [add("r1", "Q5", "P40", "Q7"), add("r2", "Q5", "P40", "Q9")],
        {"r1": ("accept", "additional_value_of_multi_valued_property"),
         "r2": ("accept", "additional_value_of_multi_valued_property")}),
    "two statements of one single-valued slot set apart wait": (
        [set_("r1", "Q1", "P19", "Q2", "Q3"), set_("r2", "Q1", "P19", "Q2", "Q4", statement_id="other")],
        {"r1": ("quarantine", "contradiction_within_night"), "r2": ("quarantine", "contradiction_within_night")}),
    "an unreferenced rival of the store's value waits": (
        [add("r1", "Q1", "P19", "Q3", references=0)], {"r1": ("quarantine", "contradiction_with_store")}),
    "an older revision than the applied one is stale": (
        [set_("r1", "Q1", "P19", "Q2", "Q3", revision_new=99)], {"r1": ("reject", "stale_revision")}),
    "a deprecation without replacement waits": (
        [change("r1", "set_rank", "Q1", "P19", "Q2", None, **DEPRECATED)],
        {"r1": ("quarantine", "retraction_without_replacement")}),
    "a removal without replacement waits": (
        [remove("r1", "Q1", "P19", "Q2")], {"r1": ("quarantine", "retraction_without_replacement")}),
    "a replacement absorbs the deprecation": (
        [change("r1", "set_rank", "Q1", "P19", "Q2", None, **DEPRECATED),
         add("r2", "Q1", "P19", "Q3", rank="preferred")],
        {"r1": ("merge_duplicate", "absorbed_by_replacement"),
         "r2": ("supersede", "preferred_rank_replaces_deprecated")}),
    "an end date and a new value replace, on a multi-valued slot too": (
        [change("r1", "add_qualifier", "Q1", "P413", "Q8", "Q8", **ENDED), add("r2", "Q1", "P413", "Q13")],
        {"r1": ("merge_duplicate", "absorbed_by_replacement"), "r2": ("supersede", "old_value_ended")}),
    "a closing does not rest on a replacement that waits": (
        [change("r1", "set_rank", "Q1", "P19", "Q2", None, **DEPRECATED),
         add("r2", "Q1", "P19", "Q3", references=0, **NEW_ACCOUNT)],
        {"r1": ("quarantine", "retraction_without_replacement"), "r2": ("quarantine", "low_trust")}),
    "a qualifier that ends nothing changes nothing": (
        [change("r1", "add_qualifier", "Q1", "P19", "Q2", "Q2", qualifiers={"P580": ("+2001-00-00T00:00:00Z",)})],
        {"r1": ("reject", "no_change")}),
    "an inverse that denies the statement stops both": (
        [set_("r1", "Q1", "P22", "Q5", "Q9"), set_("r2", "Q9", "P40", "Q1", "Q7")],
        {"r1": ("quarantine", "inverse_conflict"), "r2": ("quarantine", "inverse_conflict")}),
    "a parent for whom no place is left stops both": (
        [set_("r1", "Q1", "P22", "Q5", "Q9"), add("r2", "Q10", "P40", "Q1")],
        {"r1": ("quarantine", "inverse_conflict"), "r2": ("quarantine", "inverse_conflict")}),
    "an agreeing inverse pair is accepted with its retraction": (
        [set_("r1", "Q1", "P22", "Q5", "Q9"), add("r2", "Q9", "P40", "Q1"), remove("r3", "Q5", "P40", "Q1")],
        {"r1": ("supersede", "newer_referenced_value"), "r2": ("accept", "consistent_with_inverse"),
         "r3": ("accept", "inverse_retraction")}),
    "a marriage is told from both sides": (
        [add("r1", "Q9", "P26", "Q10"), add("r2", "Q10", "P26", "Q9")],
        {"r1": ("accept", "new_fact"), "r2": ("accept", "consistent_with_symmetric")}),
    "father, mother and spouse that no longer fit wait": (
        [set_("r1", "Q5", "P26", "Q6", "Q10"), set_("r2", "Q1", "P25", "Q6", "Q11")],
        {"r1": ("quarantine", "logical_conflict"), "r2": ("quarantine", "logical_conflict")}),
    "father, mother and spouse that move together are fine": (
        [set_("r1", "Q5", "P26", "Q6", "Q10"), set_("r2", "Q1", "P25", "Q6", "Q10")],
        {"r1": ("supersede", "newer_referenced_value"), "r2": ("supersede", "newer_referenced_value")}),
    "an unpatrolled newcomer without reference waits": (
        [set_("r1", "Q1", "P19", "Q2", "Q3", references=0, **NEW_ACCOUNT)], {"r1": ("quarantine", "low_trust")}),
    "a newcomer with a reference is heard": (
        [set_("r1", "Q1", "P19", "Q2", "Q3", **NEW_ACCOUNT)], {"r1": ("supersede", "newer_referenced_value")}),
    "a position is no place of birth": (
        [set_("r1", "Q1", "P19", "Q2", "Q8", statement_id="x")], {"r1": ("reject", "type_violation")}),
    "an entity that nobody has typed is not accused": (
        [set_("r1", "Q1", "P19", "Q2", item("Q77", "Atlantis"))], {"r1": ("supersede", "newer_referenced_value")}),
    "an unknown property waits": ([add("r1", "Q1", "P9999", "Q3")], {"r1": ("quarantine", "unknown_property")}),
    "garbage loses to its label before anything else": (
        [set_("r1", "Q1", "P19", "Q2", item("Q98", "\U0001f4a9"))], {"r1": ("reject", "malformed_label")}),
    "a chain that undoes garbage is no change": (
        [set_("r1", "Q1", "P19", "Q2", item("Q98", "null")), set_("r2", "Q1", "P19", item("Q98", "null"), "Q2")],
        {"r1": ("reject", "malformed_label"), "r2": ("reject", "net_noop")}),
    "requests for different answers wait, equal ones merge": (
        [request("u1"), request("u2", target="Lima"), request("u3", "Tom Lund"), request("u4", "Tom Lund")],
        {"u1": ("quarantine", "contradiction_within_night"), "u2": ("quarantine", "contradiction_within_night"),
         "u3": ("accept", "requested_fact"), "u4": ("merge_duplicate", "same_triple_again")}),
    "a request for what it replaces is no change": (
        [request("u1", target="Oslo", target_true="oslo")], {"u1": ("reject", "no_change")}),
    "a request and a change of one slot with different answers wait": (
        [request("u1", target="Oslo", subject_id="Q1", target_new_id="Q3"), set_("r1", "Q1", "P19", "Q2", "Q4")],
        {"u1": ("quarantine", "contradiction_within_night"), "r1": ("quarantine", "contradiction_within_night")}),
    "what cannot be read is rejected with its own reason": (
        [Malformed(record_id="m1", reason="undecodable", sentence="it is not JSON")],
        {"m1": ("reject", "undecodable")}),
    "one id for two contents waits, one record twice is one": (
        [add("r1", "Q1", "P20", "Q3"), add("r1", "Q1", "P20", "Q4"),
         add("r2", "Q5", "P40", "Q7"), add("r2", "Q5", "P40", "Q7")],
        {"r1": ("quarantine", "record_id_reused"), "r2": ("accept", "additional_value_of_multi_valued_property")}),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared_store() -> Iterator[Warehouse]:
    """For tests that only read; opening a store is the slow part of the others."""
    with small_store() as opened:
        yield opened


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str, shared_store: Warehouse) -> None:
    changes, expected = CASES[name]
    assert outcomes(judged(shared_store, changes)) == expected


def test_every_rule_name_is_used_once() -> None:
    names = [rule.name for rule in RULES]
    assert len(names) == len(set(names))


def test_going_back_to_a_value_of_an_earlier_night_is_a_rollback(store: Warehouse) -> None:
    add_fact(store, "Q10", "P19", "Q2", revision=10, until="night-01")
    add_fact(store, "Q10", "P19", "Q3", revision=900, night="night-01")
    result = judged(store, [set_("r1", "Q10", "P19", "Q3", "Q2")])
    assert outcomes(result) == {"r1": ("supersede", "rollback_to_original")}
    assert result.ended_triples() == [("Q10", "P19", "Q3")]


def test_replacing_a_value_of_an_earlier_night_says_so(store: Warehouse) -> None:
    add_fact(store, "Q10", "P19", "Q3", revision=900, night="night-01")
    assert outcomes(judged(store, [set_("r1", "Q10", "P19", "Q3", "Q2")])) == {"r1": ("supersede", "newer_than_earlier_night")}


def test_an_event_of_an_earlier_night_delivered_again_is_a_duplicate(store: Warehouse) -> None:
    add_fact(store, "Q10", "P19", "Q3", revision=900, night="night-01")
    again = set_("r1", "Q10", "P19", "Q2", "Q3", revision_new=900)
    assert outcomes(judged(store, [again])) == {"r1": ("merge_duplicate", "redelivered_event")}


def test_a_claim_of_an_earlier_night_does_not_type_an_entity(store: Warehouse) -> None:
    add_fact(store, "Q10", "P413", "Q4", revision=900, night="night-01")
    add_fact(store, "Q11", "P413", "Q7", revision=900, night="night-01")
    assert outcomes(judged(store, [set_("r1", "Q1", "P19", "Q2", "Q7")]))["r1"][1] == "newer_referenced_value"


def test_roles_that_share_enough_entities_are_compatible(store: Warehouse) -> None:
    add_fact(store, "Q10", "P413", "Q12")
    positions = ("Q2", "Q3", "Q4")
    assert len(positions) == MIN_SHARED_ENTITIES
    swap = [set_("r1", "Q1", "P413", "Q8", item("Q4"), statement_id="x")]
    assert outcomes(judged(store, swap))["r1"] == ("reject", "type_violation")
    for subject, place in zip(("Q5", "Q6", "Q7"), positions, strict=True):
        add_fact(store, subject, "P413", place)
        add_fact(store, subject, "P19", place)
    wider = [set_("r1", "Q1", "P413", "Q8", item("Q9", "Tom Lund"), statement_id="x"),
             set_("r2", "Q9", "P19", "Q3", "Q13", statement_id="y")]  # fmt: skip
    assert outcomes(judged(store, wider)) == {
        "r1": ("reject", "type_violation"), "r2": ("supersede", "newer_referenced_value")
    }  # fmt: skip


def test_a_property_without_template_waits_unless_templates_are_not_asked_for(store: Warehouse) -> None:
    store.execute("DELETE FROM templates WHERE relation = 'P20'")
    changes = [add("r1", "Q1", "P20", "Q3")]
    assert outcomes(judged(store, changes)) == {"r1": ("quarantine", "no_template")}
    assert outcomes(judged(store, changes, require_templates=False)) == {"r1": ("accept", "new_fact")}


def test_a_closing_waits_when_its_replacement_has_no_template(store: Warehouse) -> None:
    store.execute("DELETE FROM templates WHERE relation = 'P19'")
    result = judged(store, [change("r1", "set_rank", "Q1", "P19", "Q2", None, **DEPRECATED), add("r2", "Q1", "P19", "Q3")])
    assert outcomes(result) == {
        "r1": ("quarantine", "retraction_without_replacement"), "r2": ("quarantine", "no_template")
    }  # fmt: skip


def test_a_chain_is_edited_from_the_value_that_the_store_held(store: Warehouse) -> None:
    result = judged(store, [set_("r1", "Q1", "P19", "Q2", "Q3"), set_("r2", "Q1", "P19", "Q3", "Q4")])
    (edit,) = result.edits
    assert edit.old is not None and (edit.old.id, edit.old.label) == ("Q2", "Bern")
    assert [(a.fact.object, a.statement_id, a.revision) for a in result.added] == [("Lima", "Q1$P19-base", 1002)]
    assert result.ended_triples() == [("Q1", "P19", "Q2")]


def test_of_several_new_values_of_a_multi_valued_slot_one_is_edited_and_all_are_stored(store: Warehouse) -> None:
    result = judged(store, [add("r1", "Q5", "P40", "Q7"), add("r2", "Q5", "P40", "Q9")])
    assert result.accepted_ids == ("r1", "r2") and result.edit_ids == ("r2",)
    assert [a.fact.object_id for a in result.added] == ["Q7", "Q9"] and result.ended == ()


def test_related_records_are_the_evidence(store: Warehouse) -> None:
    result = judged(store, [add("r1", "Q1", "P20", "Q3"), add("r2", "Q1", "P20", "Q4")])
    assert [v.related for v in result.verdicts] == [("r2",), ("r1",)]


def test_composite_and_trust_verdicts_are_soft(store: Warehouse) -> None:
    soft = [
        set_("r1", "Q5", "P26", "Q6", "Q10"),
        set_("r2", "Q1", "P25", "Q6", "Q11"),
        set_("r3", "Q9", "P19", "Q3", "Q4"),
    ]
    assert [v.confidence for v in judged(store, soft).verdicts] == ["soft", "soft", "hard"]


def test_verdicts_of_requests_stand_under_their_update_record(store: Warehouse) -> None:
    (verdict,) = judged(store, [request("u1")], record_ids=["file:1"]).verdicts
    assert (verdict.record_id, verdict.request_id) == ("file:1", "u1")


def test_an_empty_night_is_no_error(store: Warehouse) -> None:
    assert judged(store, []).verdicts == ()


def test_the_store_is_only_read(store: Warehouse) -> None:
    before = store.rows("SELECT * FROM facts ORDER BY ALL")
    judged(store, [set_("r1", "Q1", "P19", "Q2", "Q3"), remove("r2", "Q5", "P40", "Q1")])
    assert store.rows("SELECT * FROM facts ORDER BY ALL") == before


def test_a_noop_verdict_names_the_request_and_edits_nothing() -> None:
    verdict = noop_verdict(request("u1"), record_id="file:1")
    assert (verdict.verdict, verdict.reason, verdict.request_id) == ("merge_duplicate", "already_known_to_model", "u1")


# ---------------------------------------------------------------- any night

_IDS = st.sampled_from(["Q1", "Q2", "Q3", "Q5", "Q9"])
_STATEMENTS = st.sampled_from(["S1", "S2", ""])


@st.composite
def _records(draw: st.DrawFn) -> Any:
    number = draw(st.integers(1, 12))
    if draw(st.integers(0, 4)) == 0:
        return request(f"u{number}", target=draw(st.sampled_from(["Oslo", "Lima", ""])), subject_id=draw(_IDS),
                       kind=draw(st.sampled_from(["insert", "modify", "erase"])))  # fmt: skip
    op = draw(st.sampled_from(["set_value", "add_statement", "remove_statement", "set_rank", "add_qualifier"]))
    old = None if op == "add_statement" else draw(st.none() | _IDS)
    new = None if op in ("remove_statement", "set_rank") else draw(st.none() | _IDS)
    return change(
        f"r{number}", op, draw(_IDS), draw(st.sampled_from(["P19", "P22", "P25", "P40", "P26", "P413"])), old, new,
        statement_id=draw(_STATEMENTS), revision_new=draw(st.none() | st.integers(90, 120)),
        references=draw(st.integers(0, 1)), patrolled=draw(st.booleans()),
        editor_class=draw(st.sampled_from(["newcomer", "bot"])),
        rank=draw(st.sampled_from(["deprecated", "preferred"])),
        qualifiers=draw(st.sampled_from([{}, {"P582": ("+2020-00-00T00:00:00Z",)}])),
    )  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(night=st.lists(_records(), max_size=12))
def test_any_night_gives_one_verdict_a_record_and_one_target_a_slot(shared_store: Warehouse, night: list[Any]) -> None:
    result = judged(shared_store, night)
    given_ids = {getattr(r, "record_id", None) or r.request_id for r in night}
    assert sorted(v.record_id for v in result.verdicts) == sorted(given_ids)
    accepted = {v.record_id for v in result.verdicts if v.verdict in ("accept", "supersede")}
    assert set(result.accepted_ids) == accepted and set(result.edit_ids) <= accepted
    stored: dict[tuple[str, str], set[str]] = {}
    for addition in result.added:
        slot = (addition.fact.subject_id, addition.fact.relation)
        stored.setdefault(slot, set()).add(addition.fact.object_id)
    assert all(len(targets) == 1 for (_, p), targets in stored.items() if p in ("P19", "P22", "P25"))
    slots = [(getattr(e, "subject_id", None) or e.subject.id, e.relation) for e in result.edits]
    assert len(slots) == len(set(slots))
    assert not {(a.fact.subject_id, a.fact.relation, a.fact.object_id) for a in result.added} & set(result.ended_triples())
