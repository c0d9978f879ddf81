"""Keep a night's records as they came."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.settings import Settings
from tasks.workspace import warehouse
from warehouse.artifacts import StoreUnavailable
from warehouse.intake import receive, updates_of
from warehouse.sources import Source, open_source
from warehouse.store import WarehouseBusy

log = logging.getLogger(__name__)
#: Records of one write transaction.
CHUNK = 5000


def only_by_chance(_task: Any, _run: Any, state: Any) -> bool:
    """Retry what can pass by itself (a busy warehouse, an unreachable store); never a broken record or rule."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, (WarehouseBusy, StoreUnavailable, ConnectionError, TimeoutError))


#: Options of every task of a night. Nothing is cached by Prefect: the warehouse knows what is done.
STEP: dict[str, Any] = {
    "cache_policy": NO_CACHE, "persist_result": False, "retries": 2, "retry_delay_seconds": 5,
    "retry_condition_fn": only_by_chance,
}  # fmt: skip


def source_of(settings: Settings) -> Source:
    return open_source(settings.source.kind, Path(settings.source.path))


@task(name="ingest", **STEP)
def ingest(settings: Settings, night: str) -> int:
    """Receive every record of the night; receiving it again adds nothing.

    Returns:
        The number of the night's records now in the warehouse.

    Raises:
        SourceError: the night, its file or folder is missing, empty or of another shape.
    """
    records = source_of(settings).records(night)
    new = 0
    while chunk := list(islice(records, CHUNK)):
        with warehouse(settings) as wh:
            new += receive(wh, chunk)
    with warehouse(settings) as wh:
        total = len(updates_of(wh, night))
    log.info("night %s: %d records received, %d of them new", night, total, new)
    return total
