"""The live source with the settings' numbers: Wikidata's stream, or a replay of it, into a night of the warehouse."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from tasks.settings import Settings
from tasks.workspace import todays_night, warehouse
from warehouse.database.connection import Warehouse
from warehouse.errors import Conflict, NotFound, UsageError
from warehouse.ingest.live_ingest import Filters, IngestLimits, LiveIngest
from warehouse.ingest.stream_tables import read_cursor, stream_summary
from warehouse.night_names import check_name
from warehouse.nights.order import free_night, is_judged
from warehouse.sources.base import parse_time
from warehouse.stream.documents import Mode
from warehouse.stream.replay import STREAM_PATH
from warehouse.stream.sse import EventStream
from warehouse.stream.wikidata_http import Backoff, WikidataClient, guarded_client, is_loopback, user_agent
from warehouse.world.queries import known_properties

log = logging.getLogger(__name__)
#: A replay has ended when nothing new came for so long.
REPLAY_IDLE_S = 2.0
ALL_PROPERTIES = "all"


@dataclass(frozen=True)
class IngestOptions:
    """What the command line says over the settings.

    Attributes:
        replay: address of `errata replay`; "" is the real stream.
        since: ISO time or milliseconds; used where there is no cursor yet.
        until: "06:00" (the next one, UTC) or an ISO time.
        max_events: new events of this run; 0: without end.
        idle_s: end after so long without a new event.
        properties: over those of the settings; ("all",) for every property.
    """

    night: str = ""
    replay: str = ""
    since: str = ""
    until: str = ""
    max_events: int = 0
    idle_s: float | None = None
    properties: Sequence[str] = ()
    mode: Mode = "revisions"


def ingest_wikidata(settings: Settings, options: IngestOptions) -> dict[str, Any]:
    """Read the stream into a night until a limit is reached; go on from the cursor of the last run.

    Returns:
        What came in the night so far, and what this run did.

    Raises:
        UsageError: the real stream without a contact, or a time that is none.
        Conflict: the night is judged already.
        StreamError: the stream refuses us or stayed away.
    """
    live = settings.wikidata
    host = _host(options.replay)
    stream_url = options.replay.rstrip("/") + STREAM_PATH if options.replay else live.stream_url
    entity_url = options.replay.rstrip("/") if options.replay else live.entity_url
    hosts = (host,) if options.replay else live.hosts
    if not options.replay and not live.contact:
        raise UsageError(
            "Wikimedia asks every client for a contact: set ERRATA_WIKIDATA__CONTACT to an address or a URL of yours"
        )
    until = _moment(options.until)
    night = options.night or todays_night(settings)
    _check_open(settings, night)
    agent = user_agent(version("errata"), live.contact or "replay")
    backoff = Backoff(live.backoff, live.backoff_max)
    idle_s = REPLAY_IDLE_S if options.idle_s is None and options.replay else options.idle_s
    # Waiting is where limits are looked at; a silent server must not delay them.
    read_timeout_s = live.read_timeout if idle_s is None else min(live.read_timeout, max(1.0, idle_s))
    with closing(
        guarded_client(hosts, agent, connect_timeout_s=live.connect_timeout, read_timeout_s=live.read_timeout)
    ) as http:
        documents = WikidataClient(http, entity_url, maxlag=live.maxlag, retries=live.retries, backoff=backoff)
        ingest = LiveIngest(
            lambda: warehouse(settings),
            stream_url,
            night,
            documents,
            Filters(wiki=live.wiki, properties=_properties(settings, options.properties)),
            IngestLimits(live.batch, live.flush, options.max_events, until, idle_s),
            options.mode,
        )
        stream = EventStream(http, stream_url, on_wait=ingest.on_wait, backoff=backoff, read_timeout_s=read_timeout_s)
        start = time.monotonic()
        done = ingest.run(stream.frames(ingest.cursor.last_event_id, options.since))
    with warehouse(settings) as wh:
        cursor = read_cursor(wh, stream_url)
        summary = _summary(wh, night)
    log.info("night %s: %d frames, %d stored, %d records", night, done.frames, done.stored, done.records)
    run = vars(done) | {
        "seconds": round(time.monotonic() - start, 2),
        "connections": stream.connections,
        "requests": documents.requests,
        "retried": documents.retried,
    }
    return {**summary, "run": run, "stream": stream_url, "cursor": cursor.last_event_id}


def _summary(wh: Warehouse, night: str) -> dict[str, Any]:
    try:
        return stream_summary(wh, night)
    except NotFound:
        # A replay that is over brings nothing new into a new night.
        return {"night": night, "records": 0, "pending": 0}


def _check_open(settings: Settings, night: str) -> None:
    check_name(night)
    with warehouse(settings) as wh:
        if is_judged(wh, night):
            free = free_night(wh, night)
            raise Conflict(f"night {night} is judged already; give the new events another night, as in --night {free}")


def _properties(settings: Settings, asked: Sequence[str]) -> frozenset[str] | None:
    wanted = tuple(asked) or settings.wikidata.properties
    if ALL_PROPERTIES in wanted:
        return None
    if wanted:
        return frozenset(wanted)
    with warehouse(settings) as wh:
        return frozenset(row["pid"] for row in known_properties(wh))


def _host(replay: str) -> str:
    """`name:port` of a replay's address; UsageError where that is not on this machine."""
    if not replay:
        return ""
    try:
        parts = urlsplit(replay)
        # Reading the port checks it.
        if is_loopback(parts.hostname or "") and (parts.port is None or parts.port > 0):
            return parts.netloc
    except ValueError as error:
        raise UsageError(f"{replay}: {error}; expected http://127.0.0.1:PORT") from error
    raise UsageError(f"{replay}: a replay is served on this machine; expected http://127.0.0.1:PORT")


def _moment(until: str) -> float | None:
    """Seconds since the epoch of "HH:MM" (the next one, UTC) or an ISO time; None for "".

    Raises:
        UsageError: it is neither.
    """
    if not until:
        return None
    now = datetime.now(UTC)
    try:
        clock = datetime.strptime(until, "%H:%M")
    except ValueError:
        moment = parse_time(until)
        if moment is None:
            raise UsageError(f"until {until!r}: expected HH:MM in UTC or an ISO time") from None
        return moment.timestamp()
    moment = now.replace(hour=clock.hour, minute=clock.minute, second=0, microsecond=0)
    return (moment if moment > now else moment + timedelta(days=1)).timestamp()
