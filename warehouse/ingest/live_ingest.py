"""Wikidata's live stream: frames into stored events, events into the update records of a night.

`LiveIngest` reads, stores and resolves in turn, in one thread: while documents are fetched the stream waits in the
connection's buffers, and where that takes too long the server cuts it and the cursor brings everything back.
The night is then read by `WikidataSource` like that of any other source.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from httpx_sse import ServerSentEvent

from warehouse.database.connection import Warehouse
from warehouse.digests import sha256_bytes
from warehouse.errors import SourceError
from warehouse.ingest.stream_tables import (
    RECENT,
    Cursor,
    Delivery,
    done_revisions,
    entity_states,
    known_labels,
    known_redirects,
    pending_events,
    read_cursor,
    store_delivery,
    store_outcomes,
    streamed_nights,
)
from warehouse.nights.intake import updates_of
from warehouse.records import UpdateRecord
from warehouse.sources.base import check_night
from warehouse.stream.documents import Known, Mode, fetch_labels, mentioned, outcome_of, resolve, to_records
from warehouse.stream.events import KEPT, Refused, StreamEvent, admits, parse_event
from warehouse.stream.pending import SOURCE, PendingEvent
from warehouse.stream.sse import is_usable_id
from warehouse.stream.wikidata_http import Unavailable, WikidataClient

logger = logging.getLogger(__name__)

#: Events whose documents are fetched between two writes.
STEP = 50
#: Frames between two writes at most, wanted or not.
MAX_FRAMES = 10_000
OpenWarehouse = Callable[[], AbstractContextManager[Warehouse]]


class WikidataSource:
    """The nights that `errata ingest wikidata` has brought into the warehouse at `path`."""

    name = SOURCE

    def __init__(self, path: Path) -> None:
        self.path = path

    def nights(self) -> tuple[str, ...]:
        if not self.path.is_file():
            raise SourceError(f"{self.path}: no warehouse yet; `errata ingest wikidata` fills one from the stream")
        with Warehouse.open(self.path) as wh:
            return streamed_nights(wh)

    def records(self, night: str) -> Iterator[UpdateRecord]:
        check_night(self.name, night, self.nights(), self.path)
        with Warehouse.open(self.path) as wh:
            records = [record for record in updates_of(wh, night) if record.source == self.name]
        return iter(records)


# ---------------------------------------------------------------- frames into deliveries


@dataclass(frozen=True)
class Filters:
    """What is asked of an event before anything is fetched. `properties` None: every property."""

    wiki: str = "wikidatawiki"
    namespaces: tuple[int, ...] = (0,)
    properties: Collection[str] | None = None


class FrameReader:
    """Collects frames until they are written; sees what comes twice."""

    def __init__(self, filters: Filters, cursor: Cursor) -> None:
        self._filters = filters
        self._recent: OrderedDict[str, None] = OrderedDict.fromkeys(cursor.recent)
        self.delivery = Delivery()
        self.frames = 0
        self.redelivered = 0

    def take(self, frame: ServerSentEvent) -> bool:
        """Take one frame; False where it is one of the last ones again, which also leaves the cursor alone."""
        event = self._read(frame)
        key = event.key if isinstance(event, StreamEvent) else f"refused:{_digest(frame)}"
        if key in self._recent:
            self.redelivered += 1
            return False
        self._recent[key] = None
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        self.frames += 1
        delivery = self.delivery
        delivery.frames += 1
        if is_usable_id(frame.id):
            delivery.last_event_id = frame.id
        if isinstance(event, Refused):
            delivery.counts["refused", event.reason] += 1
            delivery.refused.append((frame.id, event, frame.data))
        else:
            self._count(event)
        return True

    def flushed(self) -> None:
        self.delivery = Delivery()

    def whole(self) -> Delivery:
        """The delivery with the keys that stand against redelivery after a restart."""
        self.delivery.recent = tuple(self._recent)
        return self.delivery

    def _read(self, frame: ServerSentEvent) -> StreamEvent | Refused:
        if frame.event == "error":
            return Refused("stream_error", "the server reports an error in the stream")
        if frame.event != "message":
            return Refused("other_event", f"its type is {frame.event[:50]!r}; expected 'message'")
        return parse_event(frame.data, self._filters.wiki, self._filters.namespaces)

    def _count(self, event: StreamEvent) -> None:
        counts, wanted = self.delivery.counts, self._filters.properties
        if event.action == "fetch_and_diff" and wanted is not None and not admits(event, wanted):
            counts["event", "other_property"] += 1
            counts["property", event.properties[0]] += 1
            return
        counts["event", event.why if event.action == "drop" else event.action] += 1
        if event.action in KEPT:
            self.delivery.events.append(event)


def _digest(frame: ServerSentEvent) -> str:
    return sha256_bytes(f"{frame.id}|{frame.data}".encode("utf-8", "surrogatepass"))[:32]


# ---------------------------------------------------------------- the live ingest


@dataclass(frozen=True)
class IngestLimits:
    """When to write and when to stop. Seconds; 0 events and None times mean: without end.

    `until` is a moment of `time.time()`; `idle_s` counts from the last event that was new, while the stream is connected.
    """

    batch: int = 500
    flush_s: float = 5.0
    max_events: int = 0
    until: float | None = None
    idle_s: float | None = None


@dataclass
class Progress:
    """What one run of the ingest did."""

    frames: int = 0
    redelivered: int = 0
    stored: int = 0
    records: int = 0
    resolved: int = 0
    problem: str = ""


@dataclass(frozen=True)
class _Waiting:
    events: list[PendingEvent]
    known: Known


class LiveIngest:
    """One run from the stream into a night.

    Args:
        open_warehouse: opened for each write and closed again: it shuts out every other process.
        stream: name of the cursor.
        client: None leaves the documents for a later run.
    """

    def __init__(
        self,
        open_warehouse: OpenWarehouse,
        stream: str,
        night: str,
        client: WikidataClient | None,
        filters: Filters,
        limits: IngestLimits,
        mode: Mode = "revisions",
    ) -> None:
        self._open, self._stream, self._night, self._client = open_warehouse, stream, night, client
        self._filters, self._limits = filters, limits
        self._mode: Mode = mode
        with open_warehouse() as wh:
            self.cursor = read_cursor(wh, stream)
        self._reader = FrameReader(filters, self.cursor)
        self._flushed_at = self._event_at = time.monotonic()
        self._is_ending = False
        self.progress = Progress()

    def run(self, frames: Iterable[ServerSentEvent]) -> Progress:
        """Take frames until their end or a limit, then write what is left and resolve what still waits."""
        try:
            for frame in frames:
                if self._reader.take(frame):
                    self._event_at = time.monotonic()
                delivery = self._reader.delivery
                if len(delivery.events) >= self._limits.batch or delivery.frames >= MAX_FRAMES:
                    self.flush()
                if self._is_full():
                    break
        except KeyboardInterrupt:
            logger.info("interrupted: what was read is written before the end")
        self._is_ending = True
        self.flush()
        return self.progress

    def on_wait(self, connected: bool = True) -> bool:
        """Before each wait of the stream: write what is due; True ends the stream."""
        if not connected:
            # Silence counts from the next connection on.
            self._event_at = time.monotonic()
        if self._reader.delivery.frames and time.monotonic() - self._flushed_at >= self._limits.flush_s:
            self.flush()
        return self._is_full() or self._is_late()

    def _is_full(self) -> bool:
        return bool(self._limits.max_events) and self._reader.frames >= self._limits.max_events

    def _is_late(self) -> bool:
        idle_s, until = self._limits.idle_s, self._limits.until
        is_idle = idle_s is not None and time.monotonic() - self._event_at >= idle_s
        return self._is_ending or is_idle or (until is not None and time.time() >= until)

    def flush(self) -> None:
        """Write events, counts and cursor in one transaction, then find out what the events that wait changed."""
        start = self._flushed_at = time.monotonic()
        progress, reader = self.progress, self._reader
        progress.frames, progress.redelivered = reader.frames, reader.redelivered
        with self._open() as wh:
            if reader.delivery.frames:
                progress.stored += store_delivery(wh, self._stream, self._night, reader.whole())
            waiting = self._waiting(wh)
        reader.flushed()
        progress.problem = ""
        while waiting.events and self._client is not None and not progress.problem:
            waiting = self._resolve(self._client, waiting)
        # While documents were fetched nobody listened to the stream: that is no silence.
        self._event_at += time.monotonic() - start

    def _waiting(self, wh: Warehouse) -> _Waiting:
        """The next events without an outcome, with what the warehouse knows of their items."""
        events = pending_events(wh, self._stream, STEP) if self._client is not None else []
        if not events:
            return _Waiting([], Known())
        ids = [event.entity_id for event in events]
        return _Waiting(events, Known(entity_states(wh, ids), done_revisions(wh, events)))

    def _resolve(self, client: WikidataClient, waiting: _Waiting) -> _Waiting:
        """Fetch, compare and write for some events; what waits then. A problem is noted and ends the turn."""
        progress = self.progress
        found = resolve(client, waiting.events, waiting.known, self._filters.properties, self._mode)
        asked = mentioned(found)
        labels: dict[str, str] = {}
        redirects: dict[str, str] = {}
        if asked:
            with self._open() as wh:
                labels, redirects = known_labels(wh, asked), known_redirects(wh, asked)
        try:
            fresh, moved = fetch_labels(client, [name for name in asked if name not in labels])
        except Unavailable as error:
            progress.problem = str(error)
            logger.warning("%s; %d events wait for the next attempt", error, len(waiting.events))
            return waiting
        redirects |= moved | found.redirects
        spoken = {name: label for name, label in (labels | fresh).items() if label}
        records = [to_records(difference, self._night, spoken, redirects) for difference in found.differences]
        outcomes = [outcome_of(d, len(mine)) for d, mine in zip(found.differences, records, strict=True)]
        entities = [d.entity for d in found.differences if d.entity is not None and d.entity.revision is not None]
        with self._open() as wh:
            progress.records += store_outcomes(
                wh,
                self._stream,
                self._night,
                outcomes,
                [record for mine in records for record in mine],
                entities,
                redirects,
                fresh | {entity.id: entity.label for entity in entities},
                found.counts,
            )
            waiting = self._waiting(wh)
        progress.resolved += len(outcomes)
        if found.problem:
            progress.problem = found.problem
            logger.warning("%s; the remaining events wait for the next attempt", found.problem)
        return waiting
