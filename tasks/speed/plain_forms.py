"""The slow, obvious forms that the benchmark measures the product against, in the same run on the same edits.

They are what the field's toolkits do: the whole model on all tokens of every context at each step, the
head over all positions, one edit at a time, one probe a forward. They compute the same numbers, and a test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checks.predictor import Answer, Predictor, Question
from editors.asking.tokens import continuation_of, encode_rows, pad_right
from editors.mechanics.contexts import Contexts, encode_lookups
from editors.mechanics.settings import LocateEditConfig
from editors.model import EditableModel
from editors.solvers.ridge import ridge_directions
from warehouse.records import EditRequest, Probe

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class PlainValue:
    """A solved value at one site: `delta` (d_model,), the steps it took, and its last cost in nats."""

    delta: Tensor
    steps: int
    cost: float


def plain_values(
    model: EditableModel,
    requests: Sequence[EditRequest],
    contexts: Contexts,
    layer: int,
    site: Literal["mlp", "block"],
    config: LocateEditConfig,
    steps: Sequence[int] | None = None,
) -> list[PlainValue]:
    """The value of each request by itself, as kmeng01/rome `compute_v.py` finds it.

    Args:
        steps: take exactly so many steps for each request, to compare at equal work; None: the published rule, until
            the cost is below `stop_loss` or `value_steps` are done.
    """
    return [
        _plain_value(model, request, contexts, layer, site, config, None if steps is None else steps[i])
        for i, request in enumerate(requests)
    ]


def _plain_value(
    model: EditableModel,
    request: EditRequest,
    contexts: Contexts,
    layer: int,
    site: Literal["mlp", "block"],
    config: LocateEditConfig,
    exact_steps: int | None,
) -> PlainValue:
    texts = contexts.fill(request.prompt)
    prompts = [*texts, request.subject]
    rows = encode_lookups(
        model,
        prompts,
        [request.subject] * len(prompts),
        [continuation_of(request.target_new)] * len(texts) + [""],
        places=[*contexts.places(request.prompt, request.subject, model.tokenizer), 0],
    )
    ids, mask = pad_right([r.ids for r in rows], model.pad_id)
    ids, mask = ids.to(model.device), mask.to(model.device)
    lookup = torch.tensor([r.lookup for r in rows], device=ids.device)
    delta = torch.zeros(model.anatomy.d_model(model.hf), device=ids.device)
    path = (model.anatomy.mlp_out if site == "mlp" else model.anatomy.block).format(layer=layer)
    first, second = torch.zeros_like(delta), torch.zeros_like(delta)
    seen: list[Tensor] = []
    essence = torch.empty(0)
    limit = cost_now = 0.0
    taken = 0
    for taken in range(1, (exact_steps or config.value_steps) + 1):
        delta = delta.detach().requires_grad_(True)
        undo = model.hook(path, _adding(delta, lookup, seen))
        try:
            with torch.enable_grad():
                log_probs = model.hf(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
        finally:
            undo()
        if taken == 1:
            # The first pass has no change yet: it shows the base value and the base distribution.
            essence, limit = log_probs[-1, lookup[-1]].detach(), float(seen[0][0, lookup[0]].norm())
        with torch.enable_grad():
            cost = _cost(model, log_probs, rows[:-1], int(lookup[-1]), essence, delta, limit, config)
        cost_now = float(cost.detach())
        if taken == exact_steps or (exact_steps is None and _is_done(cost_now, taken, config)):
            break
        (gradient,) = torch.autograd.grad(cost, delta)
        first = BETA1 * first + (1 - BETA1) * gradient
        second = BETA2 * second + (1 - BETA2) * gradient**2
        scale = (second / (1 - BETA2**taken)).sqrt() + EPSILON
        delta = delta.detach() - config.value_lr * first / (1 - BETA1**taken) / scale
        delta = delta * min(1.0, config.clamp_norm * limit / max(float(delta.norm()), 1e-12))
    return PlainValue(delta.detach(), taken, cost_now)


def _is_done(cost: float, taken: int, config: LocateEditConfig) -> bool:
    return taken == config.value_steps or (config.stop_loss is not None and cost < config.stop_loss)


def _adding(delta: Tensor, lookup: Tensor, seen: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    """A hook that adds `delta` at every row's lookup token, and keeps the first output that it met."""

    def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
        out = output[0] if isinstance(output, tuple) else output
        if not seen:
            seen.append(out.detach())
        place = F.one_hot(lookup, out.shape[1])[:, :, None].to(out.dtype)
        changed = out + place * delta.to(out.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


def _cost(
    model: EditableModel,
    log_probs: Tensor,
    rows: Sequence[Any],
    essence_at: int,
    essence: Tensor,
    delta: Tensor,
    base_norm: float,
    config: LocateEditConfig,
) -> Tensor:
    """J(delta) of Meng et al. 2022 without the kept relations, term by term."""
    # A copy: one made while scoring, in inference mode, could not be kept for the backward pass.
    stops = model.stops.to(log_probs.device).clone()
    nll = log_probs.new_zeros(())
    for number, row in enumerate(rows):
        target = row.ids[row.start :]
        parts = [-log_probs[number, row.start - 1 + k, token] for k, token in enumerate(target)]
        if config.include_stop:
            parts.append(-log_probs[number, len(row.ids) - 1][stops].logsumexp(-1))
        nll = nll + torch.stack(parts).mean() / len(rows)
    now = log_probs[-1, essence_at]
    kl = (now.exp() * (now - essence)).sum()
    return nll + config.kl_weight * kl + config.value_decay * delta.norm() / base_norm**2


def plain_grace_values(
    model: EditableModel, requests: Sequence[EditRequest], site: str, steps: Sequence[int], step_size: float
) -> list[Tensor]:
    """GRACE's value of each request by itself: full passes, the site's output at the last prompt token replaced.

    Args:
        site: path of the module.
        steps: gradient steps for each request; the published form takes all of them.
        step_size: Adam's learning rate, absolute.
    """
    return [_plain_grace(model, r, site, n, step_size) for r, n in zip(requests, steps, strict=True)]


def _plain_grace(model: EditableModel, request: EditRequest, site: str, steps: int, step_size: float) -> Tensor:
    (row,) = encode_rows(model.tokenizer, [request.prompt], [continuation_of(request.target_new)])
    ids = torch.tensor([row.ids], device=model.device)
    at = torch.tensor([row.start - 1], device=ids.device)
    labels = torch.tensor(row.ids[row.start :], device=ids.device)
    change, optimizer = None, None
    for _ in range(steps):
        if change is None:
            change = torch.zeros(model.anatomy.d_model(model.hf), device=ids.device, requires_grad=True)
            optimizer = torch.optim.Adam([change], lr=step_size)
        assert optimizer is not None
        undo = model.hook(site, _adding(change, at, []))
        try:
            with torch.enable_grad():
                logits = model.hf(input_ids=ids, use_cache=False).logits.float()
                loss = F.cross_entropy(logits[0, row.start - 1 : row.start - 1 + len(labels)], labels)
        finally:
            undo()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert change is not None
    return change.detach()


def plain_directions(earlier: Tensor, new: Tensor, ridge: float) -> Tensor:
    """(P P^T + U U^T + ridge I)^-1 U, fp64, the smaller of the two systems built and factored anew from all keys.

    Args:
        earlier: P (d_in, others).
        new: U (d_in, tokens).
    """
    return ridge_directions(torch.cat([earlier, new], dim=1), ridge)[:, earlier.shape[1] :]


def plain_answers(predictor: Predictor, probes: Sequence[Probe]) -> list[list[Answer]]:
    """Every accepted answer of every probe in a forward pass of its own."""
    return [[predictor.score([Question(p.prompt, target)])[0] for target in p.targets] for p in probes]


def plain_few_shot(model: EditableModel, questions: Sequence[Question]) -> list[Answer]:
    """Questions in packed passes as ours are, but each row with its examples: nothing is shared under such a hook."""
    undo = model.hook(model.anatomy.block.format(layer=0), lambda _module, _inputs, _output: None)
    try:
        return model.score(questions)
    finally:
        undo()
