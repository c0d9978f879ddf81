"""Minimal patch: the dual against slow solvers, margins that hold on the true model, and refusals that name requests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editors.direct.minimal_patch import MinimalPatch
from editors.errors import EditRefused
from editors.mechanics.answers import answer_labels, answer_rows, row_leads
from editors.mechanics.trace import trace
from editors.model import EditableModel
from editors.patches.weight import LowRank, WeightPatch
from editors.presets import load_editor
from editors.session import batch_of
from editors.solvers.quadratic import least_norm, solve_dual
from editors.solvers.solve import update_norm
from tests.support import CORPUS, SIX_REQUESTS, prepared_once, request

DRAW = {"dtype": torch.float64}


def program(constraints: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows and bounds of a program that some vector satisfies."""
    torch.manual_seed(seed)
    rows = torch.randn(constraints, width, **DRAW)
    return rows, rows @ torch.randn(width, **DRAW) - torch.rand(constraints, **DRAW)


def edited(model: EditableModel, requests: tuple, **changed: object) -> WeightPatch:
    editor = load_editor("minimal_patch", model, changed)
    assert isinstance(editor, MinimalPatch)
    return editor.edit(model, batch_of(requests), prepared_once(editor, model))


def leads(model: EditableModel, requests: tuple) -> Tensor:
    rows = answer_rows(model, requests)
    final = trace(model, rows.ids, rows.mask).final
    assert final is not None
    labels = answer_labels(model, rows, final)
    return row_leads(model.head(final[labels.row, labels.at]), labels, model.stops)


@pytest.mark.parametrize("seed", range(5))
def test_the_dual_meets_all_optimality_conditions(seed: int) -> None:
    rows, bounds = program(30, 12, seed)
    found = solve_dual(rows @ rows.t(), bounds)
    x = found.multipliers @ rows
    assert found.finished
    assert (found.multipliers >= 0).all()
    assert (rows @ x >= bounds - 1e-6).all()
    assert ((rows @ x - bounds) * found.multipliers).abs().max() < 1e-5


def test_the_dual_finds_the_vector_of_slow_projected_gradient() -> None:
    rows, bounds = program(8, 5)
    gram, slow = rows @ rows.t(), torch.zeros(8, **DRAW)
    step = 1 / torch.linalg.matrix_norm(gram, 2)
    for _ in range(20_000):
        slow = (slow + step * (bounds - gram @ slow)).clamp_min(0)
    torch.testing.assert_close(solve_dual(gram, bounds).multipliers @ rows, slow @ rows, rtol=1e-3, atol=1e-4)


def test_constraints_that_repeat_change_nothing() -> None:
    rows, bounds = program(8, 5)
    once = solve_dual(rows @ rows.t(), bounds).multipliers @ rows
    twice = torch.cat([rows, rows])
    again = solve_dual(twice @ twice.t(), torch.cat([bounds, bounds])).multipliers @ twice
    torch.testing.assert_close(once, again, rtol=1e-4, atol=1e-6)


def test_a_contradiction_shows_as_a_ray_of_the_dual() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], **DRAW)
    bounds = torch.tensor([1.0, 1.0, 0.5], **DRAW)
    gram = rows @ rows.t()
    found = solve_dual(gram, bounds, hopeless=lambda x: least_norm(gram, bounds, x) > 1e3)
    assert not found.finished
    assert least_norm(gram, bounds, found.ray) > 1e3
    assert found.ray[2] < 1e-3 * found.ray[0]


def test_no_satisfying_vector_is_shorter_than_the_bound() -> None:
    rows, bounds = program(20, 9)
    gram = rows @ rows.t()
    shortest = float((solve_dual(gram, bounds).multipliers @ rows).norm())
    for _ in range(50):
        assert least_norm(gram, bounds, torch.rand(20, **DRAW)) <= shortest + 1e-6


def test_every_answer_and_its_stop_lead_by_the_margin_on_the_true_model(tiny: EditableModel) -> None:
    assert (leads(tiny, SIX_REQUESTS) < 0.5).all()
    tiny.push(edited(tiny, SIX_REQUESTS, margin=0.5))
    assert (leads(tiny, SIX_REQUESTS) > 0.97 * 0.5).all()


def test_the_certificate_says_the_leads_that_the_edited_model_has(tiny: EditableModel) -> None:
    patch = edited(tiny, SIX_REQUESTS)
    tiny.push(patch)
    certified = patch.meta["note"]["certificate"]["verified_leads"]
    told = torch.tensor([certified[r.request_id] for r in SIX_REQUESTS])
    torch.testing.assert_close(told, leads(tiny, SIX_REQUESTS), rtol=1e-3, atol=1e-3)


def test_a_smaller_copy_of_the_patch_loses_the_margin(tiny: EditableModel) -> None:
    patch = edited(tiny, SIX_REQUESTS[:1], margin=0.5)
    smaller = {name: LowRank(0.9 * patch.tensors[f"{name}|left"], patch.tensors[f"{name}|right"]) for name in patch.updates}
    tiny.push(WeightPatch(smaller))
    assert float(leads(tiny, SIX_REQUESTS[:1])) < 0.97 * 0.5


def test_the_patch_is_no_larger_than_one_found_by_descent(tiny: EditableModel) -> None:
    """Adam on the norm with a stiff penalty for missed margins: slow, and never smaller."""
    patch = edited(tiny, SIX_REQUESTS[:1], margin=0.5)
    (name,) = patch.updates
    rows = answer_rows(tiny, SIX_REQUESTS[:1])
    layer = tiny.anatomy.num_layers(tiny.hf) - 1
    site, block = tiny.anatomy.mlp_out.format(layer=layer), tiny.anatomy.block.format(layer=layer)
    seen = trace(tiny, rows.ids, rows.mask, inputs=(site,), outputs=(block,))
    assert seen.final is not None
    labels = answer_labels(tiny, rows, seen.final)
    keys, states = seen.inputs[site][labels.row, labels.at], seen.outputs[block][labels.row, labels.at]
    norm, head, each = tiny.hf.get_submodule(tiny.anatomy.final_norm), tiny.head, torch.arange(len(labels.row))
    barred = torch.zeros(len(each), tiny.vocab_size, dtype=torch.bool)
    barred[each, labels.token] = True
    barred[labels.is_stop] |= tiny.stops
    delta = torch.zeros(states.shape[1], keys.shape[1], requires_grad=True)
    adam = torch.optim.Adam([delta], lr=2e-3)
    smallest = float("inf")
    for _ in range(1500):
        logits = head(norm(states + keys @ delta.t()))
        gaps = logits[each, labels.token][:, None] - logits.masked_fill(barred, float("-inf"))
        missed = (0.5 - gaps).clamp_min(0).square().sum()
        if float(missed.detach()) < 1e-4:
            smallest = min(smallest, float(delta.detach().norm()))
        adam.zero_grad()
        (delta.square().sum() + 1e3 * missed).backward()
        adam.step()
    update = patch.updates[name]
    assert isinstance(update, LowRank)
    assert smallest < float("inf")
    assert update_norm(update) <= 1.02 * smallest


def test_different_answers_to_the_same_words_are_refused_by_name(tiny: EditableModel) -> None:
    same = (request(11, "Ada Lovelace", "Paris"), request(12, "Ada Lovelace", "Tokyo"), SIX_REQUESTS[4])
    with pytest.raises(EditRefused, match="r11, r12: ") as refused:
        edited(tiny, same)
    assert "r5" not in str(refused.value)


def test_margins_out_of_reach_of_the_norm_are_refused_by_name(tiny: EditableModel) -> None:
    with pytest.raises(EditRefused, match="r1: only an update of norm"):
        edited(tiny, SIX_REQUESTS[:1], margin=5.0, max_relative_norm=1e-3)


def test_the_metric_of_text_moves_text_less(tiny: EditableModel) -> None:
    layer = tiny.anatomy.num_layers(tiny.hf) - 1
    site = tiny.anatomy.mlp_out.format(layer=layer)
    moved = {}
    for metric in ("frobenius", "text"):
        patch = edited(tiny, SIX_REQUESTS[:2], metric=metric, second_moment_tokens=400)
        total = 0.0
        for text in CORPUS.texts[:5]:
            ids = torch.tensor([tiny.tokenizer(text)["input_ids"]])
            keys = trace(tiny, ids, torch.ones_like(ids), inputs=(site,)).inputs[site][0]
            total += float((keys @ patch.dense(f"{site}.weight").t()).square().sum())
        moved[metric] = total
    assert moved["text"] < moved["frobenius"]


def test_an_edit_that_holds_already_needs_no_update(tiny: EditableModel) -> None:
    tiny.push(edited(tiny, SIX_REQUESTS[:1], margin=1.0))
    again = edited(tiny, SIX_REQUESTS[:1], margin=0.5)
    assert not any(again.dense(name).any() for name in again.updates)
