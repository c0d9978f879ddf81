"""The ledger of a lineage: batches, patches, and which edit is in force.

An edit is in force while the checkpoint that holds it is among the ancestors of the lineage's head and the checkpoint
that superseded it, if any, is not. So a rollback puts every edit back by moving the head alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import pandas as pd
from pydantic import Field

from warehouse.database.connection import Warehouse
from warehouse.digests import digest_of
from warehouse.errors import Conflict, NotFound
from warehouse.lineages.chain import ancestor_ids, head
from warehouse.nights.intake import requests_by_id
from warehouse.records import Edit, EditBatch, EditRequest, Record

EditStatus = Literal["active", "superseded", "rejected", "skipped"]

_EDIT = ", ".join(f"e.{name}" for name in Edit.model_fields)


class PatchRow(Record):
    """What the warehouse keeps of a patch: its tensors are in the artifact store."""

    patch_digest: str
    kind: Literal["weight", "module", "memory", "prompt"]
    editor: str
    bytes: int
    meta: dict[str, Any] = Field(default_factory=dict)


class LedgerLine(NamedTuple):
    """An edit with what has become of it in its lineage."""

    edit: Edit
    night: str
    checkpoint_id: str | None
    status: EditStatus
    reason: str


# ---------------------------------------------------------------- batches and patches


def record_batches(
    wh: Warehouse,
    lineage: str,
    night: str,
    editor: str,
    batches: Sequence[EditBatch],
    created_at: datetime | None = None,
) -> int:
    """Store batches by the ids of their requests; a batch stored already adds nothing.

    Raises:
        NotFound: a batch holds a request that `record_verdicts` never stored.
        Conflict: the batch_id is there already with other requests.
    """
    rows = [
        {
            "lineage": lineage,
            "batch_id": b.batch_id,
            "night": night,
            "editor": editor,
            "request_ids": [r.request_id for r in b.requests],
            "created_at": created_at or datetime.now(UTC),
        }
        for b in batches
    ]
    with wh.transaction():
        requests_by_id(wh, [r.request_id for b in batches for r in b.requests])
        stored = wh.rows("SELECT batch_id, request_ids FROM batches WHERE lineage = ?", [lineage])
        held = {row["batch_id"]: row["request_ids"] for row in stored}
        for row in rows:
            if held.setdefault(row["batch_id"], row["request_ids"]) != row["request_ids"]:
                raise Conflict(
                    f"batch {row['batch_id']!r} of lineage {lineage!r} is there already with other requests; give it a new id"
                )
        return wh.append("batches", rows)


def batches_of(wh: Warehouse, lineage: str, night: str) -> list[EditBatch]:
    """The night's batches as they were applied, with their requests."""
    rows = wh.rows(
        "SELECT batch_id, request_ids FROM batches WHERE lineage = ? AND night = ? ORDER BY created_at, rowid",
        [lineage, night],
    )
    return [EditBatch(batch_id=row["batch_id"], requests=tuple(requests_by_id(wh, row["request_ids"]))) for row in rows]


def save_patches(wh: Warehouse, patches: Sequence[PatchRow]) -> int:
    """Store what is known of patches; one stored already adds nothing (its digest covers its content)."""
    return wh.append("patches", patches)


def patch(wh: Warehouse, patch_digest: str) -> PatchRow:
    """Raises NotFound where no patch has that digest."""
    rows = wh.rows(
        "SELECT patch_digest, kind, editor, bytes, meta::TEXT AS meta FROM patches WHERE patch_digest = ?", [patch_digest]
    )
    if not rows:
        raise NotFound(f"no patch {patch_digest} in the warehouse")
    return PatchRow(**{**rows[0], "meta": json.loads(rows[0]["meta"])})


def holds_patches(wh: Warehouse, patch_digests: Sequence[str]) -> bool:
    """Whether each of these patches is known here."""
    asked = sorted(set(patch_digests))
    held = wh.scalar("SELECT count(*) FROM patches WHERE list_contains($patches, patch_digest)", {"patches": asked})
    return held == len(asked)


# ---------------------------------------------------------------- edits


def ledger_row(
    request: EditRequest, batch: EditBatch, editor: str, config_digest: str, patch_digest: str, again: str = ""
) -> Edit:
    """The row of an edit; its id follows from the request, the configuration and the patch, or the batch where none is left.

    Args:
        again: the night, where an earlier one may have made and rejected the very same patch.
    """
    named = (request.request_id, config_digest, patch_digest or batch.batch_id, *([again] if again else []))
    return Edit(
        edit_id=digest_of(*named)[:24],
        request_id=request.request_id,
        batch_id=batch.batch_id,
        editor=editor,
        config_digest=config_digest,
        patch_digest=patch_digest,
        applied_at=datetime.now(UTC),
    )


def record_edits(
    wh: Warehouse,
    lineage: str,
    night: str,
    edits: Sequence[Edit],
    *,
    checkpoint_id: str | None = None,
    status: EditStatus = "active",
    reason: str = "",
) -> int:
    """Enter edits in the order in which they were applied; an edit entered already adds nothing.

    Args:
        checkpoint_id: the candidate that holds the patches, where it is known already (else `settle_edits` later).
        status: "active" for applied edits, "skipped" for requests that the editor declined (empty patch_digest).

    Returns:
        The number of new rows.

    Raises:
        NotFound: an edit names an unknown request.
        Conflict: an edit_id is there already for another request, batch or patch.
    """
    with wh.transaction():
        requests_by_id(wh, [edit.request_id for edit in edits])
        asked = pd.DataFrame({"edit_id": [edit.edit_id for edit in edits]}, dtype="str").assign(lineage=lineage)
        stored = wh.records(Edit, f"SELECT {_EDIT} FROM edits AS e SEMI JOIN asked USING (lineage, edit_id)", asked=asked)
        held = {edit.edit_id: _identity(edit) for edit in stored}
        known = set(held)
        for edit in edits:
            if held.setdefault(edit.edit_id, _identity(edit)) != _identity(edit):
                raise Conflict(
                    f"edit {edit.edit_id!r} of lineage {lineage!r} is there already for another request, batch or "
                    "patch; give it a new id"
                )
        start = wh.scalar("SELECT coalesce(max(edit_seq), 0) FROM edits WHERE lineage = ?", [lineage])
        fresh = {edit.edit_id: edit for edit in reversed(edits) if edit.edit_id not in known}
        rows = [edit.model_dump() | {"edit_seq": start + 1 + i} for i, edit in enumerate(reversed(fresh.values()))]
        constants = {
            "lineage": lineage,
            "night": night,
            "checkpoint_id": checkpoint_id,
            "status": status,
            "reason": reason,
        }
        return wh.append("edits", rows, "error", constants=constants)


def _identity(edit: Edit) -> tuple[str, ...]:
    return (edit.request_id, edit.batch_id, edit.editor, edit.config_digest, edit.patch_digest)


def settle_edits(
    wh: Warehouse,
    lineage: str,
    night: str,
    checkpoint_id: str,
    *,
    status: Literal["active", "rejected"],
    reason: str = "",
    edit_ids: Sequence[str] | None = None,
) -> int:
    """Tell a night's edits (or some of them) which checkpoint holds them and whether it was rejected.

    Skipped edits stay skipped. A candidate on hold keeps "active": it is no ancestor of the head, so nothing of it is
    in force.

    Returns:
        The number of edits that this concerns.
    """
    chosen = pd.DataFrame({"edit_id": list(edit_ids or ())}, dtype="str")
    return wh.execute(
        """UPDATE edits SET checkpoint_id = $checkpoint_id, status = $status, reason = $reason
           WHERE lineage = $lineage AND night = $night AND status IN ('active', 'rejected')
             AND ($all OR edit_id IN (SELECT edit_id FROM chosen))""",
        {
            "lineage": lineage,
            "night": night,
            "checkpoint_id": checkpoint_id,
            "status": status,
            "reason": reason,
            "all": edit_ids is None,
        },
        chosen=chosen,
    )


def supersede(wh: Warehouse, lineage: str, edit_ids: Sequence[str], *, in_checkpoint: str, reason: str) -> int:
    """Take edits out of force because `in_checkpoint` holds a newer answer or a retraction.

    Call it when that checkpoint is promoted. Edits superseded already keep their first reason, unless the checkpoint
    behind it has since been rolled back.

    Returns:
        The number of edits that changed.

    Raises:
        NotFound: the lineage has no such edit.
    """
    asked = pd.DataFrame({"edit_id": list(edit_ids)}, dtype="str").drop_duplicates()
    with wh.transaction():
        known = wh.rows("SELECT edit_id FROM edits SEMI JOIN asked USING (edit_id) WHERE lineage = ?", [lineage], asked=asked)
        if missing := sorted(set(edit_ids) - {row["edit_id"] for row in known}):
            raise NotFound(f"lineage {lineage!r} has no edit {missing[0]!r}, so it cannot be superseded")
        line = pd.DataFrame({"checkpoint_id": _line_of_head(wh, lineage)}, dtype="str")
        return wh.execute(
            """UPDATE edits SET status = 'superseded', superseded_in = $in_checkpoint, reason = $reason
               WHERE lineage = $lineage AND edit_id IN (SELECT edit_id FROM asked)
                 AND (status = 'active' OR status = 'superseded'
                      AND superseded_in NOT IN (SELECT checkpoint_id FROM line)
                      AND superseded_in <> $in_checkpoint)""",
            {"lineage": lineage, "in_checkpoint": in_checkpoint, "reason": reason},
            asked=asked,
            line=line,
        )


def _line_of_head(wh: Warehouse, lineage: str) -> list[str]:
    newest = head(wh, lineage)
    return [] if newest is None else ancestor_ids(wh, lineage, newest.checkpoint_id)


def active_edits(wh: Warehouse, lineage: str) -> list[tuple[Edit, EditRequest]]:
    """The edits in force in the lineage's head, in the order in which they were applied, with their requests."""
    line = pd.DataFrame({"checkpoint_id": _line_of_head(wh, lineage)}, dtype="str")
    edits = wh.records(
        Edit,
        f"""SELECT {_EDIT} FROM edits AS e SEMI JOIN line USING (checkpoint_id)
            WHERE e.lineage = $lineage
              AND (e.status = 'active'
                   OR e.status = 'superseded' AND e.superseded_in NOT IN (SELECT checkpoint_id FROM line))
            ORDER BY e.edit_seq""",
        {"lineage": lineage},
        line=line,
    )
    return list(zip(edits, requests_by_id(wh, [edit.request_id for edit in edits]), strict=True))


def edits_of(wh: Warehouse, lineage: str, night: str | None = None) -> list[LedgerLine]:
    """All ledger lines of a lineage (of one night), whatever became of them, in the order of entry."""
    rows = wh.rows(
        f"""SELECT {_EDIT}, e.night, e.checkpoint_id, e.status, e.reason FROM edits AS e
            WHERE e.lineage = $lineage AND coalesce(e.night = $night, true) ORDER BY e.edit_seq""",
        {"lineage": lineage, "night": night},
    )
    return [
        LedgerLine(
            Edit(**{name: row[name] for name in Edit.model_fields}),
            row["night"],
            row["checkpoint_id"],
            row["status"],
            row["reason"],
        )
        for row in rows
    ]


def replaced_edits(wh: Warehouse, lineage: str, edit_ids: Sequence[str], *, unless_reason: str) -> list[dict[str, Any]]:
    """The superseded edits that stood before these in the slots of their requests, in the order in which they were applied.

    Args:
        unless_reason: an edit whose reason begins so is left out.

    Returns:
        `edit_id`, `checkpoint_id` and `superseded_in` of each, and `going`: which of `edit_ids` stands in its slot.
    """
    return wh.rows(
        """SELECT old.edit_id, old.superseded_in, old.checkpoint_id, new.edit_id AS going
           FROM edits AS new JOIN edit_requests AS n ON n.request_id = new.request_id
           JOIN edit_requests AS o ON o.subject_id = n.subject_id AND o.subject = n.subject AND o.relation = n.relation
           JOIN edits AS old ON old.request_id = o.request_id AND old.lineage = new.lineage
           WHERE new.lineage = $lineage AND list_contains($going, new.edit_id) AND old.status = 'superseded'
             AND old.request_id <> new.request_id AND old.edit_seq < new.edit_seq AND NOT starts_with(old.reason, $reverted)
           ORDER BY old.edit_seq""",
        {"lineage": lineage, "going": list(edit_ids), "reverted": unless_reason},
    )
