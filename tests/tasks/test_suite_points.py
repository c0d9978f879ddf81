"""Points of a sequence's curve at given numbers of edits, and how often slots fire on plain text."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from editors.model import EditableModel
from editors.patches.slots import Slot, SlotPatch
from editors.presets import load_editor
from editors.session import batch_of
from tasks.quality.benchmark import benchmark_one, run_benchmark
from tasks.quality.false_firing import false_firing
from tasks.quality.latency import latency_ratio
from tasks.quality.questions import BenchmarkOptions, RunQuestions, ask_base
from tasks.quality.rows import BenchmarkRow
from tasks.settings import Settings
from tests.support import CORPUS, SIX_REQUESTS, TEXTS
from tests.tasks.small_world import knowing_model, small_world

OPTIONS = BenchmarkOptions(drawdown=4, drawdown_each=2, held_texts=2, kl_prompts=2, fluency_prompts=0, together=2)


@cache
def asked() -> tuple[EditableModel, RunQuestions]:
    model = knowing_model()
    with small_world() as world:
        return model, ask_base(world, model, "modification", 4, split="all", seed=0, options=OPTIONS)


def measured(home: Path, size: int, checkpoints: tuple[int, ...], every: int = 0) -> BenchmarkRow:
    model, questions = asked()
    return benchmark_one(
        load_editor("ft_m", model, {"num_steps": 2}), model, questions, "sequential-batch", size, Settings(home=home),
        task="modification", split="all", checkpoints=checkpoints, every=every, command="test",
    )  # fmt: skip


def test_a_point_comes_at_each_checkpoint_or_after_the_batch_that_reaches_it_and_at_the_end(tmp_path: Path) -> None:
    assert [p.edits for p in measured(tmp_path, 1, (1, 3)).curve] == [1, 3, 4]
    row = measured(tmp_path, 2, (1, 4))
    assert [p.edits for p in row.curve] == [2, 4]
    assert row.curve[-1].scores["SRR"] == row.scores["SRR"]
    seconds = [p.scores["seconds_per_edit"].value for p in row.curve]
    assert seconds[-1] == row.seconds_per_edit and all(s is not None and s > 0 for s in seconds)


def test_a_point_is_logged_as_soon_as_it_is_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="tasks.quality.benchmark"):
        row = measured(tmp_path, 1, (1, 3))
    (first, _) = (r.getMessage() for r in caplog.records if "after" in r.getMessage())
    assert first.startswith("ft_m, sequential-batch, after 1 edits: ") and f"SR {row.curve[0].scores['SR'].value:.3f}" in first


def test_latency_is_of_one_step_and_leaves_the_patches_on(tiny: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = load_editor("ft_m", tiny, {"num_steps": 2})
    assert latency_ratio(tiny, TEXTS) == []
    tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), editor.prepare(tiny, CORPUS)))
    digest, asked = tiny.digest, []

    def slow(prompts: list[str], count: int) -> list[str]:
        """A second for each token and the end: a short answer from the base, a long one from the edited model.

        The edited model's first call takes long.
        """
        asked.append(prompts)
        if count == 1:
            clock[0] += 1_000
        said = "Paris lies in Texas" if tiny.patches else "Paris"
        clock[0] += len(tiny.tokenizer(said)["input_ids"]) + 1
        return ["", *[said] * (len(prompts) - 1)]

    clock = [0.0]
    monkeypatch.setattr(tiny, "generate", slow)
    monkeypatch.setattr("tasks.quality.latency.time.perf_counter", lambda: clock[0])
    (score,) = latency_ratio(tiny, TEXTS)
    assert score.value == pytest.approx(1.0) and tiny.digest == digest
    assert clock[0] > 1_000
    assert all(len(prompt.split()) <= 8 for prompt in asked[0])
    assert latency_ratio(tiny, ()) == []


def test_checkpoints_and_regular_points_that_meet_are_one_point(tmp_path: Path) -> None:
    assert [p.edits for p in measured(tmp_path, 1, (2, 3), every=2).curve] == [2, 3, 4]


def test_a_checkpoint_beyond_the_edits_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="between 1 and the 4 edits"):
        run_benchmark(Settings(home=tmp_path), ["ft_m"], ["sequential"], 4, checkpoints=(2, 5))


def test_a_model_without_slots_has_no_false_firing(tiny: EditableModel) -> None:
    assert false_firing(tiny, TEXTS) == []


def with_slot(tiny: EditableModel, low: float) -> SlotPatch:
    """A slot that opens where the input's first coordinate is above `low`."""
    vector = torch.zeros(32)
    vector[0] = 1.0
    zeros = torch.zeros(32)
    slot = Slot("x", (), torch.full((1, 32), 9.0), vector, own=low + 10, foreign=low - 10, value=zeros, mean=zeros)
    return SlotPatch(tiny.anatomy.mlp.format(layer=1), zeros, 0.5, 1.0, {"x": slot})


def test_false_firing_is_the_share_of_tokens_at_which_a_slot_opens(tiny: EditableModel) -> None:
    seen: list[torch.Tensor] = []
    undo = tiny.hook(tiny.anatomy.mlp.format(layer=1), lambda _m, inputs, _o: seen.append(inputs[0][0, :, 0]))
    for text in TEXTS:
        tiny.next_token_log_probs([text])
    undo()
    above = torch.cat(seen) > 0.3
    tiny.push(with_slot(tiny, 0.3))
    [score] = false_firing(tiny, TEXTS)
    assert 0 < int(above.sum()) < len(above)
    assert (score.metric, score.n) == ("false_firing", len(above))
    assert score.value == pytest.approx(float(above.float().mean()))
    assert score.low is not None and score.high is not None and score.low <= float(above.float().mean()) <= score.high
    hooks = len(tiny.anatomy.module(tiny.hf, tiny.anatomy.mlp, 1)._forward_hooks)
    assert hooks == 1, "the slots' own hook alone is left"


def test_no_firing_has_an_upper_bound_above_nothing(tiny: EditableModel) -> None:
    tiny.push(with_slot(tiny, 1e4))
    [score] = false_firing(tiny, TEXTS)
    assert score.value == 0.0
    assert score.high is not None and 0 < score.high < 0.1
