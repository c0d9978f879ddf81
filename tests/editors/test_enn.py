"""ENN: the inner steps and their second derivatives, what a first and a later patch carry, and a killed preparation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.base import Corpus, Prepared
from editors.mechanics.answers import row_losses
from editors.meta_learning.enn import Enn, EnnConfig, Stepped, matrices, plain_steps, thin
from editors.model import EditableModel
from editors.nets.episodes import EpisodeRows, hold_out, oriented, read
from editors.patches.weight import Dense, WeightPatch
from editors.session import batch_of
from tests.support import CORPUS, SIX_REQUESTS, TRAINING_EDITS, tiny_model

STATED = [(SIX_REQUESTS[0].prompt, SIX_REQUESTS[0].target_new)]
OTHER = [("The birthplace of Ada Lovelace is", "Paris"), ("Grace Hopper was born in", "London")]


def config(**values: Any) -> EnnConfig:
    tiny = {"layers": (1,), "sites": "mlp", "initial_step": 0.05, "training_steps": 2, "updates": 4, "episodes": 2}
    return EnnConfig(**{**tiny, "texts": 3, **values})


def weights(model: EditableModel, **values: Any) -> dict[str, Tensor]:
    return {name: model.parameter(name).clone() for name in matrices(model, config(**values))}


def rates(start: Mapping[str, Tensor], value: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=weight.dtype) for name, weight in start.items()}


def made_up(model: EditableModel, rate: float) -> Prepared:
    """A preparation whose trained weights are the base's, each an eighth larger."""
    base = weights(model)
    trained = {f"trained|{name}": weight / 8 for name, weight in base.items()}
    return Prepared(trained | {f"rate|{name}": torch.tensor(rate) for name in base})


# ------------------------------------------------------------ the inner steps


def test_one_inner_step_is_plain_gradient_descent_on_the_answer(tiny: EditableModel) -> None:
    start = weights(tiny)
    after = plain_steps(read(tiny, STATED, 1), start, rates(start, 0.3), 1, 99.0).parameters
    reading = read(tiny, STATED, 0)
    live = [dict(tiny.hf.named_parameters())[name].requires_grad_(True) for name in start]
    scores = tiny.hf(reading.rows.ids).logits[0, reading.labels.at].log_softmax(-1)
    slow = -scores[torch.arange(len(reading.labels.token)), reading.labels.token].mean()
    for (name, weight), gradient in zip(start.items(), torch.autograd.grad(slow, live), strict=True):
        torch.testing.assert_close(after[name], weight - 0.3 * gradient, rtol=1e-4, atol=1e-6)
        assert gradient.abs().max() > 1e-4


def after_edit(
    reading: EpisodeRows, asked: EpisodeRows, start: Mapping[str, Tensor], rate: Mapping[str, Tensor], order: int
) -> Tensor:
    stepped = plain_steps(reading, start, rate, 2, 99.0, order)
    return row_losses(asked.logits(stepped.parameters), asked.labels).sum()


def test_the_second_order_gradient_is_that_of_a_finite_difference() -> None:
    """Of the loss after two inner steps, along a random direction of the weights; without second derivatives it is not."""
    model = tiny_model()
    model.hf.double()
    reading, asked, start = read(model, STATED, 1), read(model, OTHER, 1), weights(model)
    rate, eps = rates(start, 0.5), 1e-3
    torch.manual_seed(0)
    # Downhill for the edit's own loss, where the curvature that the first order leaves out is largest.
    along = {n: plain_steps(reading, start, rate, 1, 99.0).parameters[n] - weight for n, weight in start.items()}
    ends = [after_edit(reading, asked, {n: w + s * eps * along[n] for n, w in start.items()}, rate, 0) for s in (1, -1)]
    numeric = float((ends[0] - ends[1]) / (2 * eps))
    slopes = []
    for order in (2, 1):
        leaves = {n: w.clone().requires_grad_(True) for n, w in start.items()}
        grads = torch.autograd.grad(after_edit(reading, asked, leaves, rate, order), list(leaves.values()))
        slopes.append(sum(float((g * along[n]).sum()) for n, g in zip(leaves, grads, strict=True)))
    assert slopes[0] == pytest.approx(numeric, rel=2e-2)
    assert slopes[1] != pytest.approx(numeric, rel=2e-2)


@pytest.mark.parametrize("order", [1, 2])
def test_the_rate_of_one_step_learns_from_both_gradients(tiny: EditableModel, order: int) -> None:
    """d L(theta - r g) / d r = -<L'(theta - r g), g>."""
    reading, asked, start = read(tiny, STATED, 1), read(tiny, OTHER, 1), weights(tiny)
    rate = {name: value.requires_grad_(True) for name, value in rates(start, 0.2).items()}
    stepped = plain_steps(reading, start | {n: w.requires_grad_(True) for n, w in start.items()}, rate, 1, 99.0, order)
    found = torch.autograd.grad(row_losses(asked.logits(stepped.parameters), asked.labels).sum(), list(rate.values()))
    moved = {n: w.detach().requires_grad_(True) for n, w in stepped.parameters.items()}
    outer = torch.autograd.grad(row_losses(asked.logits(moved), asked.labels).sum(), list(moved.values()))
    for name, slope, gradient in zip(start, found, outer, strict=True):
        inner = (start[name] - moved[name]).detach() / 0.2
        assert float(slope) == pytest.approx(-float((gradient * inner).sum()), rel=1e-3)


def test_steps_end_when_every_answer_leads_by_the_margin(tiny: EditableModel) -> None:
    reading, start = read(tiny, STATED, 1), weights(tiny)
    runs: list[Stepped] = [plain_steps(reading, start, rates(start, 0.4), 60, margin) for margin in (0.5, 1.2)]
    assert 0 < runs[0].steps < runs[1].steps < 60
    assert runs[0].lead >= 0.5 and runs[1].lead >= 1.2
    short = plain_steps(reading, start, rates(start, 0.4), runs[0].steps - 1, 0.5)
    assert short.steps == runs[0].steps - 1 and short.lead < 0.5


def test_an_answer_that_leads_already_takes_no_step(tiny: EditableModel) -> None:
    reading, start = read(tiny, STATED, 1), weights(tiny)
    again = plain_steps(reading, plain_steps(reading, start, rates(start, 0.4), 60, 1.0).parameters, rates(start, 0.4), 60, 0.9)
    assert again.steps == 0


# ------------------------------------------------------------ patches


def test_the_first_patch_carries_the_trained_weights_and_later_ones_their_steps_alone(tiny: EditableModel) -> None:
    editor, prepared = Enn(config(stop_margin=99.0, num_steps=2)), made_up(tiny, 0.0)
    first = editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
    for name, weight in weights(tiny).items():
        torch.testing.assert_close(first.dense(name), oriented(tiny, name, weight / 8), rtol=1e-4, atol=1e-7)
    tiny.push(first)
    second = editor.edit(tiny, batch_of(SIX_REQUESTS[1:2]), prepared)
    assert all(not second.dense(name).any() for name in weights(tiny))


def test_the_inner_steps_begin_at_the_trained_weights(tiny: EditableModel) -> None:
    editor, prepared = Enn(config(stop_margin=99.0, num_steps=1)), made_up(tiny, 0.3)
    patch = editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
    trained = {name: weight * 1.125 for name, weight in weights(tiny).items()}
    slow = plain_steps(read(tiny, STATED, 1), trained, rates(trained, 0.3), 1, 99.0).parameters
    for name, weight in weights(tiny).items():
        torch.testing.assert_close(patch.dense(name), oriented(tiny, name, slow[name] - weight), rtol=1e-4, atol=1e-6)


def test_after_a_rollback_the_next_patch_is_a_first_one_again(tiny: EditableModel) -> None:
    editor, prepared = Enn(config()), made_up(tiny, 0.2)
    first = editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
    tiny.push(first)
    later = editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
    tiny.rollback(0)
    assert later.digest != first.digest
    assert editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared).digest == first.digest


def test_a_model_on_another_preparation_is_refused(tiny: EditableModel) -> None:
    editor = Enn(config())
    tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), made_up(tiny, 0.2)))
    with pytest.raises(ValueError, match="stands on the enn preparation"):
        editor.edit(tiny, batch_of(SIX_REQUESTS[1:2]), made_up(tiny, 0.1))


def test_a_preparation_of_other_weights_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="lacks"):
        Enn(config(layers=(2,))).edit(tiny, batch_of(SIX_REQUESTS[:1]), made_up(tiny, 0.2))


def test_a_batch_takes_the_sum_of_its_edits_first_steps(tiny: EditableModel) -> None:
    editor, prepared = Enn(config(stop_margin=99.0, num_steps=1)), made_up(tiny, 0.1)
    tiny.push(WeightPatch({}, {"enn_trained": prepared.digest}))
    alone = [editor.edit(tiny, batch_of([r]), prepared) for r in SIX_REQUESTS[:2]]
    both = editor.edit(tiny, batch_of(SIX_REQUESTS[:2]), prepared)
    for name in weights(tiny):
        torch.testing.assert_close(both.dense(name), alone[0].dense(name) + alone[1].dense(name), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 3, 5, 20])
def test_a_thin_matrix_is_kept_by_its_factors_and_another_as_it_is(rank: int) -> None:
    torch.manual_seed(rank)
    matrix = torch.randn(30, rank) @ torch.randn(rank, 40)
    kept = thin(matrix, rank)
    torch.testing.assert_close(kept.dense(), matrix, rtol=1e-5, atol=1e-5)
    assert isinstance(kept, Dense) == (rank == 20)


def test_later_patches_are_small(tiny: EditableModel) -> None:
    editor, prepared = Enn(config(stop_margin=99.0, num_steps=1)), made_up(tiny, 0.1)
    first = editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
    tiny.push(first)
    later = editor.edit(tiny, batch_of(SIX_REQUESTS[3:4]), prepared)
    assert later.num_bytes < first.num_bytes / 2


# ------------------------------------------------------------ preparation


def test_training_makes_the_loss_after_an_edit_smaller() -> None:
    model = tiny_model()
    meta = Enn(config(updates=40, learning_rate=3e-3)).prepare(model, CORPUS).meta
    losses = [point["edited"] for point in meta["curve"]]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert meta["held_out_edits"] == 1 and meta["training_edits"] == len(TRAINING_EDITS) - 1
    assert all(change > 0 for change in meta["relative_change"].values())


def test_the_first_rates_move_a_matrix_by_a_share_of_its_norm_for_the_usual_gradient(tiny: EditableModel) -> None:
    prepared = Enn(config(updates=0)).prepare(tiny, Corpus(CORPUS.texts, TRAINING_EDITS[:2]))
    # One training edit is left, and its gradient is the usual one.
    ((left,), _) = hold_out(TRAINING_EDITS[:2], 0.1, 0)
    start = weights(tiny)
    rate = {name: prepared.tensors[f"rate|{name}"] for name in start}
    reading = read(tiny, [(left.request.prompt, left.request.target_new)], 1)
    moved = plain_steps(reading, start, rate, 1, 99.0).parameters
    for name, weight in start.items():
        assert float((moved[name] - weight).norm() / weight.norm()) == pytest.approx(0.05, rel=1e-3)
        assert not prepared.tensors[f"trained|{name}"].any()


def test_a_corpus_without_training_edits_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="two subjects"):
        Enn(config()).prepare(tiny, Corpus(CORPUS.texts))


def test_a_corpus_of_blanks_is_refused_and_blanks_among_texts_do_no_harm(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="no text"):
        Enn(config()).prepare(tiny, Corpus((" ", ""), TRAINING_EDITS))
    editor, texts = Enn(config(updates=2)), CORPUS.texts
    plain, blank = (editor.prepare(tiny, Corpus(some, TRAINING_EDITS)) for some in (texts, ("", *texts)))
    assert plain.digest == blank.digest


def test_only_what_training_reads_is_in_the_preparations_key() -> None:
    key = Enn(config()).preparation_key()
    assert key == Enn(config(num_steps=3)).preparation_key()
    assert key != Enn(config(stop_margin=3.0)).preparation_key()
