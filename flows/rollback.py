"""Serve an earlier checkpoint of a lineage again."""

from __future__ import annotations

from prefect import flow

from tasks.settings import configure
from tasks.takeback.rollback import restore
from tasks.workspace import lineage_lock
from warehouse.records import ChannelPointer


@flow(name="rollback", validate_parameters=False)
def roll_back(checkpoint: str, reason: str, lineage: str | None = None) -> ChannelPointer:
    """Move the lineage's channel to a promoted checkpoint of its own past, verified whole first."""
    settings = configure(lineage=lineage)
    with lineage_lock(settings):
        return restore(settings, checkpoint, reason)
