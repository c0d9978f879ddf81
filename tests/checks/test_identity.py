"""What a record is about, whatever spelling it comes in; what may not be guessed waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from checks.door.identity import reused_records
from tests.checks.nights import LABELS, change, item, judged, outcomes, request, small_store
from warehouse.database.connection import Warehouse
from warehouse.records import EditRequest, UpdateRecord


@pytest.fixture
def store() -> Iterator[Warehouse]:
    with small_store() as opened:
        yield opened


ASKED = {
    "the id in lower case": {"subject_id": "q1"},
    "the id with a space": {"subject_id": "Q1 "},
    "the full URI": {"subject_id": "https://www.wikidata.org/entity/Q1"},
    "the label alone": {"subject_id": ""},
    "the label in another case": {"subject_id": "", "subject": "anna berg", "prompt": "anna berg was born in"},
    "the label with a no-break space": {"subject_id": "", "subject": "Anna\u00a0Berg", "prompt": "Anna\u00a0Berg was born in"},
    "the relation in lower case": {"subject_id": "Q1", "relation": "p19"},
    "the relation with its namespace": {"subject_id": "Q1", "relation": "Property:P19"},
    "the relation by its label": {"subject_id": "Q1", "relation": "place of birth"},
    "the relation by its label in another form": {"subject_id": "Q1", "relation": "Place_of_Birth"},
    "the relation by an alias": {"subject_id": "Q1", "relation": "birthplace"},
}


@pytest.mark.parametrize("fields", ASKED.values(), ids=ASKED)
def test_two_answers_for_one_slot_wait_however_the_second_is_written(store: Warehouse, fields: dict[str, Any]) -> None:
    first = request("u1", target="Oslo", subject_id="Q1")
    second = request("u2", target="Lima", **fields)
    waits = ("quarantine", "contradiction_within_night")
    assert outcomes(judged(store, [first, second])) == {"u1": waits, "u2": waits}


@pytest.mark.parametrize("fields", ASKED.values(), ids=ASKED)
def test_one_answer_asked_twice_is_one_edit_of_the_entity(store: Warehouse, fields: dict[str, Any]) -> None:
    result = judged(store, [request("u1", target="Oslo", subject_id="Q1"), request("u2", target="oslo", **fields)])
    assert outcomes(result)["u2"] == ("merge_duplicate", "same_triple_again")
    (edit,) = result.edits
    assert isinstance(edit, EditRequest)
    assert (edit.subject_id, edit.relation, edit.target_new_id) == ("Q1", "P19", "Q3")


def test_a_request_by_label_ends_what_the_store_holds_by_id(store: Warehouse) -> None:
    result = judged(store, [request("u1", target="Oslo", relation="place of birth")])
    assert result.ended_triples() == [("Q1", "P19", "Q2")]
    assert [(a.fact.subject_id, a.fact.relation, a.fact.object_id) for a in result.added] == [("Q1", "P19", "Q3")]


def test_a_label_of_two_entities_is_not_guessed(store: Warehouse) -> None:
    twin = change("r1", "add_statement", "Q9", "P20", None, "Q3").model_copy(
        update={"subject": change("r0", "add_statement", "Q9", "P20", None, "Q3").subject.model_copy(
            update={"id": "Q77", "label": "Anna Berg"})}
    )  # fmt: skip
    result = judged(store, [twin, request("u1", target="Lima"), request("u2", target="Lima", subject_id="Q1")])
    found = outcomes(result)
    assert found["u1"] == ("quarantine", "ambiguous_label") and found["u2"][0] == "accept"
    sentence = next(v.sentence for v in result.verdicts if v.record_id == "u1")
    assert "Q1, Q77" in sentence and "subject_id" in sentence


def test_a_person_may_let_an_ambiguous_label_pass(store: Warehouse) -> None:
    store.append("aliases", [{"entity_id": "Q500", "alias": "The Twin"}, {"entity_id": "Q501", "alias": "the twin"}])
    asked = request("u1", subject="The Twin", target="Lima")
    assert outcomes(judged(store, [asked]))["u1"] == ("quarantine", "ambiguous_label")
    assert outcomes(judged(store, [asked], waived={"u1": {"ambiguous_label"}}))["u1"][0] == "accept"


def test_a_label_goes_before_an_alias(store: Warehouse) -> None:
    store.append("aliases", [{"entity_id": "Q500", "alias": "Anna Berg"}, {"entity_id": "Q10", "alias": "Rosa V."}])
    result = judged(store, [request("u1", target="Lima"), request("u2", subject="rosa v.", target="Lima")])
    assert [edit.subject_id for edit in result.edits if isinstance(edit, EditRequest)] == ["Q1", "Q10"]


def test_a_subject_that_nobody_knows_goes_by_its_label(store: Warehouse) -> None:
    result = judged(store, [request("u1", subject="Nobody Known", target="Oslo"), request("u2", subject="nobody  known")])
    assert outcomes(result) == {"u1": ("accept", "requested_fact"), "u2": ("merge_duplicate", "same_triple_again")}


def test_relations_of_the_users_own_are_compared_as_words(store: Warehouse) -> None:
    asked = [request("u1", relation="mascotOf"), request("u2", relation="Mascot of", target="Lima")]
    assert {reason for _, reason in outcomes(judged(store, asked)).values()} == {"contradiction_within_night"}


def test_a_name_of_two_properties_is_not_guessed(store: Warehouse) -> None:
    store.append("aliases", [{"entity_id": "P19", "alias": "place"}, {"entity_id": "P20", "alias": "Place"}])
    assert outcomes(judged(store, [request("u1", relation="place")])) == {"u1": ("quarantine", "ambiguous_relation")}


def test_a_change_may_name_its_property_by_label(store: Warehouse) -> None:
    result = judged(store, [change("r1", "set_value", "Q1", "P19", "Q2", "Q3", relation="Place of birth")])
    assert outcomes(result) == {"r1": ("supersede", "newer_referenced_value")}


def test_an_earlier_request_by_label_is_about_the_same_slot(store: Warehouse) -> None:
    row = request("old", subject="Nobody Known", target="Oslo").model_dump()
    store.append("edit_requests", [row | {"night": "night-02", "content_digest": "x"}])
    named = request("u1", subject="Nobody Known", subject_id="Q900", target="Lima", target_new_id="Q4", target_true="Oslo")
    back = request("u2", subject="Nobody Known", target="Bern", target_true="Lima")
    result = judged(store, [named, back])
    assert outcomes(result)["u1"][0] != "accept"
    assert outcomes(judged(store, [named])) == {"u1": ("supersede", "requested_change")}


# ---------------------------------------------------------------- ids used twice


def test_one_request_id_for_two_contents_holds_these_two_and_no_other(store: Warehouse) -> None:
    asked = [request("same"), request("same", subject="Tom Lund", target="Lima"), request("u3", subject="Rosa Vik")]
    result = judged(store, asked, record_ids=["l1", "l2", "l3"])
    assert outcomes(result) == {
        "l1": ("quarantine", "record_id_reused"), "l2": ("quarantine", "record_id_reused"), "l3": ("accept", "requested_fact"),
    }  # fmt: skip
    assert result.verdicts[0].related == ("l2",)


def test_a_request_id_of_another_night_holds_its_record_alone(store: Warehouse) -> None:
    row = request("same", subject="Rosa Vik").model_dump()
    store.append("edit_requests", [row | {"night": "night-02", "content_digest": "x"}])
    result = judged(store, [request("same", target="Lima"), request("u2", subject="Tom Lund")], record_ids=["l1", "l2"])
    assert outcomes(result)["l1"] == ("quarantine", "record_id_reused") and outcomes(result)["l2"][0] == "accept"
    assert "night-02" in result.verdicts[0].sentence


def test_events_that_share_an_id_with_other_contents_all_wait() -> None:
    def record(name: str, raw: str) -> UpdateRecord:
        return UpdateRecord(record_id=name, source="recorded", night="n", received_at=None, raw=raw)

    one, two = '{"record_id": "a", "op": 1}', '{"record_id": "a", "op": 2}'
    found = reused_records([record("a", one), record("n-1", two), record("b", '{"record_id": "b"}')])
    assert set(found) == {"a", "n-1"} and found["a"].related == ("n-1",)
    assert set(reused_records([record("a~0123", two)])) == {"a~0123"}
    assert reused_records([record("a", one), record("n-2", one)]) == {}


# ---------------------------------------------------------------- what a label says of an unknown object


@pytest.mark.parametrize(
    ("pid", "label", "verdict"),
    [
        ("P19", "linebacker", "reject"), ("P19", "shot putter", "reject"), ("P19", "Linz", "supersede"),
        ("P22", "hockey stick", "reject"), ("P22", "Ove Berg", "supersede"), ("P413", "Paris", "reject"),
        ("P413", "left winger", "supersede"), ("P413", "Sweeper", "supersede"),
    ],
)  # fmt: skip
def test_an_object_of_which_nothing_is_known_is_typed_by_its_spelling(
    store: Warehouse, pid: str, label: str, verdict: str
) -> None:
    old = {"P19": "Q2", "P22": "Q5", "P413": "Q8"}[pid]
    result = judged(store, [change("r1", "set_value", "Q1", pid, old, item("Q900", label))])
    assert outcomes(result)["r1"][0] == verdict, result.verdicts[0].sentence
    if verdict == "reject":
        assert (result.verdicts[0].reason, result.verdicts[0].confidence) == ("type_violation", "soft")


def test_what_the_store_knows_is_not_typed_by_its_spelling(store: Warehouse) -> None:
    LABELS["Q90"] = "deadpan"
    store.append("facts", [{"fact_id": "f", "subject_id": "Q90", "subject": "deadpan", "relation": "P20", "object_id": "Q3",
                            "object": "Oslo", "source": "t", "known_from_night": ""}])  # fmt: skip
    result = judged(store, [change("r1", "set_value", "Q1", "P22", "Q5", item("Q90", "deadpan"))])
    assert outcomes(result)["r1"][0] == "supersede"
