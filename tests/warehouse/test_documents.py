"""From events to records: the right two documents, their difference, and a reason for whatever gives none."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.warehouse.live import body, statement
from warehouse.stream.documents import Known, fetch_labels, mentioned, outcome_of, resolve, to_records
from warehouse.stream.pending import PendingEvent
from warehouse.stream.wikidata_http import HttpAnswer, Unavailable
from warehouse.wikidata.entities import EntityDocument, parse_entity
from warehouse.world.changes import Change, parse_change

BEFORE = body("Q42", 100, statement("Q42", "P19", "Q350"))
AFTER = body("Q42", 200, statement("Q42", "P19", "Q84"))


class Wikidata:
    """Documents by (id, revision); counts what is asked."""

    def __init__(self, *bodies: dict[str, Any], current: dict[str, Any] | None = None, down: bool = False) -> None:
        self.documents = {(b["id"], b["lastrevid"]): b for b in bodies}
        self.current: dict[str, Any] = {b["id"]: b for b in bodies} | (current or {})
        self.down = down
        self.asked: list[Any] = []

    def revision(self, entity_id: str, revision: int | None) -> HttpAnswer:
        self.asked.append((entity_id, revision))
        if self.down:
            raise Unavailable("HTTP 503")
        found = self.current.get(entity_id) if revision is None else self.documents.get((entity_id, revision))
        return HttpAnswer({"entities": {found["id"]: found}}) if found is not None else HttpAnswer(None, "missing")

    def entities(self, ids: list[str], props: str = "") -> dict[str, Any]:
        self.asked.append(tuple(ids))
        return {name: self.current.get(name, {"id": name, "missing": ""}) for name in ids}


def pending(rev_old: int | None = 100, rev_new: int | None = 200, **changes: Any) -> PendingEvent:
    values = {"event_key": f"e{rev_new}", "entity_id": "Q42", "action": "fetch_and_diff", "why": "statement_set",
              "rev_old": rev_old, "rev_new": rev_new, "happened_at": datetime(2026, 10, 1, 22, tzinfo=UTC),
              "editor_class": "autoconfirmed", "patrolled": True, "summary": ""}  # fmt: skip
    return PendingEvent(**{**values, **changes})


def entity(raw: dict[str, Any]) -> EntityDocument:
    found = parse_entity({"entities": {raw["id"]: raw}})
    assert isinstance(found, EntityDocument)
    return found


def outcome(wikidata: Wikidata, *events: PendingEvent, **options: Any) -> list[tuple[str, str, int]]:
    known = options.pop("known", Known())
    found = resolve(wikidata, events or (pending(),), known, options.pop("properties", None), **options)  # pyright: ignore
    return [(d.outcome, d.reason, len(d.changes)) for d in found.differences]


def test_an_edit_is_the_difference_of_its_two_revisions() -> None:
    wikidata = Wikidata(BEFORE, AFTER)
    assert outcome(wikidata) == [("changed", "", 1)]
    assert wikidata.asked == [("Q42", 200), ("Q42", 100)]


def test_the_state_that_the_warehouse_holds_saves_the_second_document() -> None:
    wikidata = Wikidata(AFTER)
    assert outcome(wikidata, known=Known({"Q42": entity(BEFORE)})) == [("changed", "", 1)]
    assert wikidata.asked == [("Q42", 200)]


def test_edits_of_one_item_chain_within_a_step() -> None:
    third = body("Q42", 300, statement("Q42", "P19", "Q60"))
    wikidata = Wikidata(BEFORE, AFTER, third)
    assert outcome(wikidata, pending(), pending(200, 300)) == [("changed", "", 1), ("changed", "", 1)]
    assert wikidata.asked == [("Q42", 200), ("Q42", 100), ("Q42", 300)]


def test_the_statements_of_a_new_item_are_all_added() -> None:
    assert outcome(Wikidata(AFTER), pending(None)) == [("changed", "", 1)]


def test_one_revision_that_comes_under_two_event_ids_is_one_change() -> None:
    wikidata = Wikidata(BEFORE, AFTER)
    again = pending(event_key="another")
    assert outcome(wikidata, pending(), again)[1] == ("set_aside", "redelivered_revision", 0)
    assert outcome(wikidata, again, known=Known(done={("Q42", 200)})) == [("set_aside", "redelivered_revision", 0)]


@pytest.mark.parametrize(
    ("wikidata", "reason"),
    [
        (Wikidata(BEFORE), "deleted_revision"),
        (Wikidata(), "item_deleted"),
        (Wikidata(AFTER), "no_base"),
        (Wikidata({**AFTER, "id": "Q43"}), "item_deleted"),
    ],
)
def test_what_is_not_there_sets_the_event_aside_with_the_reason(wikidata: Wikidata, reason: str) -> None:
    assert outcome(wikidata) == [("set_aside", reason, 0)]


def test_a_base_that_was_deleted_is_replaced_by_what_the_warehouse_holds() -> None:
    older = entity(body("Q42", 50, statement("Q42", "P19", "Q350")))
    assert outcome(Wikidata(AFTER), known=Known({"Q42": older})) == [("changed", "", 1)]


def test_a_redirect_maps_the_old_id() -> None:
    wikidata = Wikidata()
    wikidata.documents["Q42", 200] = {**AFTER, "id": "Q999"}
    found = resolve(wikidata, [pending()], Known(), None)  # pyright: ignore[reportArgumentType]
    assert found.differences[0].reason == "redirect" and found.redirects == {"Q42": "Q999"}


def test_a_deleted_item_ends_what_is_known_of_it() -> None:
    gone = pending(None, None, action="tombstone", why="log:delete/delete")
    assert outcome(Wikidata(), gone) == [("set_aside", "item_deleted", 0)]
    found = resolve(Wikidata(), [gone], Known({"Q42": entity(BEFORE)}), None)  # pyright: ignore[reportArgumentType]
    (record,) = to_records(found.differences[0], "n", {"Q42": "Ada"}, {})
    change = parse_change(record)
    assert isinstance(change, Change) and (change.op, change.subject.label, change.new) == ("remove_statement", "Ada", None)


def test_other_properties_are_counted_and_left_out() -> None:
    two = body("Q42", 200, statement("Q42", "P19", "Q84"), statement("Q42", "P69", "Q7"))
    found = resolve(Wikidata(BEFORE, two), [pending()], Known(), {"P19"})  # pyright: ignore[reportArgumentType]
    assert [c.pid for c in found.differences[0].changes] == ["P19"]
    assert found.counts["property", "P69"] == 1
    assert outcome(Wikidata(BEFORE, two), properties={"P6"}) == [("unchanged", "other_property", 0)]


def test_where_wikidata_is_down_the_events_before_it_are_kept() -> None:
    wikidata = Wikidata(AFTER)
    wikidata.down = True
    found = resolve(wikidata, [pending()], Known(), None)  # pyright: ignore[reportArgumentType]
    assert found.differences == [] and "503" in found.problem


def test_a_record_reads_as_the_change_that_was_made() -> None:
    found = resolve(Wikidata(BEFORE, AFTER), [pending()], Known(), None)  # pyright: ignore[reportArgumentType]
    assert mentioned(found) == ["P19", "Q350", "Q84"]
    labels = {"P19": "place of birth", "Q350": "Cambridge", "Q84": "London"}
    (record,) = to_records(found.differences[0], "night-x", labels, {})
    change = parse_change(record)
    assert isinstance(change, Change)
    assert (change.op, change.relation, change.old and change.old.label, change.new and change.new.label) == (
        "set_value", "P19", "Cambridge", "London",
    )  # fmt: skip
    assert (change.revision_old, change.revision_new, record.source, record.night) == (100, 200, "wikidata", "night-x")
    again = to_records(found.differences[0], "night-x", labels, {})
    assert [r.record_id for r in again] == [record.record_id]


def test_a_value_that_only_moved_to_its_redirects_target_is_no_change() -> None:
    found = resolve(Wikidata(BEFORE, AFTER), [pending()], Known(), None)  # pyright: ignore[reportArgumentType]
    records = to_records(found.differences[0], "n", {}, {"Q350": "Q84"})
    assert records == []
    assert (outcome_of(found.differences[0], 0).outcome, outcome_of(found.differences[0], 0).reason) == (
        "unchanged", "redirect_resolved",
    )  # fmt: skip


def test_an_item_without_an_english_label_has_none_in_the_record() -> None:
    quiet = body("Q42", 200, statement("Q42", "P19", "Q84"), label="")
    found = resolve(Wikidata(BEFORE, quiet), [pending()], Known(), None)  # pyright: ignore[reportArgumentType]
    (record,) = to_records(found.differences[0], "n", {}, {})
    assert json.loads(record.raw)["subject"]["label"] is None and json.loads(record.raw)["new_value"]["label"] is None


def test_labels_come_with_the_redirects_of_their_ids() -> None:
    wikidata = Wikidata(current={"Q1": body("Q1", 1, label="one"), "Q2": {**body("Q20", 1, label="two"), "redirects": {}}})
    labels, redirects = fetch_labels(wikidata, ["Q1", "Q2", "Q3"])  # pyright: ignore[reportArgumentType]
    assert labels == {"Q1": "one", "Q2": "two", "Q3": ""} and redirects == {"Q2": "Q20"}


# ---------------------------------------------------------------- current documents


def test_many_edits_of_many_items_cost_one_request() -> None:
    wikidata = Wikidata(body("Q42", 300, statement("Q42", "P19", "Q60")), body("Q43", 90, statement("Q43", "P19", "Q1")))
    known = Known({"Q42": entity(BEFORE), "Q43": entity(body("Q43", 80))})
    events = [pending(), pending(200, 300), pending(80, 90, entity_id="Q43")]
    found = resolve(wikidata, events, known, None, "latest")  # pyright: ignore[reportArgumentType]
    assert wikidata.asked == [("Q42", "Q43")]
    assert sorted((d.event.event_key, d.outcome, len(d.changes)) for d in found.differences) == [
        ("e200", "changed", 1), ("e300", "unchanged", 0), ("e90", "changed", 1),
    ]  # fmt: skip


def test_a_fold_is_trusted_as_its_least_trusted_edit() -> None:
    wikidata = Wikidata(body("Q42", 300, statement("Q42", "P19", "Q60")))
    events = [pending(), pending(200, 300, editor_class="newcomer", patrolled=False)]
    found = resolve(wikidata, events, Known({"Q42": entity(BEFORE)}), None, "latest")  # pyright: ignore[reportArgumentType]
    assert [d.event.editor_class for d in found.differences if d.changes] == ["newcomer"]


def test_a_lagging_answer_is_asked_for_by_its_revision() -> None:
    wikidata = Wikidata(BEFORE, AFTER, current={"Q42": BEFORE})
    assert outcome(wikidata, known=Known({"Q42": entity(BEFORE)}), mode="latest") == [("changed", "", 1)]
    assert wikidata.asked == [("Q42",), ("Q42", 200)]


def test_a_missing_item_sets_all_its_edits_aside() -> None:
    assert outcome(Wikidata(), pending(), pending(200, 300), mode="latest") == [("set_aside", "item_deleted", 0)] * 2
