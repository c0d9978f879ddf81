"""Numbers that nobody sets by hand: the search, its budget, what a kill leaves, and who reads what it found."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from checks.predictor import Question
from editors import catalogue
from editors.errors import NoPreset, UnsupportedModel
from editors.model import EditableModel
from editors.presets import load_editor, space_of
from editors.presets.learnt import learnt_path
from editors.presets.scales import measure_scales
from editors.session import batch_of
from tasks.settings import Settings
from tasks.tuning import search as searching
from tasks.tuning.course import best_of
from tasks.tuning.facts import TuningSet
from tasks.tuning.numbers import FoundNumbers, editor_with_numbers, editors_with_numbers, find_numbers
from tasks.tuning.trials import Trial, keep_trial, kept_trials, run_trial, spread
from tests.architectures import model_of
from tests.support import CORPUS, SIX_REQUESTS, tiny_model
from warehouse.errors import UsageError

NEAR = (Question("Mary Shelley was born in", "London"),)
FACTS = TuningSet(SIX_REQUESTS[:3], {r.request_id: NEAR for r in SIX_REQUESTS[:3]}, CORPUS)


@pytest.fixture(autouse=True)
def _nobody_knows_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models have sections of their own; here they are of a shape that no preset names."""
    monkeypatch.setattr("editors.presets.model_key", lambda _: "gpt2-9x9")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def tiny() -> EditableModel:
    return tiny_model()


class Clock:
    """A clock that only planted trials move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def planted(
    monkeypatch: pytest.MonkeyPatch, generalization: Callable[[dict[str, Any]], float], clock: Clock, seconds: float = 100.0
) -> list[dict[str, Any]]:
    """Trials that edit nothing, with such results; the list of their choices, filled as they come."""
    tried: list[dict[str, Any]] = []

    def trial(editor: Any, model: EditableModel, tuning: TuningSet, _: Path, **more: Any) -> Trial:
        clock.now += seconds
        tried.append(dict(more["choice"]))
        return Trial(
            key=searching.trial_key(editor, model, tuning), choice=more["choice"], values=more["values"], success=1.0,
            generalization=generalization(more["choice"]), kept=1.0, asked=(1, 1, 1), refused=0, cpu_per_edit=1.0,
            seconds=seconds,
        )  # fmt: skip

    monkeypatch.setattr(searching, "run_trial", trial)
    return tried


def found_for(settings: Settings, model: EditableModel, name: str, **more: Any) -> FoundNumbers:
    return find_numbers(settings, model, [name], tuning=FACTS, **more)[-1]


# ------------------------------------------------------------ the search


def test_a_search_leaves_a_preset_that_is_read_like_any_other(settings: Settings, tiny: EditableModel) -> None:
    with pytest.raises(NoPreset, match=r"errata prepare --auto r_rome"):
        load_editor("r_rome", tiny)
    before = tiny.state_digest()
    found = found_for(settings, tiny, "r_rome")
    assert found.how == "searched" and found.best is not None and not tiny.patches and tiny.state_digest() == before
    config = load_editor("r_rome", tiny, None, settings.presets).config.model_dump(mode="json")
    assert {name: config[name] for name in found.values} == dict(found.values)
    kept = yaml.safe_load(found.path.read_text(encoding="utf-8"))["found"]
    assert [t["score"] for t in kept["trials"]] == [t.score for t in found.trials] and kept["facts"]["edits"] == 3
    assert best_of(found.trials) == found.best


def test_what_is_set_goes_over_what_was_found(settings: Settings, tiny: EditableModel) -> None:
    found = found_for(settings, tiny, "ft_m", minutes=0)
    layer = found.values["layer"] + 1
    config = load_editor("ft_m", tiny, {"layer": layer}, settings.presets).config.model_dump()
    assert config["layer"] == layer and config["learning_rate"] == found.values["learning_rate"]


def test_what_is_held_is_not_searched_and_becomes_part_of_the_preset(
    settings: Settings, tiny: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = planted(monkeypatch, lambda _: 0.5, clock := Clock())
    found = found_for(settings, tiny, "lora", held={"lora": {"layers": [2], "gamma": 3.0}}, clock=clock)
    assert {t["layers"] for t in tried} == {2} and not any("gamma" in t for t in tried) and len(tried) == 2
    assert found.values["layers"] == [2] and found.values["gamma"] == 3.0


def test_layers_come_first_and_then_one_number_after_another_at_the_best(
    settings: Settings, tiny: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = space_of("memit")
    assert space is not None
    fitted = space.fitted(4, {})
    second, slow = fitted.candidates["second_moment_weight"].values, fitted.candidates["value_lr"].values
    wanted = {"second_moment_weight": second[1], "value_lr": slow[0]}
    tried = planted(monkeypatch, lambda c: 0.5 + 0.1 * sum(c[k] == v for k, v in wanted.items()), clock := Clock())
    found = found_for(settings, tiny, "memit", clock=clock)
    assert found.best is not None and found.best.choice == {**fitted.first, **wanted} and found.is_complete
    assert [t["value_lr"] for t in tried[:-1]] == [slow[0]] * (len(tried) - 1) and tried[-1]["value_lr"] == slow[1]


def test_nothing_more_is_tried_when_nothing_can_be_better(
    settings: Settings, tiny: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = planted(monkeypatch, lambda _: 1.0, clock := Clock())
    assert found_for(settings, tiny, "memit", clock=clock).is_complete and len(tried) == 1


def trial_with(success: float, generalization: float, kept: float, cpu: float = 1.0) -> Trial:
    return Trial(
        key="", choice={}, values={}, success=success, generalization=generalization, kept=kept, asked=(8, 48, 32), refused=0,
        cpu_per_edit=cpu, seconds=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        # Carried over further, at the same price.
        ((1.0, 0.9, 1.0), (1.0, 0.8, 1.0)),
        # Written everywhere, against a memory that answers its own prompt alone.
        ((1.0, 0.0, 1.0), (1.0, 0.9, 0.3)),
        # Sparing everything because nothing was written.
        ((1.0, 0.6, 0.6), (0.1, 0.1, 1.0)),
        # Equal but for the price.
        ((1.0, 0.9, 1.0, 2.0), (1.0, 0.9, 1.0, 3.0)),
    ],
)
def test_numbers_must_hold_and_spare_and_then_carry_over(better: tuple[float, ...], worse: tuple[float, ...]) -> None:
    best = trial_with(*better)
    assert best_of([best, trial_with(*worse)]) == best_of([trial_with(*worse), best]) == best


# ------------------------------------------------------------ the budget


def test_no_trial_is_begun_that_would_not_end_within_the_budget(
    settings: Settings, tiny: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = planted(monkeypatch, lambda _: 0.5, clock := Clock(), seconds=100)
    found = found_for(settings, tiny, "ultraedit", minutes=4, clock=clock)
    assert len(tried) == 2 and found.how == "searched" and not found.is_complete


def test_a_short_budget_serves_every_editor(settings: Settings, tiny: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, lambda _: 0.5, clock := Clock(), seconds=100)
    found = find_numbers(settings, tiny, ["ultraedit", "ft_m"], tuning=FACTS, minutes=4, clock=clock)
    assert [len(f.trials) for f in found] == [1, 1]


def test_a_larger_budget_goes_on_where_a_smaller_one_ended(
    settings: Settings, tiny: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = planted(monkeypatch, lambda _: 0.5, clock := Clock(), seconds=100)
    first = found_for(settings, tiny, "ultraedit", minutes=4, clock=clock)
    clock.now = 0.0
    second = found_for(settings, tiny, "ultraedit", minutes=60, clock=clock)
    assert second.is_complete and second.trials[:2] == first.trials and len(tried) == len(second.trials)


def test_a_budget_below_nothing_is_refused(settings: Settings, tiny: EditableModel) -> None:
    with pytest.raises(UsageError, match="-1 minutes"):
        found_for(settings, tiny, "ft_m", minutes=-1)


# ------------------------------------------------------------ kills


def test_a_killed_search_goes_on_and_ends_where_it_would_have(
    tmp_path: Path, tiny: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = found_for(Settings(home=tmp_path / "whole"), tiny, "r_rome")
    assert len(whole.trials) > 1
    made: list[str] = []

    def dying(*given: Any, **more: Any) -> Trial:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append("before")
        return run_trial(*given, **more)

    killed = Settings(home=tmp_path / "killed")
    monkeypatch.setattr(searching, "run_trial", dying)
    with pytest.raises(KeyboardInterrupt):
        found_for(killed, tiny, "r_rome")
    assert not learnt_path(killed.presets, tiny.base_digest, "r_rome").exists() and not tiny.patches
    after: list[dict[str, Any]] = []

    def counted(*given: Any, **more: Any) -> Trial:
        after.append(more["choice"])
        return run_trial(*given, **more)

    monkeypatch.setattr(searching, "run_trial", counted)
    again = found_for(killed, tiny, "r_rome")
    assert [t.key for t in again.trials] == [t.key for t in whole.trials]
    assert after == [t.choice for t in whole.trials[1:]]


def test_a_trial_for_another_space_counts_where_its_numbers_are_the_same(
    settings: Settings, tiny: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = planted(monkeypatch, lambda _: 0.5, clock := Clock())
    first = found_for(settings, tiny, "ft_m", clock=clock, minutes=60)
    path = first.path.with_suffix(".trials.jsonl")
    other = [t.model_copy(update={"choice": {"layer": t.choice["layer"]}}) for t in kept_trials(path).values()]
    path.unlink()
    for trial in other:
        keep_trial(path, trial)
    before = len(tried)
    assert found_for(settings, tiny, "ft_m", clock=clock, minutes=60).trials == first.trials and len(tried) == before


def test_a_line_that_a_kill_cut_off_is_measured_again_and_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.trials.jsonl"
    one = Trial(key="a", choice={}, values={}, success=1, generalization=1, kept=1, asked=(1, 1, 1), refused=0,
                cpu_per_edit=1, seconds=1)  # fmt: skip
    keep_trial(path, one)
    path.write_bytes(path.read_bytes() + b'{"key": "b", "cho')
    keep_trial(path, one.model_copy(update={"key": "c"}))
    assert set(kept_trials(path)) == {"a", "c"}


# ------------------------------------------------------------ every editor


@pytest.mark.parametrize("name", catalogue.names())
def test_every_editor_gets_numbers_that_load(settings: Settings, tiny: EditableModel, name: str) -> None:
    found = found_for(settings, tiny, name, minutes=0)
    assert found.how == "scaled" and found.why
    editor = load_editor(name, tiny, None, settings.presets)
    assert editor_with_numbers(settings, tiny, name).config == editor.config


@pytest.mark.parametrize("name", ["rect", "nas", "prune"])
def test_an_editor_that_wraps_another_edits_with_what_was_found_for_that_one(
    settings: Settings, tiny: EditableModel, name: str
) -> None:
    found = find_numbers(settings, tiny, [name], tuning=FACTS, minutes=0)
    assert [f.name for f in found] == ["memit", name]
    assert found[1].values["host_overrides"] == found[0].values
    editor = load_editor(name, tiny, None, settings.presets)
    prepared = editor.prepare(tiny, CORPUS)
    assert editor.edit_each(tiny, SIX_REQUESTS[:1], prepared)[0].num_bytes > 0


# ------------------------------------------------------------ behind a norm


@pytest.mark.parametrize("kind", ["olmo2", "gemma2", "gemma3_text"])
def test_numbers_are_found_where_a_norm_stands_behind_the_feed_forward(settings: Settings, kind: str) -> None:
    """And bound a value by what moves the block: of the feed-forward's own norm the block's over what it adds, times .75."""
    model, asked = model_of(kind), SIX_REQUESTS[5]
    found = found_for(settings, model, "r_rome")
    assert found.how == "searched" and found.best is not None and found.best.refused == 0
    pairs = [(p, r.subject) for r in FACTS.requests for p in (r.prompt, *r.wordings)]
    at = measure_scales(model, *zip(*pairs, strict=True)).layers[found.values["layer"]]
    assert found.values["clamp_norm"] == pytest.approx(0.75 * at.block / at.added, rel=0.01)
    editor, question = load_editor("r_rome", model, None, settings.presets), [Question(asked.prompt, asked.target_new)]
    before = model.score(question)[0].log_prob
    model.push(editor.edit(model, batch_of([asked]), editor.prepare(model, CORPUS)))
    assert model.score(question)[0].log_prob > before


@pytest.mark.parametrize("name", [n for n in catalogue.names() if not catalogue.editor_class(n).card.behind_norm])
def test_an_editor_that_takes_no_norm_there_is_refused_before_anything_is_tried(settings: Settings, name: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"{name} writes .* norms it in between"):
        find_numbers(settings, model_of("gemma2"), ["ft_m", name], tuning=FACTS)
    assert not list(settings.presets.rglob("*.jsonl")) and not list(settings.presets.rglob("*.yaml"))


# ------------------------------------------------------------ by itself


def test_an_editor_without_numbers_finds_them_by_itself_and_says_so_once(
    settings: Settings, tiny: EditableModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tasks.tuning.numbers.tuning_set", lambda *_: FACTS)
    with caplog.at_level(logging.WARNING):
        editor = editor_with_numbers(settings, tiny, "grace", {"num_steps": 5})
        assert editor_with_numbers(settings, tiny, "grace", {"num_steps": 5}).config == editor.config
    lines = [r.getMessage() for r in caplog.records if "no numbers for" in r.getMessage()]
    assert len(lines) == 1 and "at most 30 minutes; `errata prepare --auto grace` does this beforehand" in lines[0]


def test_several_editors_without_numbers_are_searched_together(
    settings: Settings, tiny: EditableModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("tasks.tuning.numbers.tuning_set", lambda *_: asked.append(1) or FACTS)
    planted(monkeypatch, lambda _: 1.0, Clock())
    with caplog.at_level(logging.WARNING):
        found = editors_with_numbers(settings, tiny, {"ft_m": {}, "ice": {}, "grace": {}})
    assert [e.card.name for e in found] == ["ft_m", "ice", "grace"] and len(asked) == 1
    # In-context editing needs no number of the model.
    assert "no numbers for ft_m, grace on" in caplog.text and "at most 60 minutes" in caplog.text


def test_a_model_that_knows_nothing_gets_scaled_numbers_and_the_reason(settings: Settings, tiny: EditableModel) -> None:
    (found,) = find_numbers(settings, tiny, ["ft_m"])
    assert found.how == "scaled" and "only 0 subjects qualify" in found.why
    assert load_editor("ft_m", tiny, None, settings.presets).config.model_dump()["layer"] == found.values["layer"]


def test_a_damaged_preset_is_named_with_the_way_out(settings: Settings, tiny: EditableModel) -> None:
    path = found_for(settings, tiny, "ft_m", minutes=0).path
    path.write_text("layer: 3\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"ft_m\.yaml is no preset .*errata prepare --auto ft_m"):
        load_editor("ft_m", tiny, None, settings.presets)


def test_of_many_wordings_some_from_all_over_are_asked() -> None:
    assert spread("abcdefghij", 5) == list("acegi") and spread("ab", 5) == ["a", "b"] and spread((), 5) == []
