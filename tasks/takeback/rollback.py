"""Take a lineage back to an earlier promoted checkpoint."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from tasks.settings import Settings
from tasks.trail import mirror_audit, note, pointer_payload
from tasks.workspace import publish_copy, store_of, warehouse
from warehouse.checkpoints.promotion import move_channel
from warehouse.errors import UsageError
from warehouse.lineages.chain import head, move_head
from warehouse.records import ChannelPointer

log = logging.getLogger(__name__)


def restore(settings: Settings, checkpoint_id: str, reason: str) -> ChannelPointer:
    """Move the production channel back; every object of the target is verified first, and nothing is deleted.

    Raises:
        NotFound: no such promoted checkpoint in this lineage.
        Conflict: the lineage moved in the meantime.
        IntegrityError: the target is damaged; the channel stays where it is.
        UsageError: no reason was given.
    """
    if not reason.strip():
        raise UsageError("a rollback needs a reason: it is read by whoever asks later why the model changed")
    with warehouse(settings) as wh:
        current = head(wh, settings.lineage)
    pointer = move_channel(
        store_of(settings),
        settings.channel_name,
        checkpoint_id,
        expected_parent=current.checkpoint_id if current else None,
        moved_at=datetime.now(UTC),
    )
    moved = {"from": current.checkpoint_id if current else None, "to": checkpoint_id, **pointer_payload(pointer)}
    with warehouse(settings) as wh, wh.transaction():
        move_head(wh, settings.lineage, checkpoint_id, reason)
        # The pointer's time is part of the subject: the same way back, another day, is another event.
        note(settings, wh, "rollback", f"{checkpoint_id}@{pointer.moved_at.isoformat()}", moved, reason=reason)
    mirror_audit(settings)
    publish_copy(settings)
    log.warning("lineage %s restored to %s: %s", settings.lineage, checkpoint_id[:12], reason)
    return pointer
