"""The diff of two revisions, and its changes as update records."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.warehouse.documents import document, item, snak, statement, when
from warehouse.records import UpdateRecord
from warehouse.wikidata.entities import (
    EntityDocument,
    Provenance,
    StatementChange,
    change_record,
    diff_statements,
    diff_terms,
    parse_entity,
    record_id_of,
)
from warehouse.world.changes import Change, parse_change

OLD = statement("Q17$a", "P36", item("Q1490"))
LABELS = {"Q1490": "Tokyo", "Q34600": "Kyoto", "P36": "capital"}
WHEN = Provenance(received_at=datetime(2026, 10, 1, 22, tzinfo=UTC), revision_old=1, revision_new=2, editor_class="bot")


def read(*statements: dict[str, Any], **more: Any) -> EntityDocument:
    entity = parse_entity(document("Q17", *statements, label="Japan", **more))
    assert isinstance(entity, EntityDocument)
    return entity


def only(*pair: EntityDocument) -> StatementChange:
    (change,) = diff_statements(*pair)
    return change


def as_change(*pair: EntityDocument, labels: dict[str, str] = LABELS) -> Change:
    raw = change_record(only(*pair), pair[1], "wd-1", "night-01", WHEN, labels)
    found = parse_change(UpdateRecord(record_id="wd-1", source="wikidata", night="night-01", received_at=None, raw=raw))
    assert isinstance(found, Change), found
    return found


@pytest.mark.parametrize(
    ("new", "kinds"),
    [
        (statement("Q17$a", "P36", item("Q34600")), ("value",)),
        (OLD | {"rank": "preferred"}, ("rank",)),
        (statement("Q17$a", "P36", item("Q1490"), qualifiers={"P580": when("+1868-09-03T00:00:00Z")}), ("qualifiers",)),
        (OLD | {"references": [{"hash": "ab", "snaks": {}}]}, ("references",)),
        (statement("Q17$a", "P36", item("Q34600"), rank="deprecated"), ("value", "rank")),
        (statement("Q17$a", "P36", None, mainsnak=snak("P36", snaktype="somevalue")), ("value",)),
    ],
)
def test_the_diff_names_what_changed(new: dict[str, Any], kinds: tuple[str, ...]) -> None:
    assert only(read(OLD), read(new)).kinds == kinds


def test_statements_are_added_and_removed_by_id() -> None:
    other = statement("Q17$b", "P36", item("Q1490"))
    assert [(c.statement_id, c.kinds) for c in diff_statements(read(OLD), read(other))] == [
        ("Q17$b", ("added",)), ("Q17$a", ("removed",)),
    ]  # fmt: skip


def test_a_small_q_in_the_statement_id_is_no_change() -> None:
    assert diff_statements(read(OLD), read(OLD | {"id": "q17$A"})) == ()


def test_another_datatype_or_order_is_no_change() -> None:
    start, end = when("+1868-09-03T00:00:00Z"), when("+1900-01-01T00:00:00Z")
    one = statement("Q17$a", "P36", item("Q1490"), qualifiers={"P580": start, "P582": end})
    two = statement("Q17$a", "P36", item("Q1490"), qualifiers={"P582": end, "P580": start})
    two["mainsnak"] = two["mainsnak"] | {"datatype": "string"}
    assert diff_statements(read(one), read(two)) == ()


def test_a_statement_that_became_unreadable_is_not_removed() -> None:
    assert diff_statements(read(OLD), read(OLD | {"rank": "best"})) == ()


def test_a_statement_that_stood_twice_and_is_gone_is_removed() -> None:
    assert [c.kinds for c in diff_statements(read(OLD, OLD), read())] == [("removed",)]


def test_changes_of_references_alone_can_be_left_out() -> None:
    assert diff_statements(read(OLD), read(OLD | {"references": [{"hash": "ab"}]}), references=False) == ()


def test_an_entity_from_nothing_is_all_added_and_to_nothing_all_removed() -> None:
    assert [c.kinds for c in diff_statements(None, read(OLD))] == [("added",)]
    assert [c.kinds for c in diff_statements(read(OLD), None)] == [("removed",)]


def test_english_terms_are_compared() -> None:
    changes = diff_terms(read(OLD), read(OLD, labels={"en": {"language": "en", "value": "JAPAN"}}))
    assert [(c.term, c.old, c.new) for c in changes] == [("label", "Japan", "JAPAN")]


# ---------------------------------------------------------------- records


def test_a_changed_value_is_a_record_with_labels_of_both() -> None:
    change = as_change(read(OLD), read(statement("Q17$a", "P36", item("Q34600"))))
    assert change.old is not None and change.new is not None
    assert (change.op, change.old.label, change.new.label) == ("set_value", "Tokyo", "Kyoto")
    assert (change.subject.label, change.relation_label, change.revision_new) == ("Japan", "capital", 2)


def test_a_removed_statement_leaves_no_new_value() -> None:
    change = as_change(read(OLD), read())
    assert (change.op, change.new) == ("remove_statement", None)


def test_deprecation_leaves_nothing_and_its_end_brings_the_value_back() -> None:
    wrong = OLD | {"rank": "deprecated"}
    down, up = as_change(read(OLD), read(wrong)), as_change(read(wrong), read(OLD))
    assert (down.op, down.rank, down.new) == ("set_rank", "deprecated", None)
    assert up.old is None and up.new is not None and (up.op, up.rank) == ("set_rank", "normal")


def test_start_and_end_are_written_as_qualifiers_and_as_moments() -> None:
    ended = statement("Q17$a", "P36", item("Q1490"), qualifiers={"P582": when("+1868-09-03T00:00:00Z")})
    change = as_change(read(OLD), read(ended))
    assert (change.op, change.qualifiers) == ("add_qualifier", {"P582": ("+1868-09-03T00:00:00Z",)})
    raw = json.loads(change_record(only(read(OLD), read(ended)), read(ended), "wd-1", "n", WHEN, LABELS))
    assert (raw["valid_from"], raw["valid_to"]) == (None, "1868-09-03T00:00:00+00:00")


def test_some_value_is_written_with_its_snak_type() -> None:
    unknown = statement("Q17$a", "P36", None, mainsnak=snak("P36", snaktype="somevalue"))
    change = as_change(read(OLD), read(unknown))
    assert change.new is not None and (change.new.type, change.new.snaktype) == ("none", "somevalue")


def test_a_value_without_a_known_label_has_an_empty_one() -> None:
    change = as_change(read(OLD), read(statement("Q17$a", "P36", item("Q34600"))), labels={})
    assert change.new is not None and (change.new.id, change.new.label) == ("Q34600", "")


def test_a_label_change_is_a_record_of_its_own_kind() -> None:
    entity = read(OLD, labels={"en": {"language": "en", "value": "JAPAN"}})
    (term,) = diff_terms(read(OLD), entity)
    raw = change_record(term, entity, "wd-1", "night-01", WHEN, {})
    change = parse_change(UpdateRecord(record_id="wd-1", source="wikidata", night="n", received_at=None, raw=raw))
    assert isinstance(change, Change) and change.op == "set_label"


def test_a_record_stays_below_the_size_of_a_record() -> None:
    long = {"type": "monolingualtext", "value": {"language": "en", "text": "é" * 9_000}}
    before = statement("Q17$a", "P1476", {"type": "monolingualtext", "value": {"language": "en", "text": "x" * 9_000}})
    change = as_change(read(before), read(statement("Q17$a", "P1476", long)))
    assert change.new is not None and len(change.new.label) == 1000


def test_the_id_of_a_record_depends_on_entity_statement_and_revision() -> None:
    change = only(read(OLD), read())
    assert record_id_of("Q17", change, 2) == record_id_of("Q17", change, 2) != record_id_of("Q17", change, 3)


def test_a_statement_deprecated_on_both_sides_touches_no_belief() -> None:
    wrong = OLD | {"rank": "deprecated"}
    moved = statement("Q17$a", "P36", item("Q34600"), rank="deprecated")
    assert not only(read(wrong), read(moved)).touches_belief and only(read(wrong), read(OLD)).touches_belief
