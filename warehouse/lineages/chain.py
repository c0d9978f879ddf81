"""Lineages: checkpoints with their parents, and the head of each lineage.

A lineage is a chain of promoted checkpoints, a view over the ledger. Rejected candidates are kept beside the chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from warehouse.database.connection import Warehouse
from warehouse.errors import Conflict, IntegrityError, NotFound
from warehouse.lineages.reports import decision_of, reports_after
from warehouse.records import Checkpoint, Edit, EvaluationReport, GateDecision, GateOutcome, Record

_CHECKPOINT = ", ".join(Checkpoint.model_fields)


class CheckpointRow(Record):
    """A checkpoint with what one lineage knows of it."""

    checkpoint: Checkpoint
    lineage: str
    night: str
    verdict: GateOutcome
    manifest_digest: str | None


class LineageStep(Record):
    """One ancestor with all that led to it; `report` and `decision` are None for a base checkpoint."""

    row: CheckpointRow
    edits: tuple[Edit, ...]
    report: EvaluationReport | None
    decision: GateDecision | None


class Lineage(Record):
    """The chain from the base to the head, oldest first."""

    name: str
    steps: tuple[LineageStep, ...]


# ---------------------------------------------------------------- checkpoints


def add_checkpoint(
    wh: Warehouse,
    lineage: str,
    night: str,
    checkpoint: Checkpoint,
    verdict: GateOutcome,
    manifest_digest: str | None = None,
    *,
    expected_head: str | None = None,
) -> bool:
    """Store a checkpoint under its lineage; a promoted one becomes the head. The same call again changes nothing.

    A checkpoint on hold may be added again as promoted or rejected: the hold was settled.

    Args:
        expected_head: where given, the head that the caller built on; the ledger's own guard against a second writer.

    Returns:
        True where something was written.

    Raises:
        NotFound: the parent is not in this lineage.
        Conflict: the checkpoint has a final verdict already that differs, or the head is another than expected.
    """
    with wh.transaction():
        held = _row(wh, lineage, checkpoint.checkpoint_id)
        if held is not None and _content(held.checkpoint) != _content(checkpoint):
            raise Conflict(
                f"checkpoint {checkpoint.checkpoint_id[:12]} of lineage {lineage!r} is there already with another "
                "parent, base or list of patches; its id is the digest of base and patches, so one of the two is wrong"
            )
        if held is not None and held.verdict == verdict:
            return False
        if held is not None and held.verdict != "hold":
            raise Conflict(
                f"checkpoint {checkpoint.checkpoint_id[:12]} of lineage {lineage!r} has the verdict {held.verdict} "
                "already; a verdict is final (use move_head to go back to a promoted checkpoint)"
            )
        if checkpoint.parent is not None and _row(wh, lineage, checkpoint.parent) is None:
            raise NotFound(f"parent {checkpoint.parent[:12]} of {checkpoint.checkpoint_id[:12]} is not in lineage {lineage!r}")
        newest = head(wh, lineage)
        if expected_head is not None and (newest is None or newest.checkpoint_id != expected_head):
            found = "none" if newest is None else newest.checkpoint_id[:12]
            raise Conflict(f"the head of lineage {lineage!r} is {found}, not {expected_head[:12]}; start from the new head")
        if held is None:
            row = {**checkpoint.model_dump(), "lineage": lineage, "night": night, "verdict": verdict}
            wh.append("checkpoints", [row | {"manifest_digest": manifest_digest}], "error")
        else:
            wh.execute(
                "UPDATE checkpoints SET verdict = ?, manifest_digest = ? WHERE lineage = ? AND checkpoint_id = ?",
                [verdict, manifest_digest, lineage, checkpoint.checkpoint_id],
            )
        if verdict == "promote":
            _append_head(wh, lineage, checkpoint.checkpoint_id, f"promoted in night {night or 'base'}")
        return True


def _content(checkpoint: Checkpoint) -> dict[str, Any]:
    return checkpoint.model_dump(exclude={"created_at"})


def move_head(wh: Warehouse, lineage: str, checkpoint_id: str, reason: str) -> None:
    """Make an earlier promoted checkpoint the head again (a rollback); the way there stays on record.

    Raises:
        NotFound: the lineage has no such checkpoint.
        Conflict: that checkpoint was never promoted.
    """
    with wh.transaction():
        row = _row(wh, lineage, checkpoint_id)
        if row is None:
            raise NotFound(f"lineage {lineage!r} has no checkpoint {checkpoint_id}")
        if row.verdict != "promote":
            raise Conflict(f"checkpoint {checkpoint_id[:12]} has the verdict {row.verdict}; a head must have been promoted")
        newest = head(wh, lineage)
        if newest is None or newest.checkpoint_id != checkpoint_id:
            _append_head(wh, lineage, checkpoint_id, reason)


def _append_head(wh: Warehouse, lineage: str, checkpoint_id: str, reason: str) -> None:
    seq = wh.scalar("SELECT coalesce(max(seq), 0) + 1 FROM heads WHERE lineage = ?", [lineage])
    row = {
        "lineage": lineage,
        "seq": seq,
        "checkpoint_id": checkpoint_id,
        "moved_at": datetime.now(UTC),
        "reason": reason,
    }
    wh.append("heads", [row], "error")


def _rows(wh: Warehouse, where: str, params: Mapping[str, Any]) -> list[CheckpointRow]:
    found = wh.rows(
        f"SELECT {_CHECKPOINT}, lineage, night, verdict, manifest_digest FROM checkpoints WHERE {where} "
        "ORDER BY created_at, rowid",
        params,
    )
    own = ("lineage", "night", "verdict", "manifest_digest")
    return [
        CheckpointRow(
            checkpoint=Checkpoint(**{name: row[name] for name in Checkpoint.model_fields}),
            **{name: row[name] for name in own},
        )
        for row in found
    ]


def _row(wh: Warehouse, lineage: str, checkpoint_id: str) -> CheckpointRow | None:
    rows = _rows(wh, "lineage = $lineage AND checkpoint_id = $id", {"lineage": lineage, "id": checkpoint_id})
    return rows[0] if rows else None


def checkpoint(wh: Warehouse, checkpoint_id: str) -> Checkpoint:
    """The checkpoint of that id, in whichever lineage (its id covers its content).

    Raises:
        NotFound: no lineage has it.
    """
    rows = _rows(wh, "checkpoint_id = $id", {"id": checkpoint_id})
    if not rows:
        raise NotFound(f"no checkpoint {checkpoint_id} in the warehouse")
    return rows[0].checkpoint


def checkpoints(wh: Warehouse, lineage: str, verdict: GateOutcome | None = None) -> list[CheckpointRow]:
    """All checkpoints of a lineage, oldest first, rejected ones too unless a verdict is given."""
    return _rows(wh, "lineage = $lineage AND coalesce(verdict = $verdict, true)", {"lineage": lineage, "verdict": verdict})


def lineages(wh: Warehouse) -> list[str]:
    """Names of all lineages that have a checkpoint or a run."""
    rows = wh.rows("SELECT lineage FROM checkpoints UNION SELECT lineage FROM runs ORDER BY lineage")
    return [row["lineage"] for row in rows]


def head(wh: Warehouse, lineage: str) -> Checkpoint | None:
    """The checkpoint on which the next night builds, None for a new lineage."""
    newest = wh.scalar("SELECT checkpoint_id FROM heads WHERE lineage = ? ORDER BY seq DESC LIMIT 1", [lineage])
    row = None if newest is None else _row(wh, lineage, newest)
    return None if row is None else row.checkpoint


def ancestor_ids(wh: Warehouse, lineage: str, checkpoint_id: str) -> list[str]:
    """Ids from the checkpoint itself back to its base, newest first.

    Raises:
        NotFound: the checkpoint, or a parent on the way, is not in the lineage.
        IntegrityError: the parents run in a circle.
    """
    stored = wh.rows("SELECT checkpoint_id, parent FROM checkpoints WHERE lineage = ?", [lineage])
    parents = {row["checkpoint_id"]: row["parent"] for row in stored}
    line: list[str] = []
    at: str | None = checkpoint_id
    while at is not None:
        if at not in parents:
            raise NotFound(f"lineage {lineage!r} has no checkpoint {at}, which {line[-1] if line else 'the caller'} names")
        if at in line:
            raise IntegrityError(f"the parents of {checkpoint_id} in lineage {lineage!r} run in a circle at {at}")
        line.append(at)
        at = parents[at]
    return line


def ancestors(wh: Warehouse, lineage: str, checkpoint_id: str) -> list[Checkpoint]:
    """The checkpoint itself, its parent, and so on to the base. Raises as `ancestor_ids`."""
    by_id = {row.checkpoint.checkpoint_id: row.checkpoint for row in checkpoints(wh, lineage)}
    return [by_id[name] for name in ancestor_ids(wh, lineage, checkpoint_id)]


def lineage_view(wh: Warehouse, lineage: str) -> Lineage:
    """The chain of a lineage's head with the edits, the report and the decision of every step, oldest first.

    Raises:
        NotFound: the lineage has no head yet.
    """
    newest = head(wh, lineage)
    if newest is None:
        raise NotFound(f"lineage {lineage!r} has no promoted checkpoint yet; lineages: {', '.join(lineages(wh)) or 'none'}")
    by_id = {row.checkpoint.checkpoint_id: row for row in checkpoints(wh, lineage)}
    columns = ", ".join(Edit.model_fields)
    steps = []
    for checkpoint_id in reversed(ancestor_ids(wh, lineage, newest.checkpoint_id)):
        edits = wh.records(
            Edit,
            f"""SELECT {columns} FROM edits
                WHERE lineage = ? AND checkpoint_id = ? AND status <> 'skipped' ORDER BY edit_seq""",
            [lineage, checkpoint_id],
        )
        row = by_id[checkpoint_id]
        found = reports_after(wh, checkpoint_id, before=row.checkpoint.parent)
        decided = [(report, decision) for report in found if (decision := decision_of(wh, report.report_id)) is not None]
        report, decision = decided[-1] if decided else (found[-1] if found else None, None)
        steps.append(LineageStep(row=row, edits=tuple(edits), report=report, decision=decision))
    return Lineage(name=lineage, steps=tuple(steps))
