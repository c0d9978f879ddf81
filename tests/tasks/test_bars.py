"""Every bar of the leaderboard is judged by single edits of the report split, and by nothing else."""

from __future__ import annotations

import pytest

from editors.catalogue import names
from tasks.quality.bars import BARS, FORM_BARS, bars_markdown
from tests.tasks.test_claims import row


def line_of(least: str, title: str, page: str) -> list[str]:
    (line,) = [text for text in page.splitlines() if text.startswith(f"| {title} | {least} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][2:]


def test_bars_name_editors_that_there_are() -> None:
    assert {editor for bar in (*BARS, *FORM_BARS) for editor in bar.editors} <= set(names())


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


def test_a_model_that_is_asked_in_forms_has_bars_of_its_own() -> None:
    single = row("ledger", "single", 100, SR=0.96, **{"GR/chat": 0.9})
    nights = row("ledger", "sequential-batch", 300, **{"DD/known": 0.01, "perplexity_ratio": 1.1})
    page = bars_markdown([single, nights])
    assert line_of("0.97", "SR", page)[1].startswith("`ledger` 0.960")
    assert line_of("0.90", "GR in chat", page) == ["`ledger` 0.900", "-", "-"]
    assert line_of("at most 0.01", "DD after nights", page)[0] == "`ledger` 0.010"
    assert line_of("at most 1.005", "perplexity ratio after nights", page)[1].startswith("`ledger` 1.100")
    assert "`knowledge_editor`" not in page
