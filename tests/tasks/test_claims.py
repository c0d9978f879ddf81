"""The claims of the literature are judged by what was measured, and only by that."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tasks.quality.claims import SHAPES, TABLE_4, Measurements, shapes_markdown
from tasks.quality.rows import BenchmarkRow, Measured


def row(editor: str, mode: str, edits: int = 100, **scores: float) -> BenchmarkRow:
    names = {"DD": "DD/known", "locality": "locality/neighbourhood"}
    values: Any = {names.get(k, k): Measured(value=v, low=None, high=None, n=edits) for k, v in scores.items()}
    return BenchmarkRow(
        editor=editor, mode=mode, task="modification", split="report", edits=edits,
        batch_size=edits if mode == "batch" else 1, scores=values,  # pyright: ignore[reportArgumentType]
        seconds_per_edit=1.0, patch_bytes=1, model="m", model_digest="d", config={}, config_digest="c", probe_digest="p",
        seed=0, created_at=datetime(2026, 11, 21, tzinfo=UTC), command="",
    )  # fmt: skip


def verdict_of(claim: str, rows: list[BenchmarkRow]) -> str:
    line = next(line for line in shapes_markdown(rows).splitlines() if line.startswith(f"| {claim} "))
    return line.rsplit("|", 2)[1].strip()


def test_what_nobody_measured_is_not_judged() -> None:
    assert {verdict_of(shape.claim, []) for shape in SHAPES} == {"not measured"}


@pytest.mark.parametrize("kept, lost, verdict", [(0.2, 0.0, "yes"), (0.95, 0.5, "yes"), (0.95, 0.0, "no")])
def test_a_sequence_falls_apart_where_edits_or_knowledge_go(kept: float, lost: float, verdict: str) -> None:
    rows = [row("rome", "single", SR=0.99), row("rome", "sequential", SRR=kept, DD=lost)]
    assert verdict_of("ROME falls apart in sequence", rows) == verdict


def test_the_longest_run_counts() -> None:
    rows = [row("memit", "sequential", 100, SRR=0.9), row("memit", "sequential", 500, SRR=0.4)]
    assert Measurements(rows).value("memit", "sequential", "SRR") == 0.4


def test_the_longest_sequence_that_both_went_through_is_compared() -> None:
    rows = [row("memit", "sequential", 100, SRR=0.9, DD=0.0), row("memit", "sequential-batch", 2000, SRR=0.3, DD=0.8),
            row("alphaedit", "sequential", 100, SRR=0.8, DD=0.0)]  # fmt: skip
    assert verdict_of("AlphaEdit lasts longer than MEMIT", rows) == "no"
    rows.append(row("alphaedit", "sequential-batch", 2000, SRR=0.6, DD=0.3))
    assert verdict_of("AlphaEdit lasts longer than MEMIT", rows) == "yes"
    assert "memit DD after 2000 in sequence 0.800" in shapes_markdown(rows)


def test_a_sequence_that_a_guard_refused_whole_is_not_judged() -> None:
    refused = row("mend", "sequential-batch", 500, SRR=0.0, DD=0.0).model_copy(update={"refused": 500})
    page = shapes_markdown([row("mend", "single", SR=0.9), row("mend", "sequential", 500, SRR=0.1, DD=1.0), refused])
    assert "mend SRR after 500 in sequence 0.100, mend DD after 500 in sequence 1.000" in page


def test_decay_is_judged_at_the_longest_sequence() -> None:
    rows = [row("memit", "single", SR=0.98), row("memit", "sequential", 100, SRR=1.0, DD=0.0)]
    assert verdict_of("MEMIT decays in sequence", rows) == "no"
    assert verdict_of("MEMIT decays in sequence", [*rows, row("memit", "sequential-batch", 300, SRR=0.9, DD=0.0)]) == "yes"


def test_the_worst_drawdown_is_fine_tunings_or_not() -> None:
    for mode, where in (("batch", "of a batch"), ("sequential", "in sequence")):
        rows = [row("ft", mode, DD=0.5), row("memit", mode, DD=0.1)]
        claim = f"Fine-tuning without constraint has the worst drawdown {where}"
        assert verdict_of(claim, rows) == "yes"
        assert verdict_of(claim, [*rows, row("mend", mode, DD=0.9)]) == "no"
        assert verdict_of(claim, rows[1:]) == "not measured"


def test_a_batch_of_another_size_is_no_rival_in_drawdown() -> None:
    rows = [row("ft", "batch", DD=0.5), row("memit", "batch", DD=0.1), row("memit", "batch", 1000, DD=0.9)]
    assert verdict_of("Fine-tuning without constraint has the worst drawdown of a batch", rows) == "yes"


def test_figure_2_has_a_column_for_each_size_and_romes_sequences() -> None:
    rows = [row("mend", "single", 200, SRR=0.9, GRR=0.8, locality=1.0), row("mend", "batch", 1000, SRR=0.1),
            row("memit", "batch", 100, SRR=0.98, GRR=0.96, locality=1.0), row("rome", "sequential", 100, SRR=0.97)]  # fmt: skip
    page = shapes_markdown(rows)
    assert "| editor | 1 | 100 | 1000 | the survey's figure |" in page
    assert "| `mend` | 90.0 / 80.0 / 100.0 | - | 10.0 / - / - |" in page
    assert "| `rome` | - | 97.0 / - / - | - |" in page
    stopped = row("mend", "batch", 1000, SRR=0.0).model_copy(update={"refused": 1000})
    assert "| `mend` | 90.0 / 80.0 / 100.0 | refused |" in shapes_markdown([rows[0], stopped])


def test_table_4_stands_beside_what_was_measured_here() -> None:
    page = shapes_markdown([row("rome", "single", SR=0.99, GR=0.89, DD=0.0)])
    assert "| `rome` | 99.0 / 89.0 / 0.0 | 99.18 / 94.9 / 0 | 99.8 / 86.63 / 0 |" in page
    assert all(f"| `{editor}` |" in page for editor in TABLE_4)
