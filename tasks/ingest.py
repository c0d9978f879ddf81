"""Keep a night's records as they came."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

from prefect import task

from tasks.settings import Settings
from tasks.steps import STEP
from tasks.workspace import warehouse
from warehouse.errors import Conflict
from warehouse.intake import receive, updates_of, verdicts_of
from warehouse.sources import Source, open_source
from warehouse.stream_store import streamed_nights

log = logging.getLogger(__name__)
#: Records of one write transaction.
CHUNK = 5000


def source_of(settings: Settings, night: str | None = None) -> Source:
    """The configured source; a night that came over the live stream is the live source's, whatever is configured."""
    if settings.source.kind == "wikidata" or (night is not None and night in streamed(settings)):
        return open_source("wikidata", settings.warehouse_path)
    return open_source(settings.source.kind, Path(settings.source.path), settings.source.task)


def nights_of(settings: Settings) -> tuple[str, ...]:
    """All nights that can be run: those that came over the live stream, then those of the source.

    Raises:
        SourceError: the source cannot be read.
    """
    live = streamed(settings)
    return (*live, *(night for night in source_of(settings).nights() if night not in live))


def streamed(settings: Settings) -> tuple[str, ...]:
    """Nights that `errata ingest wikidata` has brought in."""
    with warehouse(settings) as wh:
        return streamed_nights(wh)


@task(name="ingest", **STEP)
def ingest(settings: Settings, night: str) -> int:
    """Receive every record of the night; receiving it again adds nothing.

    Returns:
        The number of the night's records now in the warehouse.

    Raises:
        SourceError: the night, its file or folder is missing, empty or of another shape.
    """
    records = source_of(settings, night).records(night)
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
