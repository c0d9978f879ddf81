"""What every task of a night needs: the settings, short warehouse sessions, the store, a scratch folder."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tasks.errors import LineageBusy
from tasks.settings import Settings
from warehouse.checkpoints.object_store import ObjectStore
from warehouse.checkpoints.opening import open_store
from warehouse.database.connection import Warehouse
from warehouse.lineages.reports import cached_predictions, save_predictions
from warehouse.night_names import day_name
from warehouse.nights.order import free_night
from warehouse.records import Prediction
from warehouse.world.facts import seed_world
from warehouse.world.general import put_general_facts
from warehouse.world.templates import put_templates


class _Open(threading.local):
    """Warehouses that a thread has open."""

    def __init__(self) -> None:
        self.by_file: dict[Path, Warehouse] = {}


_OPEN = _Open()


@contextmanager
def warehouse(settings: Settings) -> Iterator[Warehouse]:
    """The warehouse, seeded with the embedded world on first use. Keep it short: it shuts out every other process.

    Inside another one of the same thread it is that one, for to open it takes longer than most of what is asked of it.
    Where the base is another model than the embedded one, what such a model can know is part of the world.
    """
    mine, path = _OPEN.by_file, settings.warehouse_path
    if path in mine:
        yield mine[path]
        return
    with Warehouse.open(path) as wh:
        seed_world(wh)
        put_templates(wh, Path(settings.templates) if settings.templates else None, general=not settings.is_embedded)
        if not settings.is_embedded:
            put_general_facts(wh)
        mine[path] = wh
        try:
            yield wh
        finally:
            del mine[path]


def todays_night(settings: Settings) -> str:
    """Today's night, whichever command fills it, or the next of its name where that one is closed to new records."""
    with warehouse(settings) as wh:
        return free_night(wh, day_name(datetime.now(UTC)))


def store_of(settings: Settings) -> ObjectStore:
    return open_store(settings.store_url)


def night_folder(settings: Settings, night: str) -> Path:
    """Scratch folder of one night on one lineage; whatever is in it can be made again."""
    return settings.work / night


class WarehouseCache:
    """Predictions kept in the warehouse; opens it for each call, so that no model call holds the lock."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def cached(self, model_digest: str, probe_ids: Sequence[str]) -> Mapping[str, Prediction]:
        with warehouse(self._settings) as wh:
            return cached_predictions(wh, model_digest, list(probe_ids))

    def put(self, predictions: Sequence[Prediction]) -> None:
        with warehouse(self._settings) as wh:
            save_predictions(wh, predictions)


@contextmanager
def lineage_lock(settings: Settings, wait_s: float = 600.0) -> Iterator[None]:
    """One run per lineage at a time on this machine; a second one waits. Between machines the store's swap decides.

    Raises:
        LineageBusy: another run still holds the lineage after `wait_s` seconds.
    """
    path = settings.home / "locks" / f"{settings.lineage}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with path.open("a+") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LineageBusy(
                        f"lineage {settings.lineage!r} is held by another run ({path}); wait for it or stop it"
                    ) from None
                time.sleep(0.2)
        # The kernel drops the lock when the process dies, so a killed run blocks nobody.
        yield
