"""Edits held back by the isolation of culprits: the evidence against each, and what a released one asks for.

They wait in the quarantine queue (`warehouse.nights.quarantine`) under their edit id and the source `edits:LINEAGE`. A record
belongs to the world, such an edit to one lineage: released, it goes to the editor of the lineage's next night, and is
not judged again as a record, for the world has believed it since its own night.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from warehouse.database.connection import Warehouse
from warehouse.digests import canonical_json
from warehouse.errors import NotFound
from warehouse.nights.intake import requests_by_id
from warehouse.nights.order import nights_before
from warehouse.nights.quarantine import QuarantineEntry, entries, note_join
from warehouse.records import EditRequest, Record

SOURCE = "edits:"


class HeldEdit(Record):
    """One edit that was taken out. `broken`: how many probes it broke; `probes`: (kind, prompt) of the first of them."""

    lineage: str
    edit_id: str
    request_id: str
    night: str
    checkpoint_id: str
    cause: Literal["culprit", "unexplored"]
    sentence: str
    broken: int
    probes: tuple[tuple[str, str], ...]


def hold(wh: Warehouse, edits: Sequence[HeldEdit]) -> int:
    """Put edits into the queue; one that is there already adds nothing."""
    rows = [edit.model_dump() | {"probes": canonical_json(edit.probes).decode()} for edit in edits]
    return wh.append("held_edits", rows) if rows else 0


def held_edit(wh: Warehouse, entry: QuarantineEntry) -> HeldEdit:
    """The evidence behind an entry of the queue.

    Raises:
        NotFound: the entry is a record's.
    """
    rows = wh.rows(
        "SELECT * REPLACE (probes::TEXT AS probes) FROM held_edits WHERE lineage = ? AND edit_id = ?",
        [entry.source.removeprefix(SOURCE), entry.record_id],
    )
    if entry.kind != "edit" or not rows:
        raise NotFound(f"{entry.record_id!r} of {entry.source!r} is no edit that was held back")
    return HeldEdit(**{**rows[0], "probes": json.loads(rows[0]["probes"])})


def join_held(wh: Warehouse, lineage: str, night: str) -> tuple[list[EditRequest], list[EditRequest]]:
    """Requests of the edits that were released before a night of their lineage; a second call gives the same.

    Returns:
        Those to edit, and those whose subject and relation have had a newer request since, which stands.
    """
    with wh.transaction():
        mine = [e for e in entries(wh, source=SOURCE + lineage) if e.state in ("released", "joined")]
        before = nights_before(wh, night)
        joining = [e for e in mine if e.joined_night == night or (e.state == "released" and e.night in before)]
        for entry in joining:
            if entry.joined_night is None:
                note_join(wh, entry, night, entry.related[0])
        # An edit that was held twice is one request.
        names = list(dict.fromkeys(entry.related[0] for entry in joining))
        stale = {
            row["request_id"]
            for row in wh.rows(
                """SELECT DISTINCT h.request_id FROM edit_requests AS h JOIN edit_requests AS newer
                     ON newer.subject_id = h.subject_id AND newer.subject = h.subject AND newer.relation = h.relation
                   WHERE place_of(newer.night) > place_of(h.night) AND place_of(newer.night) <= place_of($night)
                     AND list_contains($names, h.request_id)""",
                {"night": night, "names": names},
            )
        }
        requests = requests_by_id(wh, names)
    return [r for r in requests if r.request_id not in stale], [r for r in requests if r.request_id in stale]
