"""The live source in the warehouse: events once, cursor with them, outcomes with their records."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.warehouse.live import body, statement
from warehouse.database.connection import Warehouse
from warehouse.errors import Conflict, NotFound
from warehouse.ingest.stream_tables import (
    MAX_PAYLOAD_CHARS,
    MAX_REFUSED,
    Delivery,
    done_revisions,
    entity_states,
    known_labels,
    known_redirects,
    pending_events,
    read_cursor,
    store_delivery,
    store_outcomes,
    stream_summary,
    streamed_nights,
)
from warehouse.nights.intake import record_verdicts
from warehouse.records import UpdateRecord, Verdict
from warehouse.sources import open_source
from warehouse.stream.events import Refused, StreamEvent
from warehouse.stream.pending import SOURCE, EventOutcome
from warehouse.upkeep.integrity import check
from warehouse.wikidata.entities import EntityDocument, parse_entity

STREAM, NIGHT = "https://stream.example/x", "night-live"


@pytest.fixture
def wh():
    with Warehouse.open(":memory:") as opened:
        yield opened


def event(key: str, entity_id: str = "Q1", new: int = 2) -> StreamEvent:
    return StreamEvent(key, "fetch_and_diff", "statement_set", entity_id, "wikidatawiki", 1, new, editor_class="bot")


def delivery(*keys: str, last: str = "", **more: Any) -> Delivery:
    counts = Counter({("event", "fetch_and_diff"): len(keys)})
    return Delivery(last or f"id-{keys[-1]}", keys, len(keys), [event(key) for key in keys], counts=counts, **more)


def update(name: str) -> UpdateRecord:
    return UpdateRecord(record_id=name, source=SOURCE, night=NIGHT, received_at=None, raw="{}")


def entity(revision: int, *statements: dict[str, Any]) -> EntityDocument:
    found = parse_entity({"entities": {"Q1": body("Q1", revision, *statements)}})
    assert isinstance(found, EntityDocument)
    return found


def test_events_and_cursor_are_there_together(wh: Warehouse) -> None:
    assert store_delivery(wh, STREAM, NIGHT, delivery("a", "b")) == 2
    cursor = read_cursor(wh, STREAM)
    assert (cursor.last_event_id, cursor.recent, cursor.frames) == ("id-b", ("a", "b"), 2)
    assert [e.event_key for e in pending_events(wh, STREAM, 10)] == ["a", "b"]


def test_a_delivery_that_fails_leaves_neither(wh: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr("warehouse.ingest.stream_tables._move_cursor", broken)
    with pytest.raises(RuntimeError):
        store_delivery(wh, STREAM, NIGHT, delivery("a"))
    assert pending_events(wh, STREAM, 10) == [] and read_cursor(wh, STREAM).last_event_id == ""
    assert wh.scalar("SELECT count(*) FROM stream_counts") == 0


def test_what_comes_again_is_stored_once(wh: Warehouse) -> None:
    store_delivery(wh, STREAM, NIGHT, delivery("a", "b"))
    assert store_delivery(wh, STREAM, NIGHT, delivery("b", "c", "c")) == 1
    assert [e.event_key for e in pending_events(wh, STREAM, 10)] == ["a", "b", "c"]
    assert read_cursor(wh, STREAM).last_event_id == "id-c"


def test_frames_without_a_usable_id_leave_the_cursor(wh: Warehouse) -> None:
    store_delivery(wh, STREAM, NIGHT, delivery("a"))
    store_delivery(wh, STREAM, NIGHT, Delivery("", ("a", "b"), 1))
    assert read_cursor(wh, STREAM).last_event_id == "id-a"


def test_streams_have_cursors_of_their_own(wh: Warehouse) -> None:
    store_delivery(wh, STREAM, NIGHT, delivery("a"))
    assert read_cursor(wh, "another").last_event_id == ""
    assert pending_events(wh, "another", 10) == []


def test_refused_data_is_kept_cut_and_once(wh: Warehouse) -> None:
    refusal = ("id", Refused("undecodable", "it is not JSON"), "x\0\ud800" + "y" * 10_000)
    for _ in range(2):
        store_delivery(wh, STREAM, NIGHT, Delivery("id", refused=[refusal], frames=1))
    (row,) = wh.rows("SELECT reason, payload, chars FROM stream_refused")
    assert row["payload"].startswith("x\\x00\\ud800yyy") and len(row["payload"]) < MAX_PAYLOAD_CHARS + 20
    assert row["chars"] == 10_003


def test_a_flood_of_refused_data_is_counted_but_not_kept(wh: Warehouse) -> None:
    flood = [("", Refused("undecodable", ""), str(n)) for n in range(MAX_REFUSED + 50)]
    counts = Counter({("refused", "undecodable"): len(flood)})
    store_delivery(wh, STREAM, NIGHT, Delivery("", frames=len(flood), refused=flood, counts=counts))
    assert wh.scalar("SELECT count(*) FROM stream_refused") == MAX_REFUSED
    assert stream_summary(wh, NIGHT)["refused"] == {"undecodable": MAX_REFUSED + 50}


def test_an_outcome_comes_with_its_records_and_states(wh: Warehouse) -> None:
    store_delivery(wh, STREAM, NIGHT, delivery("a", "b"))
    new = store_outcomes(wh, STREAM, NIGHT, [EventOutcome("a", "changed", "statement_set", 1)], [update("r1")], [entity(2)],
                         {"Q9": "Q1"}, {"Q1": "one"}, {("property", "P6"): 2})  # fmt: skip
    assert new == 1
    assert [e.event_key for e in pending_events(wh, STREAM, 10)] == ["b"]
    assert entity_states(wh, ["Q1", "Q2"])["Q1"].revision == 2
    assert known_redirects(wh, ["Q9", "Q1"]) == {"Q9": "Q1"} and known_labels(wh, ["Q1"]) == {"Q1": "one"}
    assert streamed_nights(wh) == (NIGHT,)
    assert stream_summary(wh, NIGHT) == {
        "night": NIGHT, "events": {"fetch_and_diff": 2}, "refused": {}, "other_properties": {"P6": 2}, "stored": 2,
        "outcomes": {"changed: statement_set": 1}, "pending": 1, "records": 1,
    }  # fmt: skip
    assert check(wh) == []


def test_a_second_outcome_of_one_event_writes_nothing(wh: Warehouse) -> None:
    store_delivery(wh, STREAM, NIGHT, delivery("a"))
    store_outcomes(wh, STREAM, NIGHT, [EventOutcome("a", "changed", "", 1)], [update("r1")])
    with pytest.raises(Conflict):
        store_outcomes(wh, STREAM, NIGHT, [EventOutcome("a", "changed", "", 1)], [update("r2")])
    assert wh.scalar("SELECT count(*) FROM updates") == 1


def test_a_night_that_was_judged_meanwhile_takes_no_more_records(wh: Warehouse) -> None:
    store_delivery(wh, STREAM, NIGHT, delivery("a", "b"))
    store_outcomes(wh, STREAM, NIGHT, [EventOutcome("a", "changed", "", 1)], [update("r1")])
    judged = Verdict(record_id="r1", verdict="reject", reason="no_change", rule="1", sentence="Nothing changes.")
    record_verdicts(wh, NIGHT, SOURCE, [judged], [])
    with pytest.raises(Conflict, match="another night"):
        store_outcomes(wh, STREAM, NIGHT, [EventOutcome("b", "changed", "", 1)], [update("r2")])
    assert [e.event_key for e in pending_events(wh, STREAM, 10)] == ["b"]
    assert store_outcomes(wh, STREAM, "night-next", [EventOutcome("b", "changed", "", 1)], [update("r2")]) == 1


def test_an_outcome_without_its_event_is_a_finding(wh: Warehouse) -> None:
    store_delivery(wh, STREAM, NIGHT, delivery("a"))
    store_outcomes(wh, STREAM, NIGHT, [EventOutcome("a", "unchanged", "", 0)], [])
    assert check(wh) == []
    wh.execute("DELETE FROM stream_events")
    assert [(f.severity, f.check, f.table, f.key) for f in check(wh)] == [("error", "reference", "stream_outcomes", "a")]


def test_a_revision_is_done_when_an_event_of_it_has_an_outcome(wh: Warehouse) -> None:
    store_delivery(wh, STREAM, NIGHT, delivery("a"))
    waiting = pending_events(wh, STREAM, 1)
    assert done_revisions(wh, waiting) == set()
    store_outcomes(wh, STREAM, NIGHT, [EventOutcome("a", "unchanged", "", 0)], [])
    assert done_revisions(wh, waiting) == {("Q1", 2)}


def test_the_newest_state_wins_and_only_it_is_kept(wh: Warehouse) -> None:
    states = [entity(5, statement("Q1", "P19", "Q84")), entity(9, statement("Q1", "P19", "Q60")), entity(7)]
    store_outcomes(wh, STREAM, NIGHT, [], [], states)
    held = entity_states(wh, ["Q1"])["Q1"]
    assert held == states[1]
    assert wh.scalar("SELECT count(*) FROM entity_states") == 1


def test_a_night_in_which_nothing_came_says_what_to_do(wh: Warehouse) -> None:
    with pytest.raises(NotFound, match="errata ingest wikidata --night night-x"):
        stream_summary(wh, "night-x")


def test_the_source_reads_the_nights_of_the_stream_only(tmp_path: Path) -> None:
    path = tmp_path / "w.duckdb"
    with Warehouse.open(path) as wh:
        store_outcomes(wh, STREAM, NIGHT, [], [update("r1")])
        wh.append("updates", [{"source": "recorded", "record_id": "x", "night": NIGHT, "raw": "{}", "received_seq": 9}])
    source = open_source("wikidata", path)
    assert source.nights() == (NIGHT,)
    assert [record.record_id for record in source.records(NIGHT)] == ["r1"]
