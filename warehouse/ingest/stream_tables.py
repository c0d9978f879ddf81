"""The live source in the warehouse: events, cursor and counts in one transaction; outcomes with the records they made."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pandas as pd
import pyarrow as pa
from pydantic import TypeAdapter

from warehouse.database.connection import Warehouse
from warehouse.digests import sha256_bytes
from warehouse.errors import Conflict, NotFound
from warehouse.nights.intake import receive
from warehouse.nights.order import in_order
from warehouse.records import Record, UpdateRecord
from warehouse.stream.events import Refused, StreamEvent
from warehouse.stream.pending import SOURCE, EventOutcome, PendingEvent
from warehouse.wikidata.entities import EntityDocument

logger = logging.getLogger(__name__)

#: Of a refused payload so many characters are kept, and of each reason and night so many payloads.
MAX_PAYLOAD_CHARS, MAX_REFUSED = 2_000, 1_000
#: Keys of the last events, kept with the cursor.
RECENT = 256
_ENTITY: TypeAdapter[EntityDocument] = TypeAdapter(EntityDocument)
_COLUMNS = {
    "event_key": pa.string(), "stream": pa.string(), "night": pa.string(), "seq": pa.int64(), "wiki": pa.string(),
    "entity_id": pa.string(), "action": pa.string(), "why": pa.string(), "rev_old": pa.int64(), "rev_new": pa.int64(),
    "happened_at": pa.timestamp("us", "UTC"), "editor_class": pa.string(), "patrolled": pa.bool_(), "summary": pa.string(),
}  # fmt: skip


class Cursor(Record):
    """Where a stream was left. `last_event_id` "" : it was never read."""

    stream: str
    last_event_id: str = ""
    recent: tuple[str, ...] = ()
    frames: int = 0


@dataclass
class Delivery:
    """What came since the last write.

    Attributes:
        last_event_id: of the last frame; "" leaves the cursor where it is.
        recent: keys of the last events, oldest first.
        counts: (kind, reason) -> number.
    """

    last_event_id: str = ""
    recent: Sequence[str] = ()
    frames: int = 0
    events: list[StreamEvent] = field(default_factory=list)
    refused: list[tuple[str, Refused, str]] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)


# ---------------------------------------------------------------- events and cursor


def read_cursor(wh: Warehouse, stream: str) -> Cursor:
    rows = wh.rows("SELECT stream, last_event_id, recent, frames FROM stream_cursors WHERE stream = ?", [stream])
    return Cursor.model_validate(rows[0] | {"recent": json.loads(rows[0]["recent"])}) if rows else Cursor(stream=stream)


def store_delivery(wh: Warehouse, stream: str, night: str, delivery: Delivery) -> int:
    """Keep a delivery and move the cursor behind it, both or neither; returns the number of events not stored before."""
    with wh.transaction():
        new = _store_events(wh, stream, night, delivery.events)
        _store_refused(wh, stream, night, delivery.refused)
        _add_counts(wh, stream, night, delivery.counts)
        _move_cursor(wh, stream, delivery)
    return new


def _store_events(wh: Warehouse, stream: str, night: str, events: Sequence[StreamEvent]) -> int:
    if not events:
        return 0
    unique = list({event.key: event for event in reversed(events)}.values())[::-1]
    keys = pa.table({"event_key": pa.array([event.key for event in unique], pa.string())})
    known = {
        row["event_key"] for row in wh.rows("SELECT event_key FROM stream_events SEMI JOIN keys USING (event_key)", keys=keys)
    }
    fresh = [event for event in unique if event.key not in known]
    start = (wh.scalar("SELECT max(seq) FROM stream_events") or 0) + 1
    rows = [
        (
            e.key,
            stream,
            night,
            start + i,
            e.wiki,
            e.entity_id,
            e.action,
            e.why,
            e.rev_old,
            e.rev_new,
            e.happened_at,
            e.editor_class,
            e.patrolled,
            e.summary,
        )
        for i, e in enumerate(fresh)
    ]
    if not rows:
        return 0
    columns = zip(_COLUMNS.items(), zip(*rows, strict=True), strict=True)
    return wh.append("stream_events", pa.table({name: pa.array(v, kind) for (name, kind), v in columns}), "error")


def _store_refused(wh: Warehouse, stream: str, night: str, refused: Sequence[tuple[str, Refused, str]]) -> None:
    if not refused:
        return
    held = wh.rows("SELECT reason, count(*) AS num FROM stream_refused WHERE night = ? GROUP BY reason", [night])
    room = Counter({row["reason"]: -row["num"] for row in held})
    rows = []
    for event_id, refusal, data in refused:
        room[refusal.reason] += 1
        if room[refusal.reason] > MAX_REFUSED:
            continue
        # A NUL, or half of a surrogate pair, is no text for the database.
        payload = data[:MAX_PAYLOAD_CHARS].encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
        identity = sha256_bytes(f"{event_id}|{len(data)}|".encode() + data.encode("utf-8", "surrogatepass"))
        rows.append(
            {
                "refusal_id": identity,
                "stream": stream,
                "night": night,
                "reason": refusal.reason,
                "sentence": refusal.sentence.encode("utf-8", "backslashreplace").decode(),
                "payload": payload,
                "chars": len(data),
            }
        )
    if rows:
        wh.append("stream_refused", rows)


def _add_counts(wh: Warehouse, stream: str, night: str, counts: Mapping[tuple[str, str], int]) -> None:
    rows = [(kind, reason, num) for (kind, reason), num in counts.items() if num]
    if not rows:
        return
    counted = pd.DataFrame(rows, columns=["kind", "reason", "num"])
    wh.execute(
        """INSERT INTO stream_counts BY NAME
           SELECT $stream AS stream, $night AS night, kind, reason, num FROM counted
           ON CONFLICT (stream, night, kind, reason) DO UPDATE SET num = num + excluded.num""",
        {"stream": stream, "night": night},
        counted=counted,
    )


def _move_cursor(wh: Warehouse, stream: str, delivery: Delivery) -> None:
    if not delivery.last_event_id and not delivery.frames:
        return
    wh.execute(
        """INSERT INTO stream_cursors BY NAME
           SELECT $stream AS stream, $id AS last_event_id, $recent AS recent, $frames AS frames, $now AS updated_at
           ON CONFLICT (stream) DO UPDATE SET
               last_event_id = CASE WHEN excluded.last_event_id = '' THEN last_event_id ELSE excluded.last_event_id END,
               recent = excluded.recent, frames = frames + excluded.frames, updated_at = excluded.updated_at""",
        {
            "stream": stream,
            "id": delivery.last_event_id,
            "recent": json.dumps(list(delivery.recent)[-RECENT:]),
            "frames": delivery.frames,
            "now": datetime.now(UTC),
        },
    )


# ---------------------------------------------------------------- from events to records


def pending_events(wh: Warehouse, stream: str, limit: int) -> list[PendingEvent]:
    """Events of a stream that have no outcome yet, of whatever night, in order of arrival."""
    columns = ", ".join(PendingEvent.__dataclass_fields__)
    rows = wh.rows(
        f"""SELECT {columns} FROM (SELECT * FROM stream_events WHERE stream = ?) AS e
            ANTI JOIN stream_outcomes USING (event_key) ORDER BY seq LIMIT ?""",
        [stream, limit],
    )
    return [PendingEvent(**row) for row in rows]


def done_revisions(wh: Warehouse, events: Sequence[PendingEvent]) -> set[tuple[str, int]]:
    """(entity, revision) pairs among those of `events` of which an event has an outcome: one revision, one change."""
    asked = pa.table(
        {
            "entity_id": pa.array([e.entity_id for e in events], pa.string()),
            "rev_new": pa.array([e.rev_new for e in events], pa.int64()),
        }
    )
    rows = wh.rows(
        """SELECT entity_id, rev_new FROM stream_events
           SEMI JOIN asked USING (entity_id, rev_new) SEMI JOIN stream_outcomes USING (event_key)""",
        asked=asked,
    )
    return {(row["entity_id"], row["rev_new"]) for row in rows}


def store_outcomes(
    wh: Warehouse,
    stream: str,
    night: str,
    outcomes: Sequence[EventOutcome],
    updates: Sequence[UpdateRecord],
    states: Iterable[EntityDocument] = (),
    redirects: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    counts: Mapping[tuple[str, str], int] | None = None,
) -> int:
    """Write the outcomes of events together with the update records they made and the items' new states.

    Returns:
        The number of new update records.

    Raises:
        Conflict: an event has an outcome already, or the night was judged meanwhile; nothing is written.
    """
    with wh.transaction():
        if updates and wh.scalar("SELECT count(*) FROM verdicts WHERE night = ?", [night]):
            raise Conflict(f"night {night} is judged already; give the new events another night")
        wh.append("stream_outcomes", [vars(o) for o in outcomes], "error")
        new = receive(wh, updates) if updates else 0
        for entity in states:
            _put_state(wh, entity, night)
        if redirects:
            wh.append("entity_redirects", [{"from_id": a, "to_id": b, "night": night} for a, b in redirects.items()])
        if labels:
            frame = pd.DataFrame({"entity_id": list(labels), "label": list(labels.values())}, dtype="str")
            wh.execute(
                """INSERT INTO entity_labels BY NAME SELECT entity_id, label FROM told
                   ON CONFLICT (entity_id) DO UPDATE SET label = excluded.label""",
                told=frame,
            )
        _add_counts(wh, stream, night, counts or {})
    return new


def _put_state(wh: Warehouse, entity: EntityDocument, night: str) -> None:
    """Keep an item's newest state; an older revision that came late changes nothing."""
    assert entity.revision is not None, "a state is that of a revision"
    newest = wh.scalar("SELECT max(revision) FROM entity_states WHERE entity_id = ?", [entity.id])
    if newest is not None and newest >= entity.revision:
        return
    body = _ENTITY.dump_json(entity).decode()
    wh.append("entity_states", [{"entity_id": entity.id, "revision": entity.revision, "body": body, "night": night}])
    wh.execute("DELETE FROM entity_states WHERE entity_id = ? AND revision < ?", [entity.id, entity.revision])


def entity_states(wh: Warehouse, ids: Sequence[str]) -> dict[str, EntityDocument]:
    """The newest known state of each of the items; those never seen are left out."""
    rows = wh.rows(
        """SELECT body FROM entity_states SEMI JOIN asked USING (entity_id)
           QUALIFY row_number() OVER (PARTITION BY entity_id ORDER BY revision DESC) = 1""",
        asked=_ids(ids),
    )
    found = [_ENTITY.validate_json(row["body"]) for row in rows]
    return {entity.id: entity for entity in found}


def known_labels(wh: Warehouse, ids: Sequence[str]) -> dict[str, str]:
    """English labels that the warehouse knows: of items seen, of the facts, of properties; "" where there is none."""
    rows = wh.rows(
        """SELECT entity_id, label FROM entity_labels SEMI JOIN asked USING (entity_id)
           UNION ALL SELECT pid, label FROM properties WHERE pid IN (SELECT entity_id FROM asked)""",
        asked=_ids(ids),
    )
    return {row["entity_id"]: row["label"] for row in rows}


def known_redirects(wh: Warehouse, ids: Sequence[str]) -> dict[str, str]:
    """The target of each of the ids that turned out to be a redirect."""
    rows = wh.rows("SELECT from_id, to_id FROM entity_redirects SEMI JOIN asked ON from_id = entity_id", asked=_ids(ids))
    return {row["from_id"]: row["to_id"] for row in rows}


def _ids(ids: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame({"entity_id": list(dict.fromkeys(ids))}, dtype="str")


# ---------------------------------------------------------------- what came


def streamed_nights(wh: Warehouse) -> tuple[str, ...]:
    """Nights with records of the live source, in order."""
    rows = wh.rows("SELECT DISTINCT night FROM updates WHERE source = ?", [SOURCE])
    return tuple(in_order(wh, (row["night"] for row in rows)))


def stream_summary(wh: Warehouse, night: str) -> dict[str, object]:
    """Of one night: events by action and reason, refusals, outcomes, unwanted properties, records, what still waits.

    Raises:
        NotFound: nothing came in that night.
    """
    counts = wh.rows(
        "SELECT kind, reason, sum(num) AS num FROM stream_counts WHERE night = ? GROUP BY ALL ORDER BY num DESC, reason",
        [night],
    )
    if not counts:
        raise NotFound(f"no event of the stream came in night {night!r}; run `errata ingest wikidata --night {night}`")
    outcomes = wh.rows(
        """SELECT outcome, reason, count(*) AS num, sum(records) AS records
           FROM stream_outcomes SEMI JOIN (SELECT event_key FROM stream_events WHERE night = ?) AS e USING (event_key)
           GROUP BY ALL ORDER BY num DESC, reason""",
        [night],
    )
    stored = wh.scalar("SELECT count(*) FROM stream_events WHERE night = ?", [night])
    by_kind = {kind: {r["reason"]: r["num"] for r in counts if r["kind"] == kind} for kind in ("event", "refused", "property")}
    return {
        "night": night,
        "events": by_kind["event"],
        "refused": by_kind["refused"],
        "other_properties": by_kind["property"],
        "stored": stored,
        "outcomes": {f"{o['outcome']}: {o['reason']}": o["num"] for o in outcomes},
        "pending": stored - sum(o["num"] for o in outcomes),
        "records": wh.scalar("SELECT count(*) FROM updates WHERE night = ? AND source = ?", [night, SOURCE]),
    }
