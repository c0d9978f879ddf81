"""Gradient factors against autograd's own weight gradients, and low-rank terms against written weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editors.errors import UnsupportedModel
from editors.mechanics.answers import answer_labels, answer_rows
from editors.mechanics.descent import upper_blocks
from editors.mechanics.gradients import TokenFactors, Tokens, added, projection_paths, token_factors, weight_shape
from editors.model import EditableModel
from editors.patches.weight import LowRank
from tests.support import SIX_REQUESTS, tiny_model
from warehouse.records import EditRequest

KINDS = ("gpt2", "llama")


def factors(
    model: EditableModel, requests: tuple[EditRequest, ...], paths: list[str], first: int, tokens: Tokens = "all"
) -> dict[str, TokenFactors]:
    rows = answer_rows(model, requests)
    upper = upper_blocks(model, rows.ids, rows.mask, first, rows.positions())
    return token_factors(model, upper, answer_labels(model, rows, upper.final), paths, tokens)


def loss_by_hand(model: EditableModel, requests: tuple[EditRequest, ...]) -> Tensor:
    """Sum of the losses of all target tokens and stops, one row at a time."""
    total = torch.zeros(())
    for request in requests:
        rows = answer_rows(model, [request])
        start, target = int(rows.last_prompt[0]), rows.targets[0]
        logits = model.hf(input_ids=rows.ids).logits[0, start : start + len(target) + 1].float()
        stop = logits[-1].detach().masked_fill(~model.stops, float("-inf")).argmax()
        total = total + F.cross_entropy(logits, torch.cat([torch.tensor(target), stop[None]]), reduction="sum")
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_factors_multiply_to_the_weight_gradient_of_autograd(kind: str) -> None:
    model = tiny_model(kind)
    paths = projection_paths(model, (2, 1), "mlp")
    found = factors(model, SIX_REQUESTS, paths, first=1)
    weights = [model.hf.get_parameter(f"{path}.weight") for path in paths]
    for weight in weights:
        weight.requires_grad_(True)
    wanted = torch.autograd.grad(loss_by_hand(model, SIX_REQUESTS), weights)
    for path, gradient in zip(paths, wanted, strict=True):
        is_linear = isinstance(model.hf.get_submodule(path), nn.Linear)
        outer = found[path].gradients.t() @ found[path].inputs
        assert outer.shape == weight_shape(model, path)
        torch.testing.assert_close(outer, gradient if is_linear else gradient.t(), rtol=1e-3, atol=1e-6)


def test_factors_of_a_row_do_not_depend_on_the_rows_beside_it(tiny: EditableModel) -> None:
    paths = projection_paths(tiny, (1,), "mlp")
    together, alone = factors(tiny, SIX_REQUESTS, paths, 1), factors(tiny, SIX_REQUESTS[2:3], paths, 1)
    for path in paths:
        row = together[path].of_rows(2, 3)
        torch.testing.assert_close(row.inputs, alone[path].inputs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(row.gradients, alone[path].gradients, rtol=1e-3, atol=1e-6)


def test_answer_tokens_are_those_that_predict_a_label(tiny: EditableModel) -> None:
    path = projection_paths(tiny, (3,), "mlp_out")[0]
    rows = answer_rows(tiny, SIX_REQUESTS)
    found = factors(tiny, SIX_REQUESTS, [path], 3, "answers")[path]
    assert torch.bincount(found.row).tolist() == [len(target) + 1 for target in rows.targets]


def test_all_tokens_include_those_of_the_prompt_that_are_attended_to(tiny: EditableModel) -> None:
    path = projection_paths(tiny, (1,), "mlp_out")[0]
    found = [len(factors(tiny, SIX_REQUESTS, [path], 1, tokens)[path].row) for tokens in ("all", "answers")]
    assert found[0] > found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_terms_act_on_their_own_rows_like_written_weights(kind: str) -> None:
    model = tiny_model(kind)
    paths = projection_paths(model, (1, 2), "mlp")
    rows = answer_rows(model, SIX_REQUESTS[:5])
    torch.manual_seed(1)
    groups: list[dict[str, LowRank]] = []
    for rank in (3, 0, 1):
        shapes = {path: weight_shape(model, path) for path in paths}
        groups.append({p: LowRank(torch.randn(o, rank) * 0.1, torch.randn(i, rank) * 0.1) for p, (o, i) in shapes.items()})
    sizes = (2, 1, 2)
    with torch.no_grad(), added(model, {path: [g[path] for g in groups] for path in paths}, sizes):
        shown = model.hf(input_ids=rows.ids, attention_mask=rows.mask).logits
    at = 0
    for size, group in zip(sizes, groups, strict=True):
        with model.scratch(), torch.no_grad():
            for path, term in group.items():
                model.add_to_weight(f"{path}.weight", term.dense())
            part = slice(at, at + size)
            written = model.hf(input_ids=rows.ids[part], attention_mask=rows.mask[part]).logits
        for row, mask in enumerate(rows.mask[part].bool()):
            torch.testing.assert_close(shown[at + row][mask], written[row][mask], rtol=1e-3, atol=1e-4)
        at += size


def test_gradients_reach_the_terms(tiny: EditableModel) -> None:
    path = projection_paths(tiny, (2,), "mlp_out")[0]
    d_out, d_in = weight_shape(tiny, path)
    torch.manual_seed(2)
    left, right = torch.randn(d_out, 2).requires_grad_(True), torch.randn(d_in, 2).mul(0.1).requires_grad_(True)
    rows = answer_rows(tiny, SIX_REQUESTS[:3])
    with added(tiny, {path: [LowRank(left, right)]}, (3,)):
        by_term = torch.autograd.grad(tiny.hf(input_ids=rows.ids).logits.square().mean(), (left, right))
    stored = tiny.hf.get_parameter(f"{path}.weight").detach()
    delta = (left @ right.t()).detach()
    moved = (stored + (delta if stored.shape == delta.shape else delta.t())).requires_grad_(True)
    logits = torch.func.functional_call(tiny.hf, {f"{path}.weight": moved}, (rows.ids,)).logits
    (gradient,) = torch.autograd.grad(logits.square().mean(), moved)
    dense = gradient if gradient.shape == delta.shape else gradient.t()
    torch.testing.assert_close(by_term[0], (dense @ right).detach(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(by_term[1], (dense.t() @ left).detach(), rtol=1e-3, atol=1e-6)


def test_no_hook_is_left_behind_where_a_pass_fails(tiny: EditableModel) -> None:
    path = projection_paths(tiny, (2,), "mlp_out")[0]
    d_out, d_in = weight_shape(tiny, path)
    term = LowRank(torch.zeros(d_out, 1), torch.zeros(d_in, 1))
    # Rows of the groups and rows of the pass differ in number.
    with pytest.raises(RuntimeError), added(tiny, {path: [term]}, (5,)):
        tiny.hf(input_ids=answer_rows(tiny, SIX_REQUESTS[:3]).ids)
    assert not tiny.hf.get_submodule(path)._forward_hooks


def test_a_layer_that_is_not_there_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(UnsupportedModel, match="layer 9"):
        projection_paths(tiny, (1, 9), "mlp")
