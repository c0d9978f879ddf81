"""Reading of update records."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.records import EditRequest, UpdateRecord
from warehouse.sources.base import MAX_RECORD_BYTES
from warehouse.sources.recorded import RecordedSource
from warehouse.world.changes import Change, Malformed, Value, parse_change

EVENT: dict[str, Any] = {
    "record_id": "n01-004", "night": 1, "received_at": "2026-10-01T22:08:06Z", "op": "set_value",
    "subject": {"id": "Q1", "label": "Ada {s} Byron"}, "property": {"id": "P19", "label": "place of birth"},
    "old_value": {"type": "item", "id": "Q84", "label": "London"},
    "new_value": {"type": "item", "id": "Q90", "label": "Paris"},
    "rank": "normal", "qualifiers": {"P580": ["+2009-00-00T00:00:00Z"]}, "references": 1, "statement_id": "Q1$A",
    "editor": {"class": "bot", "patrolled": True}, "comment": "c", "tags": ["mw-undo"],
    "revision": {"old": 5, "new": 6},
}  # fmt: skip
REQUEST = {"prompt": "Ada was born in", "subject": "Ada", "relation": "P19", "target_new": "Paris"}


def record(raw: str, source: str = "recorded") -> UpdateRecord:
    return UpdateRecord(record_id="r1", source=source, night="night-01", received_at=None, raw=raw)


def parse(item: Any, source: str = "recorded") -> Change | EditRequest | Malformed:
    return parse_change(record(json.dumps(item), source))


def malformed(item: Any) -> Malformed:
    found = parse(item)
    assert isinstance(found, Malformed)
    return found


def test_an_event_becomes_a_change_with_every_field() -> None:
    change = parse(EVENT)
    assert isinstance(change, Change)
    assert change.received_at == datetime(2026, 10, 1, 22, 8, 6, tzinfo=UTC)
    assert (change.subject.label, change.relation, change.editor_class) == ("Ada {s} Byron", "P19", "bot")
    assert change.new == Value(type="item", id="Q90", label="Paris")
    assert change.qualifiers == {"P580": ("+2009-00-00T00:00:00Z",)}
    assert (change.revision_old, change.revision_new, change.tags) == (5, 6, ("mw-undo",))


def test_every_embedded_record_is_a_change_of_its_own_night() -> None:
    source = RecordedSource()
    found = [(night, parse_change(r)) for night in source.nights() for r in source.records(night)]
    assert len(found) == 384
    assert all(isinstance(change, Change) and change.night == night for night, change in found)


def test_an_unknown_editor_is_not_patrolled() -> None:
    change = parse({key: value for key, value in EVENT.items() if key != "editor"})
    assert isinstance(change, Change) and change.editor_class == "unknown" and not change.patrolled


def test_a_null_label_is_an_empty_one_for_the_policy_to_judge() -> None:
    change = parse({**EVENT, "new_value": {"type": "item", "id": "Q90", "label": None}})
    assert isinstance(change, Change) and change.new == Value(type="item", id="Q90")


@pytest.mark.parametrize("field", ["received_at", "op", "subject", "property", "old_value", "new_value"])
def test_a_missing_field_is_named(field: str) -> None:
    found = malformed({key: value for key, value in EVENT.items() if key != field})
    assert found.reason == "malformed_record"
    assert f"'{field}'" in found.sentence


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"op": "explode"}, "op"),
        ({"subject": {"id": 7, "label": "x"}}, "subject.id"),
        ({"subject": "Q1"}, "subject"),
        ({"new_value": {"type": "item", "label": "no id"}}, "new_value.id"),
        ({"new_value": {"type": "planet"}}, "new_value"),
        ({"references": "1"}, "references"),
        ({"references": 2**63}, "references"),
        ({"editor": {"class": "bot", "patrolled": "yes"}}, "editor.patrolled"),
        ({"qualifiers": {"P580": "2009"}}, "qualifiers.P580"),
        ({"revision": {"old": 1.5, "new": 2}}, "revision.old"),
        ({"received_at": "yesterday"}, "received_at"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(change: dict[str, Any], field: str) -> None:
    found = malformed({**EVENT, **change})
    assert found.reason == "malformed_record"
    assert f"'{field}'" in found.sentence


@pytest.mark.parametrize("raw", [json.dumps(EVENT)[:200], "", "\\xff", "[" * 5000, '{"op": NaN}', '{"op": "\\ud800"}'])
def test_broken_json_is_undecodable(raw: str) -> None:
    found = parse_change(record(raw))
    assert isinstance(found, Malformed) and found.reason == "undecodable"


@pytest.mark.parametrize("raw", ["[]", "3", "null", '"text"', "{}"])
def test_json_that_is_no_record_is_malformed(raw: str) -> None:
    found = parse_change(record(raw))
    assert isinstance(found, Malformed) and found.reason == "malformed_record"


def test_a_ten_megabyte_string_is_too_large() -> None:
    found = parse_change(record(json.dumps({**EVENT, "comment": "x" * 10_000_000})))
    assert isinstance(found, Malformed) and found.reason == "too_large"
    assert len(found.sentence) < 300


def test_the_size_limit_counts_bytes_and_is_inclusive() -> None:
    base = json.dumps({**EVENT, "comment": ""}, ensure_ascii=False)
    room = MAX_RECORD_BYTES - len(base.encode())
    fits = json.dumps({**EVENT, "comment": "é" * (room // 2) + "x" * (room % 2)}, ensure_ascii=False)
    assert isinstance(parse_change(record(fits)), Change)
    above = parse_change(record(fits.replace('"comment": "', '"comment": "x')))
    assert isinstance(above, Malformed) and above.reason == "too_large"


def test_a_users_request_gets_id_source_and_kind() -> None:
    first, again = parse(REQUEST, "requests"), parse(REQUEST, "requests")
    assert isinstance(first, EditRequest) and first == again
    assert (first.kind, first.source) == ("insert", "requests") and first.request_id
    modified = parse({**REQUEST, "target_true": "London"}, "requests")
    assert isinstance(modified, EditRequest) and modified.kind == "modify"


@pytest.mark.parametrize(
    ("change", "field"),
    [({"target_new": 5}, "target_new"), ({"targetnew": "x"}, "targetnew"), ({"rephrases": "x"}, "rephrases")],
)
def test_a_wrong_field_of_a_users_request_is_named(change: dict[str, Any], field: str) -> None:
    found = parse({**REQUEST, **change}, "requests")
    assert isinstance(found, Malformed) and f"'{field}'" in found.sentence


@pytest.mark.parametrize("item", [EVENT | {"references": 0}, {**REQUEST, "kind": "insert"}])
def test_a_number_of_many_digits_does_not_raise(item: dict[str, Any]) -> None:
    raw = json.dumps(item)[:-1] + ', "revision": {"old": ' + "9" * 20_000 + "}}"
    assert isinstance(parse_change(record(raw)), Malformed)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
SOURCES = st.sampled_from(["recorded", "requests", "knowedit:ZsRE", "knowedit:convsent", "knowedit:nothing"])


@settings(max_examples=120, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet='{}[]":,0n', max_size=30), SOURCES)
def test_no_text_makes_it_raise(raw: str, source: str) -> None:
    assert isinstance(parse_change(record(raw, source)), Malformed)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*EVENT, *REQUEST, "target_true"]), JSON), SOURCES, st.booleans())
def test_no_json_makes_it_raise(broken: dict[str, Any], source: str, on_event: bool) -> None:
    item = {**(EVENT if on_event else REQUEST), **broken}
    assert isinstance(parse(item, source), Change | EditRequest | Malformed)


# ---------------------------------------------------------------- one form for everything that has two spellings


def asked(**fields: Any) -> EditRequest:
    found = parse({**REQUEST, **fields}, "requests")
    assert isinstance(found, EditRequest), found
    return found


@pytest.mark.parametrize("written", ["p19", "P19 ", "Property:P19", "wdt:P19", "http://www.wikidata.org/prop/direct/P19"])
def test_a_request_names_its_relation_in_one_form(written: str) -> None:
    assert asked(relation=written).relation == "P19"


def test_a_request_names_its_entities_in_one_form() -> None:
    found = asked(subject_id="https://www.wikidata.org/wiki/Q7259#P19", target_new_id=" wd:q90 ")
    assert (found.subject_id, found.target_new_id) == ("Q7259", "Q90")


@pytest.mark.parametrize("written", ["nan", "N/A", "#REF!", "NULL", "-", "", " ", None])
def test_an_id_that_a_frame_left_empty_is_missing(written: str | None) -> None:
    found = asked(subject_id=written, request_id=written)
    assert found.subject_id == "" and found.request_id.startswith("rq-")


def test_a_number_is_an_id_of_a_request() -> None:
    assert asked(request_id=17).request_id == "17"


def test_null_in_a_field_that_may_be_left_out_is_left_out() -> None:
    found = asked(target_true=None, rephrases=None, received_at=None, kind=None)
    assert (found.target_true, found.rephrases, found.kind) == (None, (), "insert")


def test_texts_of_a_request_are_composed_and_plainly_spaced() -> None:
    found = asked(subject="Zoe\u0308\u00a0Berg", prompt="Zo\u00eb  Berg\u00a0was born in ", target_new=" Paris\u202f")
    assert (found.subject, found.prompt, found.target_new) == ("Zo\u00eb Berg", "Zo\u00eb Berg was born in", "Paris")


def test_an_event_names_its_entities_in_one_form() -> None:
    found = parse({
        **EVENT, "subject": {"id": "q1", "label": "Ada\u00a0Byron"}, "property": {"id": "Property:P19", "label": "x"},
        "new_value": {"type": "item", "id": "http://www.wikidata.org/entity/Q90", "label": " Paris"},
        "old_value": {"type": "item", "id": "Q84 ", "label": "London"}, "qualifiers": {"pq:P580": ["+2009-00-00T00:00:00Z"]},
    })  # fmt: skip
    assert isinstance(found, Change) and found.old is not None and found.new is not None
    assert (found.subject.id, found.subject.label, found.relation) == ("Q1", "Ada Byron", "P19")
    assert (found.old.id, found.new.id, found.new.label, list(found.qualifiers)) == ("Q84", "Q90", "Paris", ["P580"])


def test_a_record_of_a_request_file_is_a_request_whatever_else_it_holds() -> None:
    found = parse({**REQUEST, "property": "P19"}, "requests")
    assert isinstance(found, Malformed) and "'property'" in found.sentence


# ---------------------------------------------------------------- times over the edge


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-05:00", "0001-01-01T00:30:00+00:31"])
@pytest.mark.parametrize("source", ["recorded", "requests"])
def test_a_moment_that_utc_does_not_have_is_the_fault_of_its_record(time: str, source: str) -> None:
    found = parse({**(EVENT if source == "recorded" else REQUEST), "received_at": time}, source)
    assert isinstance(found, Malformed) and "received_at" in found.sentence


def test_every_time_of_a_record_is_in_utc() -> None:
    found = parse({**EVENT, "received_at": "2026-10-01T23:30:00-02:00"})
    assert isinstance(found, Change) and found.received_at == datetime(2026, 10, 2, 1, 30, tzinfo=UTC)
    assert found.received_at.tzinfo is UTC


def test_a_time_may_come_with_its_precision() -> None:
    found = parse({**EVENT, "qualifiers": {"P580": [{"time": "+2100-00-00T00:00:00Z", "precision": 7}]}})
    assert isinstance(found, Change) and found.qualifiers == {"P580": ("+2100-00-00T00:00:00Z/7",)}
