"""The suite measures what is missing, keeps each row at once, and goes on where a killed run was."""

from __future__ import annotations

from pathlib import Path

import pytest

from editors.model import EditableModel
from tasks.quality import suite as benchmark_suite
from tasks.quality.questions import BenchmarkOptions, ask_base
from tasks.quality.rows import BenchmarkRow, load_rows
from tasks.quality.suite import SCALING, SURVEY, Cell, cells_named, run_suite
from tasks.settings import Settings
from tests.tasks.small_world import knowing_model, small_world
from warehouse.database.connection import Warehouse
from warehouse.world.forms import Asker

OPTIONS = BenchmarkOptions(drawdown=4, drawdown_each=2, held_texts=2, kl_prompts=2, fluency_prompts=0, together=2)
CELLS = (
    Cell(name="single-2", mode="single", edits=2),
    Cell(name="sequential-3", mode="sequential", edits=3, points=(1,)),
)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home whose base model and world are small; every fact of it may be asked."""
    model = knowing_model()

    def ask(world: Warehouse, model: EditableModel, task: str, edits: int, *, split: str, seed: int, asker: Asker) -> object:
        assert split == "report" and asker.is_plain
        return ask_base(world, model, "modification", edits, split="all", seed=seed, options=OPTIONS)

    monkeypatch.setattr(benchmark_suite, "base_model", lambda _: model)
    monkeypatch.setattr(benchmark_suite, "base_world", lambda _: small_world())
    monkeypatch.setattr(benchmark_suite, "ask_base", ask)
    return Settings(home=tmp_path)


def places(rows: list[BenchmarkRow]) -> list[tuple[str, str, int]]:
    return [(row.editor, row.mode, row.edits) for row in rows]


def test_names_stand_for_settings_and_groups() -> None:
    assert cells_named(["survey"]) == list(SURVEY)
    assert cells_named(["scaling", "single-200"]) == [*SCALING, SURVEY[0]]
    with pytest.raises(ValueError, match=r"no suite or setting single-300; known are .*single-200.*survey"):
        cells_named(["single-200", "single-300"])


def test_each_editor_is_measured_in_each_setting_once(settings: Settings) -> None:
    rows = run_suite(settings, ["ft_m", "ice"], CELLS)
    assert places(rows) == [("ft_m", "single", 2), ("ice", "single", 2), ("ft_m", "sequential", 3), ("ice", "sequential", 3)]
    assert [[point.edits for point in row.curve] for row in rows] == [[], [], [1, 3], [1, 3]]
    with Warehouse.open(settings.warehouse_path) as wh:
        assert load_rows(wh) == rows
    assert run_suite(settings, ["ft_m", "ice"], CELLS) == []


def test_a_killed_run_goes_on_where_it_was(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = benchmark_suite.benchmark_one, []

    def dies(*args: object, **named: object) -> BenchmarkRow:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **named)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patched:
        patched.setattr(benchmark_suite, "benchmark_one", dies)
        with pytest.raises(KeyboardInterrupt):
            run_suite(settings, ["ft_m", "ice"], CELLS[:1])
    assert places(run_suite(settings, ["ft_m", "ice"], CELLS[:1])) == [("ice", "single", 2)]


def test_what_was_measured_elsewhere_is_not_measured_again(settings: Settings, tmp_path: Path) -> None:
    elsewhere = run_suite(settings, ["ice"], CELLS[:1])
    fresh = Settings(home=tmp_path / "fresh")
    assert places(run_suite(fresh, ["ice", "ft_m"], CELLS[:1], known=elsewhere)) == [("ft_m", "single", 2)]
