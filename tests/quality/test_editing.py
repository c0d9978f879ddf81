"""Edits on the reference model are as good as the presets promise. Small samples of the report split; minutes, not hours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.quality.benchmark import run_benchmark
from tasks.quality.questions import BenchmarkOptions
from tasks.quality.rows import BenchmarkRow
from tasks.settings import EditorSettings, Settings

pytestmark = pytest.mark.quality
OPTIONS = BenchmarkOptions(drawdown=80, held_texts=4, kl_prompts=4, fluency_prompts=0)
#: What a user gets who names no editor.
DEFAULT = EditorSettings().name


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, prepared_home: Callable[[Path], Path]) -> Settings:
    return Settings(home=prepared_home(tmp_path_factory.mktemp("quality") / "home"))


@pytest.fixture(autouse=True)
def without_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bar asks how long an edited model takes to answer, and that takes a tenth of all seconds here."""
    monkeypatch.setattr("tasks.quality.benchmark.latency_ratio", lambda *_: [])


#: Editor -> metric -> what it reaches singly.
SINGLE = {
    "r_rome": {"SR": 0.9, "GR": 0.75, "locality/neighbourhood": 0.85},
    "memit": {"SR": 0.9, "GR": 0.75, "locality/neighbourhood": 0.85},
    "ft_m": {"SR": 0.9},
    "grace": {"SR": 0.9, "locality/neighbourhood": 0.95},
    "ice": {"SR": 0.75},
}
#: Metric -> what the default editor reaches as nights use it: batches on top of one another.
NIGHTS = {"SR": 0.9, "GR": 0.75, "SRR": 0.9, "GRR": 0.75, "locality/neighbourhood": 0.95}


def short_of(row: BenchmarkRow, bars: dict[str, float]) -> dict[str, str]:
    """Metrics of a row that were not measured or miss their bar."""
    found = {metric: row.scores[metric] for metric in bars}
    return {m: f"{s.value} over {s.n}, bar {bars[m]}" for m, s in found.items() if s.value is None or s.value < bars[m]}


def test_single_edits_reach_their_bars(settings: Settings) -> None:
    # One test: what is measured is shared, and workers that split it would each measure it.
    rows = run_benchmark(settings, list(SINGLE), ["single"], 12, options=OPTIONS)
    assert {row.editor for row in rows} == set(SINGLE)
    assert {row.editor: short for row in rows if (short := short_of(row, SINGLE[row.editor]))} == {}


def test_edits_of_the_default_editor_last_and_cost_bystanders_almost_nothing(settings: Settings) -> None:
    (row,) = run_benchmark(settings, [DEFAULT], ["sequential-batch"], 18, 6, options=OPTIONS)
    assert short_of(row, NIGHTS) == {}
    assert row.scores["DD"].value is not None and row.scores["DD"].value <= 0.02
