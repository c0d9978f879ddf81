"""Lineages on the dashboard: checkpoints with their parents, a page at a time, and where the head was moved."""

from __future__ import annotations

from datetime import datetime

from warehouse.database.connection import Reader
from warehouse.records import Record


class CheckpointLine(Record):
    """A checkpoint as a knot of the graph; `reason` is why a head was moved there last, where it was the head."""

    checkpoint_id: str
    parent: str | None
    night: str
    verdict: str
    created_at: datetime
    patches: int
    edits: int
    is_head: bool
    moved_at: datetime | None
    reason: str


def checkpoint_lines(wh: Reader, lineage: str, *, limit: int, offset: int = 0) -> tuple[list[CheckpointLine], int]:
    """Checkpoints of a lineage, newest first, and how many there are in all."""
    rows = wh.rows(
        """WITH moves AS (
               SELECT checkpoint_id, max(moved_at) AS moved_at, arg_max(reason, seq) AS reason, max(seq) AS seq
               FROM heads WHERE lineage = $lineage GROUP BY checkpoint_id
           ), made AS (
               SELECT checkpoint_id, count(*) AS edits FROM edits WHERE lineage = $lineage AND status <> 'skipped'
               GROUP BY checkpoint_id
           )
           SELECT c.checkpoint_id, c.parent, c.night, c.verdict, c.created_at, len(c.patch_digests) AS patches,
                  coalesce(m.edits, 0) AS edits, coalesce(h.seq = (SELECT max(seq) FROM moves), false) AS is_head,
                  h.moved_at, coalesce(h.reason, '') AS reason, count(*) OVER () AS total
           FROM checkpoints AS c LEFT JOIN moves AS h USING (checkpoint_id) LEFT JOIN made AS m USING (checkpoint_id)
           WHERE c.lineage = $lineage
           ORDER BY c.parent IS NULL, c.created_at DESC, c.checkpoint_id LIMIT $limit OFFSET $offset""",
        {"lineage": lineage, "limit": limit, "offset": offset},
    )
    total = rows[0]["total"] if rows else 0
    return [CheckpointLine(**{name: row[name] for name in CheckpointLine.model_fields}) for row in rows], total
