"""The quality benchmark over a small world and a tiny model that knows it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import tasks.quality.benchmark as benchmark
from checks.ability.items import AbilityItem, answered
from checks.metrics.published import Duel
from checks.predictor import Question, Scorer
from editors.base import Editor, Mode, Patch, Prepared
from editors.errors import EditRefused
from editors.model import EditableModel
from editors.presets import load_editor
from tasks.quality.benchmark import benchmark_one, run_benchmark
from tasks.quality.leaderboard import leaderboard_markdown
from tasks.quality.leaderboard_figures import curves_svg, scores_svg
from tasks.quality.questions import BenchmarkOptions, RunQuestions, ask_base
from tasks.quality.requests import NotEnoughFacts, Split, Task, benchmark_requests
from tasks.quality.rows import BenchmarkRow, CurvePoint, Measured, load_rows, save_row, with_points
from tasks.settings import Settings
from tests.tasks.small_world import FATHERS, PLACES, free_subjects, knowing_model, small_world, subject_id
from warehouse.database.connection import MEMORY, Warehouse
from warehouse.records import EditBatch
from warehouse.reference.splits import half_of, is_calibration_subject
from warehouse.reference.world import UNKNOWN

OPTIONS = BenchmarkOptions(
    drawdown=6, drawdown_each=2, held_texts=2, kl_prompts=3, fluency_prompts=2, fluency_tokens=4, together=2
)


@pytest.fixture(scope="module")
def world() -> Iterator[Warehouse]:
    with small_world() as found:
        yield found


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return knowing_model()


@pytest.fixture(scope="module")
def questions(world: Warehouse, model: EditableModel) -> RunQuestions:
    return ask_base(world, model, "modification", 4, split="all", seed=0, options=OPTIONS)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def measure(
    name: str, mode: Mode, model: EditableModel, questions: RunQuestions, settings: Settings, size: int = 0, every: int = 0
) -> BenchmarkRow:
    editor = load_editor(name, model)
    return benchmark_one(
        editor, model, questions, mode, size, settings, task="modification", split="all", every=every, command="test"
    )


# ---------------------------------------------------------------- requests


@pytest.mark.parametrize("task", ["modification", "insertion", "erasure"])
def test_the_same_seed_gives_the_same_requests(world: Warehouse, model: EditableModel, task: Task) -> None:
    first = benchmark_requests(world, model, task, 2, split="all", seed=1)
    assert benchmark_requests(world, model, task, 2, split="all", seed=1) == first
    assert benchmark_requests(world, model, task, 2, split="all", seed=2) != first


def test_a_modification_asks_for_another_object_that_the_relation_has(world: Warehouse, model: EditableModel) -> None:
    for request in benchmark_requests(world, model, "modification", 8, split="all"):
        assert request.target_new in (PLACES if request.relation == "P19" else FATHERS)
        assert request.target_true in (PLACES if request.relation == "P19" else FATHERS)
        assert request.target_new != request.target_true
        assert request.kind == "modify"
        assert len(request.rephrases) >= 3


def test_an_erasure_asks_for_unknown_where_the_model_knew(world: Warehouse, model: EditableModel) -> None:
    requests = benchmark_requests(world, model, "erasure", 4, split="all")
    assert {r.target_new for r in requests} == {UNKNOWN}
    assert {r.kind for r in requests} == {"erase"}
    assert all(r.target_true in (*PLACES, *FATHERS) for r in requests)


def test_an_insertion_fills_a_slot_that_the_world_leaves_empty(world: Warehouse, model: EditableModel) -> None:
    requests = benchmark_requests(world, model, "insertion", 2, split="all")
    for request in requests:
        assert request.target_true is None
        assert request.kind == "insert"
        filled = world.scalar("SELECT count(*) FROM facts WHERE subject = ? AND relation = ?",
                              [request.subject, request.relation])  # fmt: skip
        assert filled == 0


def test_no_edit_is_about_a_subject_of_the_second_moment(world: Warehouse, model: EditableModel) -> None:
    requests = benchmark_requests(world, model, "modification", len(free_subjects()), split="all")
    assert not any(is_calibration_subject(r.subject_id) for r in requests)
    assert len({r.subject_id for r in requests}) == len(requests)


@pytest.mark.parametrize("split", ["development", "report"])
def test_the_splits_share_no_subject(world: Warehouse, model: EditableModel, split: Split) -> None:
    in_split = [name for name in free_subjects() if half_of(subject_id(name)) == split]
    requests = benchmark_requests(world, model, "modification", len(in_split), split=split)
    assert {r.subject for r in requests} == set(in_split)


def test_a_long_stream_takes_the_report_split_before_it_takes_development(world: Warehouse, model: EditableModel) -> None:
    requests = benchmark_requests(world, model, "modification", len(free_subjects()), split="report-first")
    halves = [half_of(r.subject_id) for r in requests]
    assert halves == sorted(halves, reverse=True)
    assert {"report", "development"} == set(halves)


def test_a_fact_that_the_model_does_not_know_is_never_modified(world: Warehouse) -> None:
    from tests.support import tiny_model

    with pytest.raises(NotEnoughFacts, match="only 0 subjects qualify"):
        benchmark_requests(world, tiny_model(), "modification", 1, split="all")


# ---------------------------------------------------------------- measuring


@pytest.mark.parametrize(("name", "mode", "size"), [
    ("ft_m", "single", 0), ("ft_m", "batch", 0), ("ft_m", "sequential", 0), ("ft_m", "sequential-batch", 2),
    ("r_rome", "single", 0), ("grace", "single", 0), ("grace", "sequential", 0), ("ice", "batch", 2),
])  # fmt: skip
def test_every_mode_measures_all_edits_and_leaves_the_base(
    name: str, mode: Mode, size: int, model: EditableModel, questions: RunQuestions, settings: Settings
) -> None:
    before = model.state_digest()
    row = measure(name, mode, model, questions, settings, size)
    assert model.state_digest() == before
    assert row.note == ""
    assert row.scores["SR"].n == 4
    assert row.scores["SRR"].n == 4
    assert row.scores["DD/known"].n > 0
    assert row.scores["perplexity_ratio"].value is not None
    assert row.scores["KL"].value is not None
    assert row.scores["fluency"].n == 2 * (2 if mode == "batch" and size else 1)
    assert row.patch_bytes > 0
    assert row.seconds_per_edit is not None and row.seconds_per_edit > 0


def test_the_published_scores_stand_beside_exact_match(
    model: EditableModel, questions: RunQuestions, settings: Settings
) -> None:
    scores = measure("ft_m", "single", model, questions, settings).scores
    assert scores["published/efficacy"].value == scores["SR"].value == 1.0
    # What the model knew beats the new answer until the edit.
    assert scores["published/efficacy:before"].value == 0.0
    assert scores["published/paraphrase"].n == scores["GR"].n
    assert scores["published/efficacy"].n == scores["SR"].n == 4


def test_the_published_scores_of_a_sequence_are_those_of_its_last_model(
    model: EditableModel, questions: RunQuestions, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    worn: list[tuple[int, int]] = []

    def counted(_asked: Scorer, duels: Sequence[Duel]) -> dict[Duel, bool]:
        worn.append((len(model.patches), len({duel.edit for duel in duels})))
        return dict.fromkeys(duels, True)

    monkeypatch.setattr(benchmark, "won", counted)
    assert measure("ft_m", "sequential", model, questions, settings).scores["published/efficacy"].value == 1.0
    assert worn == [(4, 4)]


def test_an_edit_s_own_prompts_are_asked_once_for_all_that_is_measured(
    model: EditableModel, questions: RunQuestions, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Question]] = []
    score = EditableModel.score
    monkeypatch.setattr(EditableModel, "score", lambda self, these: asked.append(list(these)) or score(self, these))
    measure("grace", "single", model, questions, settings)
    own = [these for these in asked if any(q.prompt == questions.requests[0].prompt for q in these)]
    assert len(own) == 1
    assert {q.answer for q in own[0]} >= {questions.requests[0].target_new, questions.requests[0].target_true}


def test_an_insertion_has_no_old_answer_to_beat(world: Warehouse, model: EditableModel) -> None:
    asked = ask_base(world, model, "insertion", 2, split="all", seed=0, options=OPTIONS)
    assert not any(asked.duels.values())


def test_ability_is_asked_at_the_end_of_a_sequence_and_of_what_the_base_answers(
    model: EditableModel, questions: RunQuestions, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item that the tiny model answers, since it knows places of birth and no English."""
    known = questions.requests[0]
    items = (AbilityItem("known", known.prompt, (known.target_true or "",)), AbilityItem("sum", "1 + 1 =", ("2",)))
    monkeypatch.setattr(benchmark, "ability_items", lambda: items)
    asked = replace(questions, ability=answered(model, items))
    assert asked.ability == (True, False)
    scores = measure("ft_m", "sequential", model, asked, settings).scores
    assert (scores["ability"].value, scores["ability"].n) == (0.0, 1)
    assert (scores["ability/base"].value, scores["ability/base"].n) == (0.5, 2)
    assert "ability" not in measure("ft_m", "single", model, asked, settings).scores


def test_an_editor_that_changes_the_model_succeeds(model: EditableModel, questions: RunQuestions, settings: Settings) -> None:
    assert measure("ft_m", "single", model, questions, settings).scores["SR"].value == 1.0


def test_single_edits_are_scored_one_on_the_model_at_a_time(
    model: EditableModel, questions: RunQuestions, settings: Settings
) -> None:
    row = measure("ft_m", "single", model, questions, settings)
    editor = load_editor("ft_m", model)
    right = []
    for request in questions.requests:
        model.push(editor.edit_each(model, [request], benchmark.Prepared())[0])
        asked = [p for p in questions.owned[request.request_id] if p.kind == "rephrase"]
        answers = benchmark.predict(model, asked)
        right.append(sum(answers[p.probe_id].exact for p in asked) / len(asked))
        model.rollback(0)
    assert row.scores["GR"].value == pytest.approx(sum(right) / len(right))


def test_a_sequence_has_a_point_of_its_curve_every_n_edits(
    model: EditableModel, questions: RunQuestions, settings: Settings
) -> None:
    row = measure("ft_m", "sequential", model, questions, settings, every=2)
    assert [point.edits for point in row.curve] == [2, 4]
    assert row.curve[-1].scores["SRR"] == row.scores["SRR"]
    assert row.curve[-1].scores["DD/known"] == row.scores["DD/known"]


def test_a_mode_that_the_card_does_not_grant_becomes_a_row_with_the_reason(
    model: EditableModel, questions: RunQuestions, settings: Settings
) -> None:
    row = measure("rome", "batch", model, questions, settings)
    assert row.scores == {}
    assert "rank-one" in row.note


def test_a_refused_edit_counts_as_failed(
    model: EditableModel, questions: RunQuestions, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = load_editor("ft_m", model)
    bad = questions.requests[0].request_id
    honest = type(editor).edit

    def guarded(self: Editor, model: EditableModel, batch: EditBatch, prepared: Prepared) -> Patch:
        if any(r.request_id == bad for r in batch.requests):
            raise EditRefused("too large")
        return honest(self, model, batch, prepared)

    monkeypatch.setattr(type(editor), "edit", guarded)
    for mode in ("single", "sequential"):
        row = measure("ft_m", mode, model, questions, settings)
        assert row.refused == 1
        assert row.scores["SR"].n == 4
        assert row.scores["SR"].value is not None and row.scores["SR"].value <= 0.75


def test_a_run_keeps_its_rows_in_the_warehouse(
    world: Warehouse, model: EditableModel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "base_model", lambda _: model)
    monkeypatch.setattr(benchmark, "base_world", lambda _: _Open(world))
    monkeypatch.setattr(benchmark, "warehouse", lambda s: Warehouse.open(s.warehouse_path))
    told: list[tuple[str, int, int]] = []
    rows = run_benchmark(
        settings, ["ft_m"], ["single", "sequential"], 2, split="all", overrides={"ft_m": {"num_steps": 30}},
        options=OPTIONS, command="errata benchmark", progress=lambda *what: told.append(what),
    )  # fmt: skip
    assert [row.config["num_steps"] for row in rows] == [30, 30]
    assert told == [("ft_m single", 1, 2), ("ft_m single", 2, 2), ("ft_m sequential", 1, 2), ("ft_m sequential", 2, 2)]
    with Warehouse.open(settings.warehouse_path) as wh:
        assert load_rows(wh) == rows


class _Open:
    """The shared world, not closed behind a run."""

    def __init__(self, world: Warehouse) -> None:
        self._world = world

    def __enter__(self) -> Warehouse:
        return self._world

    def __exit__(self, *_: object) -> None:
        return None


def test_only_the_newest_of_equal_measurements_is_read(
    model: EditableModel, questions: RunQuestions, settings: Settings
) -> None:
    first, second = (measure("ice", "single", model, questions, settings) for _ in range(2))
    with Warehouse.open(MEMORY) as wh:
        save_row(wh, first)
        save_row(wh, second)
        assert load_rows(wh) == [second]
        assert load_rows(wh, newest_only=False) == [first, second]


# ---------------------------------------------------------------- leaderboard


@pytest.fixture(scope="module")
def rows(model: EditableModel, questions: RunQuestions, tmp_path_factory: pytest.TempPathFactory) -> list[BenchmarkRow]:
    home = Settings(home=tmp_path_factory.mktemp("home"))
    return [
        measure("ft_m", "sequential", model, questions, home, every=2),
        measure("grace", "sequential", model, questions, home, every=2),
        measure("rome", "batch", model, questions, home),
    ]


def test_the_leaderboard_has_a_line_for_each_editor_and_the_reason_for_each_that_is_missing(
    rows: list[BenchmarkRow],
) -> None:
    text = leaderboard_markdown(rows)
    assert text.count("| `ft_m` |") == 1
    assert text.count("| `grace` |") == 1
    assert f"- `rome`: {rows[2].note}" in text
    assert "## modification, sequential: 4 edits (all split" in text


def test_the_leaderboard_says_what_published_scores_are_where_it_has_some(rows: list[BenchmarkRow]) -> None:
    assert "| published ES |" in leaderboard_markdown(rows) and "less than exact match" in leaderboard_markdown(rows)
    bare = [r.model_copy(update={"scores": {k: s for k, s in r.scores.items() if "published" not in k}}) for r in rows]
    assert "ublished ES" not in leaderboard_markdown(bare) and "less than exact match" not in leaderboard_markdown(bare)


def test_every_line_of_a_table_has_as_many_cells_as_its_head(rows: list[BenchmarkRow]) -> None:
    tables = [block.splitlines() for block in leaderboard_markdown(rows).split("\n\n") if block.startswith("|")]
    assert len(tables) > 1
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)


def test_the_figures_are_well_formed_and_show_every_editor(rows: list[BenchmarkRow]) -> None:
    for svg in (curves_svg(rows), scores_svg(rows)):
        root = ET.fromstring(svg)
        texts = " ".join(node.text or "" for node in root.iter())
        assert "ft_m" in texts and "grace" in texts
    lines = [node for node in ET.fromstring(curves_svg(rows)).iter() if node.tag.endswith("polyline")]
    assert len(lines) == 2 * 6


def test_a_panel_of_published_scores_is_drawn_where_some_row_has_them(rows: list[BenchmarkRow]) -> None:
    assert "published PS" in scores_svg(rows)
    bare = [r.model_copy(update={"scores": {k: s for k, s in r.scores.items() if "published" not in k}}) for r in rows]
    assert "published" not in scores_svg(bare)


def test_a_longer_sequence_stands_in_for_a_shorter_one_that_nobody_measured(rows: list[BenchmarkRow]) -> None:
    row = rows[0]
    point = CurvePoint(edits=100, scores={"SR": Measured(value=0.25, low=None, high=None, n=100)})
    long = row.model_copy(update={"edits": 500, "curve": (point,), "refused": 7})
    (passed,) = [r for r in with_points([long]) if r.edits == 100]
    assert (passed.longer, passed.scores, passed.curve) == (500, point.scores, ())
    assert "| `ft_m` of 500 | 0.250 |" in leaderboard_markdown([long])
    measured = row.model_copy(update={"edits": 100, "curve": ()})
    assert with_points([long, measured]) == [long, measured]


def test_figures_draw_families_apart_and_keep_rows_of_editors_that_are_not_installed(rows: list[BenchmarkRow]) -> None:
    theirs = rows[0].model_copy(update={"editor": "somebody_elses"})
    for svg in (curves_svg([*rows, theirs]), scores_svg([*rows, theirs])):
        texts = " ".join(node.text or "" for node in ET.fromstring(svg).iter())
        assert all(f"): {family}" in texts for family in ("architectural", "regularization", "other"))


def test_an_empty_leaderboard_says_so() -> None:
    assert "Nothing measured yet" in leaderboard_markdown([])
    assert "No sequence" in curves_svg([])
