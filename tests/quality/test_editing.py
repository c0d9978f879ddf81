"""Edits on the reference model are as good as the presets promise. Small samples of the report split; minutes, not hours."""

from __future__ import annotations

import pytest

from tasks.benchmark import BenchmarkOptions, run_benchmark
from tasks.benchmark_rows import BenchmarkRow
from tasks.settings import Settings

pytestmark = pytest.mark.quality
OPTIONS = BenchmarkOptions(drawdown=80, held_texts=4, kl_prompts=4, fluency_prompts=0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BenchmarkRow]:
    settings = Settings(home=tmp_path_factory.mktemp("quality") / "home")
    found = run_benchmark(settings, ["r_rome", "memit", "ft_m", "grace", "ice"], ["single"], 12, options=OPTIONS)
    return {row.editor: row for row in found}


@pytest.mark.parametrize(
    ("editor", "metric", "least"),
    [
        ("r_rome", "SR", 0.9), ("r_rome", "GR", 0.75), ("r_rome", "locality/neighbourhood", 0.85),
        ("memit", "SR", 0.9), ("memit", "GR", 0.75), ("memit", "locality/neighbourhood", 0.85),
        ("ft_m", "SR", 0.9), ("grace", "SR", 0.9), ("grace", "locality/neighbourhood", 0.95), ("ice", "SR", 0.75),
    ],
)  # fmt: skip
def test_single_edits_reach_their_bar(rows: dict[str, BenchmarkRow], editor: str, metric: str, least: float) -> None:
    measured = rows[editor].scores[metric]
    assert measured.value is not None
    assert measured.value >= least, f"{editor} {metric} over {measured.n}"
