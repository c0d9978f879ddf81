"""FT+L2: what the penalty is, where it pulls to, and what it holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from editors.base import NOTHING
from editors.errors import EditRefused
from editors.mechanics import answers
from editors.mechanics.descent import anchors
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from editors.regularization.ft_l2 import FineTuningL2, FineTuningL2Config, squared_distance
from editors.session import batch_of
from tests.stand_ins import Ask
from tests.support import SIX_REQUESTS
from warehouse.records import EditRequest


def edit(model: EditableModel, *requests: EditRequest, **values: Any) -> WeightPatch:
    settings = {"layers": (1,), "learning_rate": 1e-2, "num_steps": 40, "beta": 0.01, **values}
    return FineTuningL2(FineTuningL2Config(**settings)).edit(model, batch_of(requests), NOTHING)


def moved(patch: WeightPatch) -> float:
    return sum(float(patch.dense(name).square().sum()) for name in patch.updates) ** 0.5


def weight_name(model: EditableModel) -> str:
    return model.anatomy.mlp_out.format(layer=1) + ".weight"


def test_the_penalty_is_beta_times_the_sum_of_squared_distances() -> None:
    torch.manual_seed(0)
    anchor = {"a": torch.randn(3, 4), "b": torch.randn(5)}
    at = {name: value + torch.randn_like(value) for name, value in anchor.items()}
    slow = sum((x - y) ** 2 for n in at for x, y in zip(at[n].flatten().tolist(), anchor[n].flatten().tolist(), strict=True))
    assert float(sum(squared_distance(anchor, 0.3)(at, 0))) == pytest.approx(0.3 * slow, rel=1e-5)


def test_the_update_is_what_adam_on_the_whole_objective_gives(tiny: EditableModel) -> None:
    steps, beta = 4, 0.5
    patch = edit(tiny, *SIX_REQUESTS[:3], num_steps=steps, beta=beta)
    rows = answers.answer_rows(tiny, SIX_REQUESTS[:3])
    labels = answers.answer_labels(tiny, rows, tiny.hf.base_model(rows.ids, attention_mask=rows.mask).last_hidden_state)
    # GPT-2's projection has a bias, which is trained with it.
    weights = [dict(tiny.hf.named_parameters())[name].requires_grad_(True) for name in patch.updates]
    before = [w.detach().clone() for w in weights]
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = tiny.hf(rows.ids, attention_mask=rows.mask).logits[labels.row, labels.at]
        distance = sum(((w - b) ** 2).sum() for w, b in zip(weights, before, strict=True))
        ((answers.row_losses(logits, labels).sum() + beta * distance) / 3).backward()
        optimizer.step()
    for name, weight, old in zip(patch.updates, weights, before, strict=True):
        change = weight.detach() - old
        change = change.t() if change.ndim == 2 and tiny.anatomy.orientation == "in_out" else change
        torch.testing.assert_close(patch.dense(name), change, rtol=1e-3, atol=1e-5)


def test_a_larger_beta_moves_the_weights_less(tiny: EditableModel) -> None:
    free, held, fixed = (moved(edit(tiny, *SIX_REQUESTS, beta=beta)) for beta in (0.0, 0.3, 30.0))
    assert free > 1.2 * held > 1.2 * fixed


def test_a_batch_is_held_no_harder_than_its_edits_are_alone(tiny: EditableModel) -> None:
    def written(*requests: EditRequest) -> int:
        tiny.push(edit(tiny, *requests, beta=0.1, num_steps=80, stop_margin=0.5))
        found = sum(a.exact for a in tiny.score([Ask(r.prompt, r.target_new) for r in requests]))
        tiny.rollback(0)
        return found

    assert sum(written(request) for request in SIX_REQUESTS) == 6
    assert written(*SIX_REQUESTS) == 6


def test_a_moderate_beta_still_writes_the_answers(tiny: EditableModel) -> None:
    tiny.push(edit(tiny, *SIX_REQUESTS, num_steps=80, stop_margin=0.5))
    assert all(a.exact for a in tiny.score([Ask(r.prompt, r.target_new) for r in SIX_REQUESTS]))


@pytest.mark.parametrize("anchor", ["base", "last"])
def test_the_anchor_is_the_base_or_the_weights_before_the_edit(anchor: Any, tiny: EditableModel) -> None:
    name = weight_name(tiny)
    base = tiny.parameter(name).clone()
    tiny.push(edit(tiny, SIX_REQUESTS[0]))
    last = tiny.parameter(name).clone()
    assert not torch.equal(base, last)
    assert torch.equal(anchors(tiny, [name], anchor)[name], base if anchor == "base" else last)


def test_the_base_anchor_keeps_a_sequence_nearer_to_the_base(tiny: EditableModel) -> None:
    name, reached = weight_name(tiny), {}
    base = tiny.parameter(name).clone()
    for anchor in ("base", "last"):
        for asked in SIX_REQUESTS:
            tiny.push(edit(tiny, asked, anchor=anchor, beta=0.3, num_steps=20))
        reached[anchor] = float((tiny.parameter(name) - base).norm())
        tiny.rollback(0)
    assert reached["base"] < reached["last"]


def test_the_sites_of_several_layers_are_trained_together(tiny: EditableModel) -> None:
    patch = edit(tiny, SIX_REQUESTS[0], layers=(1, 3), sites="mlp")
    paths = [tiny.anatomy.mlp.format(layer=layer) + "." for layer in (1, 3)]
    assert set(patch.updates) == {n for n, _ in tiny.hf.named_parameters() if n.startswith(tuple(paths))}


def test_a_penalty_that_is_not_finite_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(EditRefused, match="penalty"):
        edit(tiny, SIX_REQUESTS[0], beta=float("inf"))
