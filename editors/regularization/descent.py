"""Adam on chosen weights until the new answers are exact: what every fine-tuning editor shares.

The live weights are never written: fp32 copies stand in for them in the blocks that hold them, so the model is left
bit for bit as it was, and half-precision models train in full precision.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from editors.anatomy import Anatomy
from editors.base import EditorConfig
from editors.errors import EditRefused
from editors.mechanics.answers import (
    TOKENS_PER_PASS,
    AnswerRows,
    Labels,
    answer_labels,
    answer_rows,
    at_positions,
    label_logits,
    row_leads,
    row_losses,
)
from editors.mechanics.trace import trace
from editors.model import EditableModel
from editors.patches.weight import Dense, WeightPatch
from warehouse.records import EditRequest

log = logging.getLogger(__name__)


class DescentConfig(EditorConfig):
    """Settings of the descent. It stops at `stop_loss`, or once every answer is exact and leads by `stop_margin`."""

    learning_rate: PositiveFloat
    num_steps: PositiveInt = 25
    stop_loss: NonNegativeFloat = 1e-2
    stop_margin: PositiveFloat | None = None


@dataclass(frozen=True)
class _Chunk:
    """Some of a batch's rows, ready for the blocks from the lowest edited one on; what is below ran once.

    Attributes:
        hidden: (rows, tokens, d_model) input of the lowest edited block.
        calls: path of each block from there on -> its further arguments.
    """

    rows: AnswerRows
    labels: Labels
    hidden: Tensor
    calls: Mapping[str, Mapping[str, Any]]

    def logits(self, model: EditableModel, parameters: Mapping[str, Tensor]) -> Tensor:
        """(labels, vocab) with `parameters` in place of those of the same name."""
        hidden = self.hidden
        with at_positions(model, self.rows.positions()):
            for path, call in self.calls.items():
                block = model.hf.get_submodule(path)
                own = {n.removeprefix(path + "."): p for n, p in parameters.items() if n.startswith(path + ".")}
                hidden = torch.func.functional_call(block, own, (hidden,), dict(call))
        return label_logits(model, model.hf.get_submodule(model.anatomy.final_norm)(hidden), self.labels)


def _chunk(model: EditableModel, requests: Sequence[EditRequest], first: int) -> _Chunk:
    rows = answer_rows(model, requests)
    paths = [model.anatomy.block.format(layer=i) for i in range(first, model.anatomy.num_layers(model.hf))]
    with at_positions(model, rows.positions()):
        traced = trace(model, rows.ids, rows.mask, inputs=paths[:1], calls=paths)
    assert traced.final is not None
    calls = {path: {k: v for k, v in traced.calls[path].items() if k != "hidden_states"} for path in paths}
    return _Chunk(rows, answer_labels(model, rows, traced.final), traced.inputs[paths[0]], calls)


def _chunks(model: EditableModel, requests: Sequence[EditRequest], first: int) -> list[_Chunk]:
    """Rows of similar length together, so that little is padded."""
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt) + len(requests[i].target_new))
    longest = answer_rows(model, [requests[i] for i in order]).ids.shape[1]
    size = max(1, TOKENS_PER_PASS // longest)
    return [_chunk(model, [requests[i] for i in order[at : at + size]], first) for at in range(0, len(order), size)]


def descend(
    model: EditableModel,
    requests: Sequence[EditRequest],
    names: Sequence[str],
    config: DescentConfig,
    clamp: float | None = None,
) -> WeightPatch:
    """Minimise the mean cross-entropy of all answers over the weights `names`, and return what changed.

    Prompt tokens carry no loss; each answer is its target tokens and the stop behind them. Adam starts afresh on every
    call: moments of an earlier batch say nothing about this one.

    Args:
        names: parameters inside blocks, by their full names.
        clamp: after each step every entry is brought back to within this distance of its start (L-infinity).

    Returns:
        Dense updates against the weights as they stand, fp32, (d_out, d_in).

    Raises:
        InvalidRequest: a request that cannot be applied.
        EditRefused: the loss is not finite.
    """  # fmt: skip
    first = min(layer_of(model.anatomy, name) for name in names)
    chunks = _chunks(model, requests, first)
    start = {name: model.parameter(name).float() for name in names}
    trained = {name: value.clone().requires_grad_(True) for name, value in start.items()}
    optimizer = torch.optim.Adam(list(trained.values()), lr=config.learning_rate)
    stops, steps, loss, lead = model.stops.to(model.hf.device), 0, 0.0, 0.0
    for steps in range(config.num_steps + 1):
        optimizer.zero_grad(set_to_none=True)
        loss, lead = 0.0, float("inf")
        last = steps == config.num_steps
        for chunk in chunks:
            shown = {name: value.to(model.parameter(name).dtype) for name, value in trained.items()}
            with torch.set_grad_enabled(not last):
                logits = chunk.logits(model, shown)
                part = row_losses(logits, chunk.labels).sum() / len(requests)
            lead = min(lead, float(row_leads(logits.detach(), chunk.labels, stops).min()))
            loss += float(part.detach())
            if not last:
                part.backward()
        if not torch.isfinite(torch.tensor(loss)):
            raise EditRefused(f"loss {loss} after {steps} steps on {len(requests)} requests; lower learning_rate")
        # A low loss is enough for the published rule; the margin is ours, and stops sooner.
        if last or loss < config.stop_loss or (config.stop_margin is not None and lead >= config.stop_margin):
            break
        optimizer.step()
        if clamp is not None:
            with torch.no_grad():
                for name, value in trained.items():
                    value.clamp_(start[name] - clamp, start[name] + clamp)
    log.info("%d requests, %d steps, loss %.4f, smallest lead %.2f", len(requests), steps, loss, lead)
    return WeightPatch({name: Dense(_oriented(model, name, trained[name].detach() - start[name])) for name in names})


def layer_of(anatomy: Anatomy, name: str) -> int:
    """The block that a parameter is in.

    Raises:
        ValueError: it is in none.
    """
    prefix = anatomy.block.split("{layer}")[0]
    number = name.removeprefix(prefix).split(".")[0]
    if not name.startswith(prefix) or not number.isdigit():
        raise ValueError(f"parameter {name!r} is in no block ({anatomy.block})")
    return int(number)


def _oriented(model: EditableModel, name: str, delta: Tensor) -> Tensor:
    """(d_out, d_in) for matrices, whatever the storage order, as `EditableModel.add_to_weight` takes them."""
    module = model.hf.get_submodule(name.rsplit(".", 1)[0])
    stored_in_out = delta.ndim == 2 and not isinstance(module, (torch.nn.Linear, torch.nn.Embedding))
    return (delta.t() if stored_in_out else delta).contiguous().cpu()
