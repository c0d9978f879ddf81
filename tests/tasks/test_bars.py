"""Every bar of the leaderboard is judged by single edits of the report split, and by nothing else."""

from __future__ import annotations

import pytest

from editors.catalogue import names
from tasks.quality.bars import BARS, bars_markdown
from tests.tasks.test_claims import row


def line_of(least: str, title: str, page: str) -> list[str]:
    (line,) = [text for text in page.splitlines() if text.startswith(f"| {title} | {least} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][2:]


def test_bars_name_editors_that_there_are() -> None:
    assert {editor for bar in BARS for editor in bar.editors} <= set(names())


def test_what_nobody_measured_is_neither_above_nor_below() -> None:
    assert line_of("0.80", "SR", bars_markdown([])) == ["-", "-", "`knowledge_editor`"]


@pytest.mark.parametrize(("value", "place"), [(0.8, 0), (0.7999, 1)])
def test_a_bar_is_reached_at_its_value(value: float, place: int) -> None:
    cells = line_of("0.80", "SR", bars_markdown([row("knowledge_editor", "single", 200, SR=value)]))
    assert cells[place].startswith(f"`knowledge_editor` {value:.3f}") and cells[2] == "-"


def test_other_modes_and_splits_do_not_count() -> None:
    tuned_on = row("knowledge_editor", "single", SR=0.9).model_copy(update={"split": "development"})
    batch = row("knowledge_editor", "batch", SR=0.9)
    assert line_of("0.80", "SR", bars_markdown([tuned_on, batch])) == ["-", "-", "`knowledge_editor`"]
