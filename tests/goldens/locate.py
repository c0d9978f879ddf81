"""ROME, MEMIT, PMET and AlphaEdit from their papers, dense and in float64.

ROME: Meng et al. 2022, equations 2 to 4. MEMIT: Meng et al. 2023, equations 14 to 20. PMET: Li et al. 2024, section 4.
AlphaEdit: Fang et al. 2025, equation 12 in its printed, non-symmetric form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.goldens import world
from tests.goldens.gpt2 import Adam, Change, backward, forward, log_softmax
from tests.goldens.text import answered, ids, last_token_of
from tests.goldens.world import CONTEXTS, GROUPS, TEXTS, Array, Fact, Weights

Updates = dict[str, Array]
#: (layer, residuals (d_out, facts), keys (d_in, facts)) -> update.
Solve = Callable[[int, Array, Array], Array]


def filled(prompt: str) -> list[str]:
    return [context.replace("{}", prompt) for context in CONTEXTS]


def at_subject(w: Weights, fact: Fact, prompt: str, name: str) -> tuple[Array, Array]:
    """What the module reads and writes at the subject's last token."""
    seen, at = forward(w, ids(prompt)), last_token_of(prompt, fact.subject)
    return seen.inputs[name][at], seen.outputs[name][at]


def second_moment(w: Weights, layer: int) -> Array:
    """C = E[k k^T] over all tokens of the texts."""
    keys = np.concatenate([forward(w, ids(text)).inputs[f"h.{layer}.mlp.c_proj"] for text in TEXTS])
    return keys.T @ keys / len(keys)


def with_ridge(moment: Array, share: float) -> Array:
    return moment + share * np.trace(moment) / len(moment) * np.eye(len(moment))


def solved_change(w: Weights, fact: Fact, layer: int, base: Array, numbers: dict[str, Any]) -> Array:
    """ROME, equation 4: the change at the subject's last token that makes the model say the target in all contexts.

    Mean NLL of the target, plus the divergence of "subject is a" from what it was (edited from base), plus the published
    decay, whose numerator is not squared; Adam, then the ball of `clamp_norm` times the base value.

    Args:
        base: (d_model,) the value that is changed; (2 d_model,) the attention's output, then the feed-forward's, which PMET
            changes together.
    """

    def changed(at: int, both: Array) -> Change:
        attention, own = (None, both) if len(both) == world.D_MODEL else np.split(both, 2)
        return Change(layer, at, own, attention)

    def slope(slopes: dict[str, Array], at: int) -> Array:
        own = slopes[f"h.{layer}"][at]
        return own if len(base) == world.D_MODEL else np.concatenate([slopes[f"h.{layer}.attn.c_proj"][at], own])

    rows = [(answered(text, fact.target), last_token_of(text, fact.subject)) for text in filled(fact.prompt)]
    essence = f"{fact.subject} is a"
    essence_ids, essence_at = ids(essence), last_token_of(essence, fact.subject)
    was = log_softmax(forward(w, essence_ids).logits)[essence_at]
    change, adam, size = np.zeros_like(base), Adam(numbers["value_lr"]), np.linalg.norm(base)
    for step in range(1, numbers["value_steps"] + 1):
        loss, gradient = 0.0, np.zeros_like(base)
        for row, at in rows:
            seen = forward(w, row.ids, changed(at, change))
            logp, towards = log_softmax(seen.logits), np.zeros_like(seen.logits)
            share = 1 / (len(rows) * len(row.answer))
            for number, token in enumerate(row.answer):
                place = row.start - 1 + number
                loss -= share * logp[place, token]
                towards[place] = share * np.exp(logp[place])
                towards[place, token] -= share
            gradient += slope(backward(w, seen, towards), at)
        seen = forward(w, essence_ids, changed(essence_at, change))
        now = log_softmax(seen.logits)[essence_at]
        divergence = float(np.exp(now) @ (now - was))
        towards = np.zeros_like(seen.logits)
        towards[essence_at] = numbers["kl_weight"] * np.exp(now) * (now - was - divergence)
        gradient += slope(backward(w, seen, towards), essence_at)
        length = float(np.linalg.norm(change))
        loss += numbers["kl_weight"] * divergence + numbers["value_decay"] * length / size**2
        if length:
            gradient += numbers["value_decay"] * change / length / size**2
        if loss < numbers["stop_loss"] or step == numbers["value_steps"]:
            break
        change = change + adam.move(gradient)
        length = float(np.linalg.norm(change))
        change *= min(1.0, numbers["clamp_norm"] * size / length)
    return change


def rome(w: Weights, fact: Fact, numbers: dict[str, Any], *, published: bool) -> Updates:
    """Delta = (v* - W k) (C^-1 k*)^T / ((C^-1 k*)^T k), k* the key averaged over the contexts.

    Args:
        published: k is the bare prompt's key, as in the public code; else k* everywhere, as in the paper.
    """
    layer = numbers["layer"]
    name = f"h.{layer}.mlp.c_proj"
    read = [at_subject(w, fact, prompt, name) for prompt in filled(fact.prompt)]
    bare_key, bare_value = read[0]
    average = np.mean([key for key, _ in read], axis=0)
    wanted = bare_value + solved_change(w, fact, layer, bare_value, numbers)
    direction = np.linalg.solve(with_ridge(second_moment(w, layer), numbers["second_moment_ridge"]), average)
    key, value = (bare_key, bare_value) if published else (average, np.mean([value for _, value in read], axis=0))
    return {name: np.outer(wanted - value, direction) / (direction @ key)}


def batch_keys(w: Weights, facts: Sequence[Fact], layer: int, *, by_kind: bool) -> Array:
    """(d_in, facts): averaged over contexts of one kind first, then over kinds; or over all contexts alike."""
    name, columns = f"h.{layer}.mlp.c_proj", []
    for fact in facts:
        found = [at_subject(w, fact, prompt, name)[0] for prompt in filled(fact.prompt)]
        kinds = [np.mean([k for k, g in zip(found, GROUPS, strict=True) if g == kind], axis=0) for kind in sorted(set(GROUPS))]
        columns.append(np.mean(kinds if by_kind else found, axis=0))
    return np.stack(columns, axis=1)


def spread(
    w: Weights, facts: Sequence[Fact], wanted: Sequence[Array], site: str, layers: Sequence[int], solve: Solve,
    *, by_kind: bool = True, root: bool = False,
) -> Updates:  # fmt: skip
    """MEMIT, algorithm 1: at each layer, upwards, a share of what is missing at the site; PMET shares by the square root."""
    now, updates = dict(w), {}
    for number, layer in enumerate(layers):
        keys = batch_keys(now, facts, layer, by_kind=by_kind)
        missing = [z - at_subject(now, fact, fact.prompt, site)[1] for fact, z in zip(facts, wanted, strict=True)]
        share = len(layers) - number
        name = f"h.{layer}.mlp.c_proj"
        updates[name] = solve(layer, np.stack(missing, axis=1) / (np.sqrt(share) if root else share), keys)
        now[f"{name}.weight"] = now[f"{name}.weight"] + updates[name].T
    return updates


def block_targets(w: Weights, facts: Sequence[Fact], numbers: dict[str, Any]) -> list[Array]:
    """z = h + delta at the output of the last edited block, on the weights as they stand."""
    top = numbers["layers"][-1]
    bases = [at_subject(w, fact, fact.prompt, f"h.{top}")[1] for fact in facts]
    return [base + solved_change(w, fact, top, base, numbers) for fact, base in zip(facts, bases, strict=True)]


def least_squares(w: Weights, numbers: dict[str, Any]) -> Solve:
    """Delta = R K^T (lambda C + K K^T)^-1."""
    moments = {layer: with_ridge(second_moment(w, layer), numbers["second_moment_ridge"]) for layer in numbers["layers"]}

    def solve(layer: int, residuals: Array, keys: Array) -> Array:
        return residuals @ keys.T @ np.linalg.inv(numbers["second_moment_weight"] * moments[layer] + keys @ keys.T)

    return solve


def memit(w: Weights, facts: Sequence[Fact], numbers: dict[str, Any]) -> Updates:
    layers, wanted = numbers["layers"], block_targets(w, facts, numbers)
    return spread(w, facts, wanted, f"h.{layers[-1]}", layers, least_squares(w, numbers))


def pmet(w: Weights, facts: Sequence[Fact], numbers: dict[str, Any]) -> Updates:
    """Both changes are solved, the feed-forward's alone is written; keys are averaged over all contexts alike."""
    layers = numbers["layers"]
    top, wanted = layers[-1], []
    for fact in facts:
        both = [at_subject(w, fact, fact.prompt, f"h.{top}.{part}.c_proj")[1] for part in ("attn", "mlp")]
        change = solved_change(w, fact, top, np.concatenate(both), numbers)
        wanted.append(both[1] + np.split(change, 2)[1])
    site = f"h.{top}.mlp.c_proj"
    return spread(w, facts, wanted, site, layers, least_squares(w, numbers), by_kind=False, root=True)


def alphaedit(w: Weights, batches: Sequence[Sequence[Fact]], numbers: dict[str, Any]) -> list[Updates]:
    """Delta = R K1^T P (Kp Kp^T P + K1 K1^T P + l2 I)^-1 for batches in sequence, Kp the keys of the earlier ones."""
    now, done = dict(w), []
    projectors: dict[int, Array] = {}
    earlier: dict[int, list[Array]] = {}
    for layer in numbers["layers"]:
        values, vectors = np.linalg.eigh(second_moment(w, layer))
        free = vectors[:, np.cumsum(values) <= numbers["null_share"] * values.sum()]
        projectors[layer], earlier[layer] = free @ free.T, []

    def solve(layer: int, residuals: Array, keys: Array) -> Array:
        p, before = projectors[layer], sum((k @ k.T for k in earlier[layer]), np.zeros((world.D_MLP, world.D_MLP)))
        earlier[layer].append(keys)
        return residuals @ keys.T @ p @ np.linalg.inv((before + keys @ keys.T) @ p + numbers["l2"] * np.eye(len(p)))

    for batch in batches:
        layers, wanted = numbers["layers"], block_targets(now, batch, numbers)
        updates = spread(now, batch, wanted, f"h.{layers[-1]}", layers, solve)
        done.append(updates)
        for name, update in updates.items():
            now[f"{name}.weight"] = now[f"{name}.weight"] + update.T
    return done
