"""Edits on the reference model are as good as the presets promise. Small samples of the report split; minutes, not hours."""

from __future__ import annotations

import pytest

from tasks.quality.benchmark import BenchmarkOptions, run_benchmark
from tasks.quality.rows import BenchmarkRow
from tasks.settings import EditorSettings, Settings

pytestmark = pytest.mark.quality
OPTIONS = BenchmarkOptions(drawdown=80, held_texts=4, kl_prompts=4, fluency_prompts=0)
#: What a user gets who names no editor.
DEFAULT = EditorSettings().name


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("quality") / "home")


@pytest.fixture(scope="module")
def rows(settings: Settings) -> dict[str, BenchmarkRow]:
    found = run_benchmark(settings, [DEFAULT, "r_rome", "memit", "ft_m", "grace", "ice"], ["single"], 12, options=OPTIONS)
    return {row.editor: row for row in found}


@pytest.fixture(scope="module")
def nights(settings: Settings) -> BenchmarkRow:
    """The default editor as nights use it: batches on top of one another."""
    (row,) = run_benchmark(settings, [DEFAULT], ["sequential-batch"], 24, 8, options=OPTIONS)
    return row


@pytest.mark.parametrize(
    ("editor", "metric", "least"),
    [
        (DEFAULT, "SR", 0.9), (DEFAULT, "GR", 0.75), (DEFAULT, "locality/neighbourhood", 0.95),
        ("r_rome", "SR", 0.9), ("r_rome", "GR", 0.75), ("r_rome", "locality/neighbourhood", 0.85),
        ("memit", "SR", 0.9), ("memit", "GR", 0.75), ("memit", "locality/neighbourhood", 0.85),
        ("ft_m", "SR", 0.9), ("grace", "SR", 0.9), ("grace", "locality/neighbourhood", 0.95), ("ice", "SR", 0.75),
    ],
)  # fmt: skip
def test_single_edits_reach_their_bar(rows: dict[str, BenchmarkRow], editor: str, metric: str, least: float) -> None:
    measured = rows[editor].scores[metric]
    assert measured.value is not None
    assert measured.value >= least, f"{editor} {metric} over {measured.n}"


@pytest.mark.parametrize(("metric", "least"), [("SR", 0.9), ("SRR", 0.9), ("GRR", 0.75), ("locality/neighbourhood", 0.95)])
def test_edits_of_the_default_editor_last_over_later_batches(nights: BenchmarkRow, metric: str, least: float) -> None:
    measured = nights.scores[metric]
    assert measured.value is not None
    assert measured.value >= least, f"{metric} over {measured.n}"


def test_the_default_editor_costs_bystanders_almost_nothing(nights: BenchmarkRow) -> None:
    measured = nights.scores["DD"]
    assert measured.value is not None
    assert measured.value <= 0.02, f"DD over {measured.n}"
