"""Optimise many target values at once: one change per edit, each with its own loss, Adam moments and stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.errors import EditRefused
from editors.mechanics.behind import Site, site_path
from editors.mechanics.contexts import Contexts
from editors.mechanics.passes import activation_bytes, give_back
from editors.mechanics.settings import LocateEditConfig
from editors.model import EditableModel
from editors.precision import way_out
from editors.targets.objective import EncodedEdit, Objective, build_objective, encode_edits
from warehouse.records import EditRequest

log = logging.getLogger(__name__)

#: Activations that one chunk of edits may hold for its backward pass.
ACTIVATION_BYTES = 2**27
#: Adam's constants, as in the public code.
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class ValueSolution:
    """Solved changes at the lookup token.

    Attributes:
        deltas: (edits, d_model) changes of the site's output, fp32.
        base_values: (edits, d_model) the site's output at the bare prompt's lookup token.
        steps: forward passes that each edit took.
        losses: the objective at the end, in nats.
        solved: whether every target token, and the stop if asked for, is the argmax in all contexts.
    """

    deltas: Tensor
    base_values: Tensor
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    solved: tuple[bool, ...]

    @property
    def targets(self) -> Tensor:
        """(edits, d_model) base value plus change."""
        return self.base_values + self.deltas


def anchored(targets: Tensor, mean_norm: float, config: LocateEditConfig) -> Tensor:
    """The targets (edits, d_model) at the mean norm of base values at their site if `anchor_norm` asks for it, or as solved."""
    return targets * (mean_norm / targets.norm(dim=1, keepdim=True)) if config.anchor_norm else targets


def optimise_values(
    model: EditableModel,
    requests: Sequence[EditRequest],
    contexts: Contexts,
    layer: int,
    site: Site,
    config: LocateEditConfig,
) -> ValueSolution:
    """Find for each request the change at its lookup token that makes the model say the target.

    Minimises J(delta) of Meng et al. 2022: mean NLL of the target in all contexts, the essence KL, decay, and optionally
    the stop and the kept relations. With pre-norm blocks a change of the MLP's output is the same change of the
    block's output, so the two sites (ROME's and MEMIT's) differ only in the base value that bounds and anchors it; where a
    norm stands between the two, a change of the MLP's passes through it (`mechanics/behind.py`).

    Args:
        site: `mlp` for the feed-forward output of `layer`, `block` for the output of the whole block.

    Raises:
        InvalidRequest: an empty target, or a subject that is not in its prompt.
        EditRefused: the objective became infinite or NaN.
    """
    path = site_path(model, site)
    model.anatomy.module(model.hf, path, layer)

    def build(encoded: Sequence[EncodedEdit]) -> tuple[Objective, Tensor]:
        objective, base_values = build_objective(model, encoded, layer, path, config)
        return objective.in_parts(), base_values

    return solve_in_chunks(model, requests, contexts, layer, config, build)


def solve_in_chunks(
    model: EditableModel,
    requests: Sequence[EditRequest],
    contexts: Contexts,
    layer: int,
    config: LocateEditConfig,
    build: Callable[[Sequence[EncodedEdit]], tuple[Objective, Tensor]],
) -> ValueSolution:
    """Descend on the objectives of all requests, a chunk of them at once.

    Args:
        build: the objective of some edits and their base values, from the encoded edits.

    Raises:
        InvalidRequest: an empty target, or a subject that is not in its prompt.
        EditRefused: the objective became infinite or NaN.
    """
    start = time.perf_counter()
    encoded = encode_edits(model, requests, contexts, config)
    # Edits of like length share a chunk, so that little is padded.
    order = sorted(range(len(requests)), key=lambda i: encoded[i].suffix_tokens)
    parts: dict[int, tuple[Tensor, Tensor, int, float, bool]] = {}
    for chunk in value_chunks(model, encoded, order, layer):
        objective, base_values = build([encoded[i] for i in chunk])
        # A pass through the whole model lies behind, its caches and states among what is free now.
        give_back(model)
        names = [requests[i].request_id for i in chunk]
        deltas, steps, losses, margins = descend_values(objective, base_values, config, names)
        for number, i in enumerate(chunk):
            parts[i] = (deltas[number], base_values[number], steps[number], losses[number], margins[number] > 0)
        del objective
        give_back(model)
    deltas, bases, steps, losses, solved = zip(*(parts[i] for i in range(len(requests))), strict=True)
    seconds = time.perf_counter() - start
    log.info("solved %d of %d values in %.2f s, %d steps", sum(solved), len(solved), seconds, sum(steps))
    return ValueSolution(torch.stack(deltas), torch.stack(bases), steps, losses, solved)


def value_chunks(model: EditableModel, encoded: Sequence[EncodedEdit], order: Sequence[int], layer: int) -> list[list[int]]:
    """Cut `order` so that one chunk's activations stay within the budget; at least one edit each."""
    token_bytes = activation_bytes(model, model.anatomy.num_layers(model.hf) - 1 - layer)
    read_bytes = 4 * 3 * model.vocab_size
    chunks: list[list[int]] = []
    used = 0
    for i in order:
        cost = len(encoded[i].rows) * encoded[i].suffix_tokens * token_bytes
        cost += sum(len(r.ids) - r.start + 1 for r in encoded[i].rows) * read_bytes
        if not chunks or used + cost > ACTIVATION_BYTES:
            chunks.append([])
            used = 0
        chunks[-1].append(i)
        used += cost
    return chunks


def descend_values(
    objective: Objective, base_values: Tensor, config: LocateEditConfig, names: Sequence[str]
) -> tuple[Tensor, list[int], list[float], list[float]]:
    """Adam on all changes of a chunk; edits that are done leave, and their rows are dropped.

    Returns:
        Changes (edits, d_model), steps, losses and margins, in the order of the edits.
    """
    edits, device = len(base_values), base_values.device
    final = torch.zeros_like(base_values)
    steps, losses, margins = [0] * edits, [0.0] * edits, [0.0] * edits
    active = torch.arange(edits, device=device)
    deltas = torch.zeros_like(base_values)
    first, second = torch.zeros_like(deltas), torch.zeros_like(deltas)
    limit = config.clamp_norm * objective.base_norms
    for step in range(1, config.value_steps + 1):
        deltas.requires_grad_(True)
        with torch.enable_grad():
            terms = objective(deltas)
            last = step == config.value_steps
            (gradient,) = (None,) if last else torch.autograd.grad(terms.cost.sum(), deltas)
        deltas = deltas.detach()
        cost = terms.cost.detach()
        bad = (~cost.isfinite()).nonzero()[:, 0]
        if len(bad):
            who = ", ".join(names[int(active[i])] for i in bad)
            advice = way_out(objective.suffix.hidden.dtype, "lower value_lr")
            raise EditRefused(f"value optimisation of {who} became {cost[bad[0]].item()} at step {step}; {advice}")
        done = torch.full((len(active),), last, device=device)
        if config.stop_loss is not None or config.stop_margin is not None:
            small = cost < config.stop_loss if config.stop_loss is not None else torch.ones_like(done)
            led = terms.margin >= config.stop_margin if config.stop_margin is not None else torch.ones_like(done)
            done |= small & led
        for at in done.nonzero()[:, 0].tolist():
            i = int(active[at])
            final[i], steps[i] = deltas[at], step
            losses[i], margins[i] = cost[at].item(), terms.margin[at].item()
        if done.all():
            break
        assert gradient is not None
        stay = ~done
        if done.any():
            objective, active = objective.select(stay), active[stay]
            deltas, gradient, first, second, limit = (t[stay] for t in (deltas, gradient, first, second, limit))
        first = BETA1 * first + (1 - BETA1) * gradient
        second = BETA2 * second + (1 - BETA2) * gradient**2
        scale = (second / (1 - BETA2**step)).sqrt() + EPSILON
        deltas = deltas - config.value_lr * first / (1 - BETA1**step) / scale
        norms = deltas.norm(dim=1)
        deltas = deltas * (limit / norms.clamp_min(1e-12)).clamp(max=1.0)[:, None]
    return final, steps, losses, margins
