"""Prefect's options of a step: what is tried again, and that Prefect itself remembers nothing."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE

from warehouse.checkpoints.object_store import StoreUnavailable
from warehouse.database.connection import WarehouseBusy


def only_by_chance(_task: Any, _run: Any, state: Any) -> bool:
    """Retry what can pass by itself (a busy warehouse, an unreachable store); never a broken record or rule."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, (WarehouseBusy, StoreUnavailable, ConnectionError, TimeoutError))


#: Options of every task of a night. Nothing is cached by Prefect: the warehouse knows what is done.
STEP: dict[str, Any] = {
    "cache_policy": NO_CACHE, "persist_result": False, "retries": 2, "retry_delay_seconds": 5,
    "retry_condition_fn": only_by_chance,
}  # fmt: skip
