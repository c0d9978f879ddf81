"""Rows of the quality benchmark: what was measured, on what, by which command; kept in the warehouse."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from editors.base import Mode
from tasks.quality.requests import Split, Task
from warehouse.database.connection import Warehouse
from warehouse.digests import digest_of
from warehouse.lineages.reports import benchmarks, save_benchmark
from warehouse.records import Record, Score

#: How the warehouse's table tells these rows from those of `errata bench`.
CASE = "quality"
#: Lengths at which sequences of all lengths are compared; the first requests of a longer one are those of a shorter one.
COMPARED = (100, 300, 1000)


class Measured(Record):
    """A score without its name."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class CurvePoint(Record):
    """The same model after `edits` edits of a sequence."""

    edits: int
    scores: dict[str, Measured]


class BenchmarkRow(Record):
    """One editor in one mode on one task; `scores` by `metric/slice`.

    Attributes:
        edits: edits asked for; `refused` of them were stopped by a guard and count as failed.
        patch_bytes: of one edit, on average.
        device: what it was measured on: `cpu`, or the accelerator's name.
        note: why there are no scores, where the editor does not grant the mode.
        longer: where this is a point on the way of a longer sequence (see `with_points`), that sequence's edits.
    """

    editor: str
    mode: Mode
    task: Task
    split: Split
    edits: int
    batch_size: int
    scores: dict[str, Measured]
    curve: tuple[CurvePoint, ...] = ()
    refused: int = 0
    seconds_per_edit: float | None
    patch_bytes: int
    model: str
    model_digest: str
    config: dict[str, Any]
    config_digest: str
    probe_digest: str
    seed: int
    created_at: datetime
    command: str
    device: str = "cpu"
    note: str = ""
    longer: int = 0


def describe(score: Measured | None) -> str:
    """`0.970 (0.915 to 0.990)`, or `-`."""
    if score is None or score.value is None:
        return "-"
    if score.low is None or score.high is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"


def named(scores: Sequence[Score]) -> dict[str, Measured]:
    return {
        f"{s.metric}/{s.slice}" if s.slice else s.metric: Measured(value=s.value, low=s.low, high=s.high, n=s.n) for s in scores
    }


def save_row(wh: Warehouse, row: BenchmarkRow) -> None:
    """Append a row to the warehouse's benchmark table; nothing is ever overwritten."""
    save_benchmark(wh, CASE, row.editor, row.mode, row.model_dump(mode="json"), row.created_at)


def load_rows(wh: Warehouse, *, newest_only: bool = True) -> list[BenchmarkRow]:
    """Stored rows, oldest first; `newest_only`: of equal measurements (all but time and command) the last one."""
    rows = [BenchmarkRow.model_validate(found.metrics, strict=False) for found in benchmarks(wh, CASE)]
    if not newest_only:
        return rows
    return newest(rows)


def newest(rows: Sequence[BenchmarkRow]) -> list[BenchmarkRow]:
    """Of equal measurements (all but time and command) the last one."""
    return list({_identity(row): row for row in sorted(rows, key=lambda r: r.created_at)}.values())


def with_points(rows: Sequence[BenchmarkRow]) -> list[BenchmarkRow]:
    """The rows and, from longer sequences, their points at the compared lengths that were not measured by themselves."""
    known = {_place(row, row.edits) for row in rows}
    points = [
        row.model_copy(
            update={
                "edits": point.edits,
                "scores": point.scores,
                "curve": (),
                "longer": row.edits,
                "seconds_per_edit": point.scores["seconds_per_edit"].value if "seconds_per_edit" in point.scores else None,
            }
        )
        for row in rows
        for point in row.curve
        if point.edits in COMPARED and point.edits < row.edits and _place(row, point.edits) not in known
    ]
    return [*rows, *points]


def _place(row: BenchmarkRow, edits: int) -> tuple[object, ...]:
    # Not the probes: the standing ones keep away from the subjects of all edits that a run will make.
    return (row.editor, row.mode, row.task, row.split, row.batch_size, row.seed, row.model_digest, row.config_digest, edits)


def _identity(row: BenchmarkRow) -> str:
    return digest_of(
        row.editor,
        row.mode,
        row.task,
        row.split,
        row.edits,
        row.batch_size,
        row.seed,
        row.model_digest,
        row.config_digest,
        row.probe_digest,
    )
