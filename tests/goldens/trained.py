"""GRACE, MEND and LoRA from their papers, in float64.

GRACE: Hartvigsen et al. 2023, algorithm 1, with the rules that our card states. MEND: Mitchell et al. 2022, section 3.
LoRA: Hu et al. 2021, equation 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.goldens.gpt2 import Adam, Change, Pass, backward, forward, log_softmax
from tests.goldens.text import STOPS, Row, answered
from tests.goldens.world import Array, Fact, Weights

#: (place, token): what is to be predicted where.
Label = tuple[int, int]


def labels_of(row: Row, logits: Array) -> list[Label]:
    """The answer's tokens, and behind them the stop that the model as it stands likes best."""
    last = len(row.ids) - 1
    stop = max(STOPS, key=lambda token: logits[last, token])
    return [*((row.start - 1 + number, token) for number, token in enumerate(row.answer)), (last, stop)]


def loss_and_slope(logits: Array, labels: Sequence[Label], share: float) -> tuple[float, Array]:
    """`share` times the sum of the labels' cross-entropies, and its gradient at the logits."""
    logp, slope, loss = log_softmax(logits), np.zeros_like(logits), 0.0
    for place, token in labels:
        loss -= share * logp[place, token]
        slope[place] = share * np.exp(logp[place])
        slope[place, token] -= share
    return loss, slope


# ------------------------------------------------------------ GRACE

RETIRED = -1.0


@dataclass
class Book:
    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)

    def nearest(self, key: Array) -> tuple[int, float]:
        distances = [
            float(np.linalg.norm(key - k)) if radius >= 0 else np.inf for k, radius in zip(self.keys, self.radii, strict=True)
        ]
        return int(np.argmin(distances)), min(distances)


@dataclass(frozen=True)
class Step:
    """What an edit did: the rule that fired, and the book's radii after it."""

    rule: str
    radii: list[float]


def grace(w: Weights, facts: Sequence[Fact], numbers: dict[str, Any]) -> tuple[Book, list[Step]]:
    """The codebook over a block's output after some edits in sequence.

    The key is the block's input at the prompt's last token; the value replaces its output there.
    """
    layer, first_radius, book, steps = numbers["layer"], numbers["radius_share"] * numbers["distance"], Book(), []
    for fact in facts:
        row = answered(fact.prompt, fact.target)
        last = row.start - 1
        plain = forward(w, row.ids)
        key, own = plain.inputs[f"h.{layer}"][last], plain.outputs[f"h.{layer}"][last]

        def shown(value: Array, row: Row = row, last: int = last, own: Array = own) -> Pass:
            return forward(w, row.ids, Change(layer, last, value - own))

        index, distance = book.nearest(key) if book.keys else (0, np.inf)
        hit = bool(book.keys) and distance <= book.radii[index]
        stands = book.values[index] if hit else own
        labels = labels_of(row, shown(stands).logits)
        radius: float | None = first_radius
        if not book.keys or distance > book.radii[index] + first_radius:
            rule = "new"
        elif book.labels[index] == row.answer and lead(shown(book.values[index]).logits, labels) > 0:
            rule, radius = "widen", None
            book.radii[index] = max(book.radii[index], distance)
        elif book.labels[index] == row.answer:
            rule = "same answer, other value"
        elif distance <= 0.01 * first_radius:
            rule, radius = "again", max(book.radii[index], 0.01 * first_radius)
            book.radii[index] = RETIRED
        else:
            rule, radius = "split", min(first_radius, distance / 2)
            book.radii[index] = min(book.radii[index], distance / 2)
        if radius is not None:
            book.keys.append(key)
            book.values.append(_fitted(w, shown, stands, labels, f"h.{layer}", last, numbers))
            book.radii.append(radius)
            book.labels.append(row.answer)
        steps.append(Step(rule, list(book.radii)))
    return book, steps


def lead(logits: Array, labels: Sequence[Label]) -> float:
    """Smallest lead of a label over its best rival; behind the answer any stop will do."""
    found = []
    for place, token in labels:
        right = STOPS if (place, token) == labels[-1] else [token]
        wrong = np.delete(logits[place], right)
        found.append(float(logits[place, right].max() - wrong.max()))
    return min(found)


def _fitted(w: Weights, shown: Any, start: Array, labels: list[Label], name: str, last: int, numbers: dict[str, Any]) -> Array:
    """Adam on the value alone: the first that leads by the margin, else the one of the smallest loss."""
    value, best, best_loss = start, start, np.inf
    adam = Adam(numbers["learning_rate"] * numbers["output_size"])
    for step in range(numbers["num_steps"] + 1):
        seen = shown(value)
        loss, slope = loss_and_slope(seen.logits, labels, 1 / len(labels))
        if lead(seen.logits, labels) >= numbers["stop_margin"]:
            return value
        if loss < best_loss:
            best, best_loss = value, loss
        if step < numbers["num_steps"]:
            value = value + adam.move(backward(w, seen, slope)[name][last])
    return best


# ------------------------------------------------------------ MEND


def mend(w: Weights, facts: Sequence[Fact], paths: Sequence[str], net: dict[str, Array]) -> dict[str, Array]:
    """-step sum_t d~_t u~_t^T over all tokens of all edits that have a gradient, by projection, (d_out, d_in).

    Args:
        net: of each projection `PATH step`, `PATH mean`, `PATH std`, `PATH 0 scale`, `PATH 0 shift`, and so on; of each
            shape (d_out)x(d_in) of a projection `SHAPE 0 down` (rank, width) and `SHAPE 0 up` (width, rank), width that of
            u and d together.
    """
    updates: dict[str, Array] = {}
    for fact in facts:
        row = answered(fact.prompt, fact.target)
        seen = forward(w, row.ids)
        _, slope = loss_and_slope(seen.logits, labels_of(row, seen.logits), 1.0)
        slopes = backward(w, seen, slope)
        for path in paths:
            for u, d in zip(seen.inputs[path], slopes[path], strict=True):
                if not u.any() or not d.any():
                    continue
                z = (np.concatenate([u, d]) - net[f"{path} mean"]) / net[f"{path} std"]
                shape = f"{len(d)}x{len(u)}"
                for i, last in ((0, False), (1, True)):
                    more = net[f"{shape} {i} up"] @ (net[f"{shape} {i} down"] @ z)
                    more = net[f"{path} {i} scale"] * more + net[f"{path} {i} shift"]
                    z = z + (more if last else np.maximum(more, 0))
                term = -net[f"{path} step"] * np.outer(z[len(u) :], z[: len(u)])
                updates[path] = updates.get(path, 0.0) + term
    return updates


# ------------------------------------------------------------ LoRA


def lora(w: Weights, facts: Sequence[Fact], start: dict[str, Array], numbers: dict[str, Any]) -> dict[str, Array]:
    """(alpha / r) B A after Adam on A and B together, by projection, (d_out, d_in).

    The loss is the mean over edits of the mean cross-entropy over an answer's tokens and its stop.

    Args:
        start: A (rank, d_in) of each projection; B starts at zero.
    """
    scale = numbers["alpha"] / numbers["rank"]
    a = dict(start)
    b = {path: np.zeros((w[f"{path}.weight"].shape[1], numbers["rank"])) for path in a}
    adams = {(path, which): Adam(numbers["learning_rate"]) for path in a for which in "ab"}
    rows = [answered(fact.prompt, fact.target) for fact in facts]
    wanted = [labels_of(row, forward(w, row.ids).logits) for row in rows]
    for _ in range(numbers["num_steps"]):
        edited = {**w, **{f"{path}.weight": w[f"{path}.weight"] + scale * (b[path] @ a[path]).T for path in a}}
        whole = {path: np.zeros((len(b[path]), a[path].shape[1])) for path in a}
        for row, labels in zip(rows, wanted, strict=True):
            seen = forward(edited, row.ids)
            _, slope = loss_and_slope(seen.logits, labels, 1 / (len(labels) * len(rows)))
            slopes = backward(edited, seen, slope)
            for path in a:
                whole[path] += slopes[path].T @ seen.inputs[path]
        for path, gradient in whole.items():
            towards_a, towards_b = scale * b[path].T @ gradient, scale * gradient @ a[path].T
            a[path] = a[path] + adams[path, "a"].move(towards_a)
            b[path] = b[path] + adams[path, "b"].move(towards_b)
    return {path: scale * b[path] @ a[path] for path in a}
