"""Leaderboards: what the quality benchmark measured, in this warehouse and as shipped with the code."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from flows.dashboard.asking import Page, Visit
from flows.dashboard.sheets import Column, Sheet
from warehouse.dashboard.measured import SHOWN, MeasuredLine, measured_here, measured_in
from warehouse.errors import NotFound

SHIPPED = Path(__file__).parents[3] / "docs" / "benchmark"
#: Where lines come from -> the file of rows; None: this warehouse.
SOURCES: dict[str, str | None] = {
    "reference": "rows.jsonl",
    "smollm2": "smollm2-rows.jsonl",
    "warehouse": None,
}


def leaderboards(asked: Visit) -> Page:
    """One setting of one source: lines that may be compared.

    Raises:
        NotFound: the source has no such setting.
    """
    source = asked.one_of("source", tuple(SOURCES)) or "reference"
    lines = measured_here(asked.wh) if SOURCES[source] is None else _shipped(SHIPPED / str(SOURCES[source]))
    settings = list(dict.fromkeys(line.setting for line in lines))
    number = asked.text("setting") or str(_first(settings) + 1)
    if settings and not (number.isascii() and number.isdecimal() and 1 <= int(number[:6]) <= len(settings)):
        raise NotFound(f"{source} has no setting {number!r}; it has {len(settings)}")
    rows = [line for line in lines if settings and line.setting == settings[int(number) - 1]]
    columns = (
        Column("editor", "editor", "code"),
        *(Column(f"scores.{title}", title, "score") for title, _ in SHOWN if any(r.scores[title][0] is not None for r in rows)),
        Column("seconds_per_edit", "s/edit", "number"),
        Column("device", "device"),
        Column("created_at", "measured (UTC)", "time"),
    )
    empty = (
        "nothing was measured here: run `errata benchmark`" if SOURCES[source] is None else "not shipped with this installation"
    )
    return Page(
        "Leaderboards",
        "leaderboards.html",
        (Sheet("lines", _words(settings[int(number) - 1]) if rows else "Measured editors", columns, rows, empty=empty),),
        {
            "source": source,
            "sources": tuple(SOURCES),
            "number": int(number) if settings else 1,
            "settings": [_words(setting) for setting in settings],
            "commands": sorted({line.command for line in rows if line.command}),
        },
    )


@cache
def _shipped(path: Path) -> tuple[MeasuredLine, ...]:
    return tuple(measured_in(path))


def _first(settings: list[tuple[str, str, str, int, int, str]]) -> int:
    """The place of the setting that is asked for most: single modifications; the first one where there is none."""
    return next((place for place, (task, _, mode, *_) in enumerate(settings) if (task, mode) == ("modification", "single")), 0)


def _words(setting: tuple[str, str, str, int, int, str]) -> str:
    task, split, mode, edits, batch, digest = setting
    size = f" in batches of {batch}" if batch not in (1, edits) else ""
    return f"{task}, {mode}: {edits} edits{size} ({split} split, model {digest[:12]})"
