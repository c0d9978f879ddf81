"""Adam on chosen weights until the new answers are exact: what every fine-tuning editor shares.

The live weights are never written: fp32 copies stand in for them in the blocks that hold them, so the model is left
bit for bit as it was, and half-precision models train in full precision.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from editors.architectures.anatomy import Anatomy
from editors.asking.calls import PromptPositions
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
from editors.mechanics.paraphrases import in_every_form
from editors.mechanics.trace import hidden_of, trace
from editors.model import EditableModel
from editors.patches.weight import Dense, WeightPatch
from editors.precision import way_out
from warehouse.records import EditRequest

log = logging.getLogger(__name__)

Sites = Literal["mlp_out", "mlp", "all"]
Anchor = Literal["base", "last"]
#: Trained weights by name (fp32, as stored) and the number of the step -> scalars added to the loss. Each is differentiated
#: before the next is made, so that of what they hold for it only one stands at a time.
Penalty = Callable[[Mapping[str, Tensor], int], Iterable[Tensor]]
#: The loss's labels in place of the target tokens and their stop.
Relabel = Callable[[AnswerRows, Labels], Labels]


class DescentConfig(EditorConfig):
    """Settings of the descent. It stops at `stop_loss`, or once every answer is exact and leads by `stop_margin`."""

    learning_rate: PositiveFloat
    num_steps: PositiveInt = 25
    stop_loss: NonNegativeFloat = 1e-2
    stop_margin: PositiveFloat | None = None


class PenalisedConfig(DescentConfig):
    """A descent that something holds back; the penalty has no part in `stop_loss`.

    Attributes:
        sites: of each layer: the output projection of the feed-forward, all of the feed-forward, or the whole block.
    """

    layers: tuple[int, ...] = Field(min_length=1)
    sites: Sites = "mlp_out"


@dataclass(frozen=True)
class UpperBlocks:
    """Rows on their way through the model, ready for the blocks from one on; what is below ran once.

    Attributes:
        hidden: (rows, tokens, d_model) input of the first of these blocks.
        calls: path of each block from there on -> its further arguments.
        positions: where the prompts end, for the hooks of patches below.
        final: (rows, tokens, d_model) states after the final norm, with the weights as they stood.
    """

    hidden: Tensor
    calls: Mapping[str, Mapping[str, Any]]
    positions: PromptPositions
    final: Tensor

    def run(self, model: EditableModel, parameters: Mapping[str, Tensor]) -> Tensor:
        """States after the final norm with `parameters` in place of those of the same name."""
        hidden = self.hidden
        with at_positions(model, self.positions):
            for path, call in self.calls.items():
                block = model.hf.get_submodule(path)
                own = {n.removeprefix(path + "."): p for n, p in parameters.items() if n.startswith(path + ".")}
                hidden = hidden_of(torch.func.functional_call(block, own, (hidden,), dict(call)))
        return model.hf.get_submodule(model.anatomy.final_norm)(hidden)


def upper_blocks(
    model: EditableModel, ids: Tensor, mask: Tensor, first: int, positions: PromptPositions | None = None
) -> UpperBlocks:
    """One pass over right-padded rows (rows, tokens), kept from block `first` on.

    Args:
        positions: None for plain texts, which are all prompt.
    """
    if positions is None:
        ids, mask = ids.to(model.device), mask.to(model.device)
        positions = PromptPositions(mask.sum(1) - 1, mask.bool())
    paths = [model.anatomy.block.format(layer=i) for i in range(first, model.anatomy.num_layers(model.hf))]
    with at_positions(model, positions):
        traced = trace(model, ids, mask, inputs=paths[:1], calls=paths)
    assert traced.final is not None
    calls = {path: {k: v for k, v in traced.calls[path].items() if k != "hidden_states"} for path in paths}
    return UpperBlocks(traced.inputs[paths[0]], calls, positions, traced.final)


@dataclass(frozen=True)
class _Chunk:
    """Some of a batch's rows and what they are to predict."""

    upper: UpperBlocks
    labels: Labels

    def logits(self, model: EditableModel, parameters: Mapping[str, Tensor]) -> Tensor:
        """(labels, vocab) with `parameters` in place of those of the same name."""
        return label_logits(model, self.upper.run(model, parameters), self.labels)


def _chunk(model: EditableModel, requests: Sequence[EditRequest], first: int, relabel: Relabel | None) -> _Chunk:
    rows = answer_rows(model, requests)
    upper = upper_blocks(model, rows.ids, rows.mask, first, rows.positions())
    labels = answer_labels(model, rows, upper.final)
    return _Chunk(upper, relabel(rows, labels) if relabel else labels)


def _chunks(model: EditableModel, requests: Sequence[EditRequest], first: int, relabel: Relabel | None) -> list[_Chunk]:
    """Rows of similar length together, so that little is padded."""
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt) + len(requests[i].target_new))
    longest = answer_rows(model, [requests[i] for i in order]).ids.shape[1]
    size = max(1, TOKENS_PER_PASS // longest)
    parts = [[requests[i] for i in order[at : at + size]] for at in range(0, len(order), size)]
    return [_chunk(model, part, first, relabel) for part in parts]


def descend(
    model: EditableModel,
    requests: Sequence[EditRequest],
    names: Sequence[str],
    config: DescentConfig,
    clamp: float | None = None,
    *,
    penalty: Penalty | None = None,
    relabel: Relabel | None = None,
) -> WeightPatch:
    """Minimise the mean cross-entropy of all answers over the weights `names`, and return what changed.

    Prompt tokens carry no loss; each answer is its target tokens and the stop behind them. Adam starts afresh on every
    call: moments of an earlier batch say nothing about this one.

    Args:
        names: parameters inside blocks, by their full names.
        clamp: after each step every entry is brought back to within this distance of its start (L-infinity).
        penalty: added to the loss before each step; what stops the descent is the loss of the answers alone.
        relabel: another choice of labels (FT-L's).

    Returns:
        Dense updates against the weights as they stand, fp32, (d_out, d_in).

    Raises:
        InvalidRequest: a request that cannot be applied.
        EditRefused: the loss is not finite.
    """
    first = min(layer_of(model.anatomy, name) for name in names)
    start = {name: model.parameter(name).float() for name in names}
    trained = {name: value.clone().requires_grad_(True) for name, value in start.items()}

    def after_step(_step: int) -> None:
        if clamp is not None:
            with torch.no_grad():
                for name, value in trained.items():
                    value.clamp_(start[name] - clamp, start[name] + clamp)

    minimise(
        model,
        requests,
        first,
        list(trained.values()),
        config,
        shown=lambda: as_stored(model, trained),
        relabel=relabel,
        penalty=(lambda step: penalty(trained, step)) if penalty else None,
        after_step=after_step,
    )
    return WeightPatch({name: Dense(_oriented(model, name, trained[name].detach() - start[name])) for name in names})


def minimise(
    model: EditableModel,
    requests: Sequence[EditRequest],
    first: int,
    trained: Sequence[Tensor],
    config: DescentConfig,
    *,
    shown: Callable[[], Mapping[str, Tensor]] = dict,
    penalty: Callable[[int], Iterable[Tensor]] | None = None,
    relabel: Relabel | None = None,
    after_step: Callable[[int], None] = lambda _step: None,
) -> None:
    """The loop itself: Adam on the leaves `trained` until the answers of `requests` are right.

    Args:
        first: the lowest block that `trained` changes; what is below it runs once.
        shown: parameters in place of the model's own, by name; none where modules of the blocks hold `trained`.
        penalty: number of the step -> scalars added to the loss, as of a `Penalty`.
        after_step: called with the number of steps done, before the gradients are cleared.

    Raises:
        InvalidRequest: a request that cannot be applied.
        EditRefused: the loss is not finite.
    """
    requests = in_every_form(requests)
    chunks = _chunks(model, requests, first, relabel)
    optimizer = torch.optim.Adam(list(trained), lr=config.learning_rate)
    stops, steps, loss, lead, held = model.stops.to(model.device), 0, 0.0, 0.0, 0.0
    for steps in range(config.num_steps + 1):
        optimizer.zero_grad(set_to_none=True)
        loss, lead = 0.0, float("inf")
        last = steps == config.num_steps
        for chunk in chunks:
            with torch.set_grad_enabled(not last):
                logits = chunk.logits(model, shown())
                part = row_losses(logits, chunk.labels).sum() / len(requests)
            lead = min(lead, float(row_leads(logits.detach(), chunk.labels, stops).min()))
            loss += float(part.detach())
            if not last:
                part.backward()
        if not torch.isfinite(torch.tensor(loss)):
            advice = way_out(model.hf.dtype, "lower learning_rate")
            raise EditRefused(f"loss {loss} after {steps} steps on {len(requests)} requests; {advice}")
        # A low loss is enough for the published rule; the margin is ours, and stops sooner.
        if last or loss < config.stop_loss or (config.stop_margin is not None and lead >= config.stop_margin):
            break
        if penalty is not None:
            held = 0.0
            for extra in penalty(steps):
                held += float(extra.detach())
                if not math.isfinite(held):
                    advice = way_out(model.hf.dtype, "lower its weight or learning_rate")
                    raise EditRefused(f"penalty {held} after {steps} steps; {advice}")
                extra.backward()
        optimizer.step()
        after_step(steps + 1)
    log.info("%d requests, %d steps, loss %.4f, penalty %.4f, smallest lead %.2f", len(requests), steps, loss, held, lead)


def as_stored(model: EditableModel, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fp32 weights in training as the model would hold them; gradients pass through the rounding."""
    return {name: value.to(model.hf.get_parameter(name).dtype) for name, value in parameters.items()}


def site_parameters(model: EditableModel, layers: Sequence[int], sites: Sites) -> list[str]:
    """Names of the parameters at the sites of each layer.

    Raises:
        UnsupportedModel: a layer that the model does not have.
    """
    anatomy = model.anatomy
    paths = {"mlp_out": (anatomy.mlp_out,), "mlp": (*anatomy.mlp_in, anatomy.mlp_out), "all": (anatomy.block,)}[sites]
    names = []
    for layer in layers:
        for path in paths:
            module = anatomy.module(model.hf, path, layer)
            names += [f"{path.format(layer=layer)}.{name}" for name, _ in module.named_parameters()]
    return names


def anchors(model: EditableModel, names: Sequence[str], anchor: Anchor) -> dict[str, Tensor]:
    """Where a penalty pulls to, fp32: the base model's weights, or those that the last edit left."""
    take = model.base_parameter if anchor == "base" else model.parameter
    return {name: take(name).detach().float() for name in names}


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
