"""Leaderboards on the dashboard: measured rows of the quality benchmark, from the warehouse or from a shipped file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from warehouse.database.connection import Warehouse
from warehouse.lineages.reports import benchmarks
from warehouse.records import Record

#: As the quality benchmark names its rows.
CASE = "quality"
#: (column, key of the score): what a leaderboard on a page shows; the whole row is behind it.
SHOWN = (
    ("SR", "SR"), ("GR", "GR"), ("SRR", "SRR"), ("ESR", "ESR"), ("neighbourhood", "locality/neighbourhood"),
    ("unrelated", "locality/unrelated"), ("DD", "DD/known"), ("perplexity ratio", "perplexity_ratio"),
)  # fmt: skip


class MeasuredLine(Record):
    """An editor in one mode on one task; `scores`: (value, low, high) by the columns of `SHOWN`."""

    editor: str
    mode: str
    task: str
    split: str
    edits: int
    batch_size: int
    model: str
    model_digest: str
    scores: dict[str, tuple[float | None, float | None, float | None]]
    seconds_per_edit: float | None
    device: str
    created_at: datetime
    command: str

    @property
    def setting(self) -> tuple[str, str, str, int, int, str]:
        """Lines of equal settings may be compared."""
        return self.task, self.split, self.mode, self.edits, self.batch_size, self.model_digest


def measured_here(wh: Warehouse) -> list[MeasuredLine]:
    """What was measured into this warehouse; of equal measurements the newest."""
    return _newest(found.metrics for found in benchmarks(wh, CASE))


def measured_in(path: Path) -> list[MeasuredLine]:
    """What a shipped file of rows says (`docs/benchmark`); of equal measurements the newest, and nothing of no file."""
    if not path.exists():
        return []
    return _newest(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _newest(rows: Iterable[Mapping[str, Any]]) -> list[MeasuredLine]:
    lines = sorted((_line(row) for row in rows if row["scores"]), key=lambda line: line.created_at)
    kept = {(line.editor, line.setting): line for line in lines}.values()
    return sorted(kept, key=lambda line: (line.setting, -(line.scores["GR"][0] or 0.0), line.editor))


def _line(row: Mapping[str, Any]) -> MeasuredLine:
    names = [name for name in MeasuredLine.model_fields if name != "scores"]
    scores = {}
    for title, key in SHOWN:
        score = row["scores"].get(key, {})
        scores[title] = (score.get("value"), score.get("low"), score.get("high"))
    return MeasuredLine(**{name: row.get(name, "cpu" if name == "device" else None) for name in names}, scores=scores)
