"""The smallest vector under linear inequalities, by its dual: max b.x - x G x / 2 over x >= 0.

G holds the constraints' inner products in the metric that measures the vector. Coordinate ascent finds which constraints
bind, and one solution on those finishes exactly (Hildreth 1957; the active set as in Lawson and Hanson 1974).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

#: Sweeps of coordinate ascent between two attempts to finish exactly.
SWEEPS_PER_ATTEMPT = 25
#: Added to the diagonal of the binding constraints' Gram matrix (scaled to ones): constraints may repeat.
REPEATED = 1e-10


@dataclass(frozen=True)
class DualSolution:
    """What the dual ended with.

    Attributes:
        multipliers: one for each constraint, zero where it does not bind.
        shortfall: by how much the worst constraint is missed, in the units of the bounds.
        ray: a direction in which the dual grew at the end, where it did not finish; a sign of infeasibility.
    """

    multipliers: Float[Tensor, " constraints"]
    shortfall: float
    ray: Float[Tensor, " constraints"]
    finished: bool


def solve_dual(
    gram: Float[Tensor, "constraints constraints"],
    bounds: Float[Tensor, " constraints"],
    *,
    tolerance: float = 1e-6,
    attempts: int = 40,
    start: Float[Tensor, " constraints"] | None = None,
    hopeless: Callable[[Tensor], bool] = lambda _multipliers: False,
) -> DualSolution:
    """Multipliers of the smallest vector whose product with constraint i is at least `bounds[i]`; fp64.

    Args:
        tolerance: how far below its bound a product may stay, in the units of the bounds.
        hopeless: called with multipliers from time to time; True ends the search.
    """
    scale = gram.diagonal().clamp_min(1e-300).sqrt()
    unit, goal = gram / scale[:, None] / scale[None, :], bounds / scale
    x = torch.zeros_like(goal) if start is None else start * scale
    allowed = tolerance / scale
    ray = torch.zeros_like(x)
    for _ in range(attempts):
        found = _finish(unit, goal, x, allowed)
        if found is not None:
            return DualSolution(found / scale, 0.0, ray, finished=True)
        before = x.clone()
        _sweep(unit, goal, x)
        ray = (x - before).clamp_min(0)
        if hopeless(x / scale) or hopeless(ray / scale):
            break
    shortfall = float(((goal - unit @ x) * scale).max())
    return DualSolution(x / scale, max(0.0, shortfall), ray / scale, finished=shortfall <= tolerance)


def _sweep(unit: Tensor, goal: Tensor, x: Tensor) -> None:
    """Coordinate ascent in place; the diagonal is one."""
    slack = (goal - unit @ x).numpy()
    rows, values = unit.numpy(), x.numpy()
    for _ in range(SWEEPS_PER_ATTEMPT):
        # Binding constraints and missed ones: the others stay at zero in this sweep.
        for i in ((values > 0) | (slack > 0)).nonzero()[0]:
            step = max(-values[i], slack[i])
            if step:
                values[i] += step
                slack -= step * rows[i]


def _finish(unit: Tensor, goal: Tensor, x: Tensor, allowed: Tensor) -> Tensor | None:
    """The exact solution if the constraints that bind now are the right ones, else None."""
    binding = (x > 0).nonzero()[:, 0]
    exact = torch.zeros_like(x)
    if len(binding):
        own = unit[binding][:, binding].clone()
        own.diagonal().add_(REPEATED)
        factor, failed = torch.linalg.cholesky_ex(own)
        if int(failed):
            return None
        exact[binding] = torch.cholesky_solve(goal[binding, None], factor)[:, 0]
    good = bool((exact >= 0).all()) and bool((goal - unit @ exact <= allowed).all())
    return exact if good else None


def least_norm(gram: Float[Tensor, "constraints constraints"], bounds: Tensor, multipliers: Tensor) -> float:
    """No vector that meets the constraints is shorter than this: b.x / sqrt(x G x), for any multipliers (weak duality)."""
    gain = float(bounds @ multipliers)
    length = max(0.0, float(multipliers @ gram @ multipliers)) ** 0.5
    if gain <= 0:
        return 0.0
    return gain / length if length > 1e-12 * gain else float("inf")
