"""Keep a night's records as they came."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

from prefect import task

from tasks.settings import Settings
from tasks.steps import STEP
from tasks.workspace import warehouse
from warehouse.errors import Conflict, SourceError
from warehouse.ingest.stream_tables import SOURCE as STREAM
from warehouse.ingest.stream_tables import streamed_nights
from warehouse.nights.intake import receive, updates_of, verdicts_of
from warehouse.nights.order import in_order
from warehouse.sources import Source, open_source

log = logging.getLogger(__name__)
#: Records of one write transaction.
CHUNK = 5000


def source_of(settings: Settings, night: str | None = None) -> Source:
    """The configured source; a night that came over the live stream is the live source's, whatever is configured."""
    if settings.source.kind == "wikidata" or (night is not None and night in streamed(settings)):
        return open_source("wikidata", settings.warehouse_path)
    return open_source(settings.source.kind, Path(settings.source.path), settings.source.task)


def nights_of(settings: Settings) -> tuple[str, ...]:
    """All nights that can be run, in order: those received already, then the source's new ones.

    Raises:
        SourceError: the source cannot be read.
    """
    named = (*streamed(settings), *source_of(settings).nights())
    with warehouse(settings) as wh:
        return tuple(in_order(wh, named))


def streamed(settings: Settings) -> tuple[str, ...]:
    """Nights that `errata ingest wikidata` has brought in."""
    with warehouse(settings) as wh:
        return streamed_nights(wh)


def _named_by_files(settings: Settings) -> tuple[str, ...]:
    try:
        return source_of(settings).nights()
    except SourceError:
        return ()


@task(name="ingest", **STEP)
def ingest(settings: Settings, night: str) -> int:
    """Receive every record of the night; receiving it again adds nothing.

    Returns:
        The number of the night's records now in the warehouse.

    Raises:
        SourceError: the night, its file or folder is missing, empty or of another shape.
        Conflict: the live stream and the source both have a night of that name.
    """
    source = source_of(settings, night)
    if source.name == STREAM and settings.source.kind != "wikidata" and night in _named_by_files(settings):
        raise Conflict(
            f"night {night} came over the live stream, and {settings.source.path} has a night of that name too, whose records "
            "would be left out: give the file another name, and run both nights"
        )
    records = source.records(night)
    new = 0
    while chunk := list(islice(records, CHUNK)):
        with warehouse(settings) as wh, wh.transaction():
            new += receive(wh, chunk)
            if new and verdicts_of(wh, night):
                raise Conflict(
                    f"night {night} is judged already, and its source now has {new} other records. Put them into a file of "
                    "another name, or take the night back, so that it is read again: "
                    f"`errata night withdraw {night} --reason WHY`"
                )
    with warehouse(settings) as wh:
        total = len(updates_of(wh, night))
    log.info("night %s: %d records received, %d of them new", night, total, new)
    return total
