"""An event of the live source that waits for its documents, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

#: Every record of the live source bears this name.
SOURCE = "wikidata"


@dataclass(frozen=True)
class PendingEvent:
    """A stored event that waits for its documents."""

    event_key: str
    entity_id: str
    action: str
    why: str
    rev_old: int | None
    rev_new: int | None
    happened_at: datetime | None
    editor_class: str
    patrolled: bool
    summary: str


@dataclass(frozen=True)
class EventOutcome:
    """What became of an event: changed, unchanged or set_aside with a reason; `records` counts the updates it made."""

    event_key: str
    outcome: str
    reason: str
    records: int = 0
