"""Solve a value as the smallest change with which its answers lead: a few Gauss-Newton steps in place of forty of Adam.

Rows do not meet above the edit, so a change of its own for each row gives, in one backward pass, the gradient of every row's
lead: the whole Jacobian for the price of one gradient. Each step is then the shortest one that makes all leads, taken as
linear, long enough (sequential quadratic programming with the identity for a Hessian; Nocedal and Wright 2006, chapter 18):
a program in as many unknowns as there are rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from editors.errors import EditRefused
from editors.mechanics.settings import LocateEditConfig
from editors.precision import way_out
from editors.solvers.quadratic import solve_dual
from editors.targets.objective import Kind, Objective

#: Logits over which the leads of one row share its gradient: a target of two tokens is held at both while they are close.
SOFTNESS = 0.5
#: Kept answers may end at this share of their margin; a further pass for the rest is not worth its price.
NEAR_ENOUGH = 0.7


class LeadConfig(LocateEditConfig):
    """Attributes:
    lead_margin: the target, and the end of the answer, lead by this many logits in every wording.
    lead_aim: and every step aims at so many more: leads curve.
    kept_margin: answers about the subject's other relations go on leading by this many logits, or by as many as they did.
    lead_steps: passes forward and back, at most.
    lead_reach: one step changes the value by at most this share of the largest change (`clamp_norm`).
    lead_ridge: how much a lead may cost: where not all can be had, each is missed by this share of what it pulls with.
    """

    lead_margin: PositiveFloat = 3.0
    lead_aim: PositiveFloat = 1.0
    kept_margin: PositiveFloat = 2.0
    lead_steps: PositiveInt = 12
    lead_reach: float = Field(default=0.4, gt=0, le=1)
    lead_ridge: PositiveFloat = 1e-2


@dataclass(frozen=True)
class LeadSolution:
    """Attributes:
    change: (d_model,) fp32.
    passes: forward passes taken.
    margin: by how many logits the weakest token of the target leads.
    """

    change: Tensor
    passes: int
    margin: float


def solve_leads(objective: Objective, config: LeadConfig, name: str) -> LeadSolution:
    """The change for one edit (or for all of one subject's) that makes its targets lead and keeps what is kept.

    Args:
        objective: of one edit. Its essence is not asked: a change that short leaves it.

    Returns:
        Of all changes tried the one that misses least.

    Raises:
        EditRefused: a lead became infinite or NaN.
    """
    rows, device = len(objective.edit), objective.base_norms.device
    change = torch.zeros(objective.suffix.hidden.shape[-1], device=device)
    longest = config.clamp_norm * float(objective.base_norms[0])
    asked = objective.kind != Kind.ESSENCE
    is_target = _any_of(objective, (Kind.TARGET, Kind.STOP))
    wanted: Tensor | None = None
    best, least = LeadSolution(change, 0, -torch.inf), torch.inf
    for step in range(1, config.lead_steps + 1):
        last = step == config.lead_steps
        leads, jacobian = _leads(objective, change.expand(rows, -1), asked, last)
        if not bool(leads.isfinite()[is_target].all()):
            advice = way_out(objective.suffix.hidden.dtype, "lower clamp_norm")
            raise EditRefused(f"value optimisation of {name} became infinite or NaN at step {step}; {advice}")
        if wanted is None:
            # The first pass is the base's own.
            wanted = torch.where(is_target, config.lead_margin, leads.clamp(max=config.kept_margin))
        missed = float((wanted - leads).clamp_min(0).square().nan_to_num(0, 0, 0).sum())
        margin = float(leads[is_target].min())
        if missed < least:
            best, least = LeadSolution(change, step, margin), missed
        enough = torch.where(is_target, wanted, NEAR_ENOUGH * wanted)
        if last or bool((leads >= enough).all()):
            break
        aims = torch.where(is_target, wanted + config.lead_aim, wanted)
        step_taken = _shortest(jacobian, aims - leads, config.lead_ridge)
        change = _bounded(change + _bounded(step_taken, config.lead_reach * longest), longest)
    return LeadSolution(best.change, step, best.margin)


def _any_of(objective: Objective, kinds: tuple[Kind, ...]) -> Tensor:
    """(rows,) whether a row is read for one of these."""
    found = torch.zeros(len(objective.edit), dtype=torch.bool, device=objective.edit.device)
    for kind in kinds:
        found[objective.row[objective.kind == kind]] = True
    return found


def _leads(objective: Objective, changes: Tensor, asked: Tensor, last: bool) -> tuple[Tensor, Tensor]:
    """(rows,) the weakest lead of each row, and (rows, d_model) its gradient; zeros where `last` says that none is needed."""
    changes = changes.clone().requires_grad_(True)
    with torch.enable_grad():
        every = objective.leads(objective.logits(changes))[asked]
        owner = objective.row[asked]
        with torch.no_grad():
            weakest = torch.full((len(changes),), torch.inf, device=every.device).scatter_reduce(0, owner, every, "amin")
            shares = ((weakest[owner] - every) / SOFTNESS).exp()
            shares = shares / torch.zeros_like(weakest).index_add(0, owner, shares)[owner]
        (gradient,) = (torch.zeros_like(changes),) if last else torch.autograd.grad((every * shares).sum(), changes)
    return weakest.detach(), gradient.float()


def _shortest(jacobian: Tensor, needed: Tensor, ridge: float) -> Tensor:
    """The shortest step s with jacobian @ s >= needed, as far as `ridge` lets it; rows without a lead ask nothing."""
    use = needed.isfinite() & jacobian.any(1)
    rows = jacobian[use].double().cpu()
    gram = rows @ rows.t()
    gram.diagonal().add_(ridge * float(gram.diagonal().mean()))
    found = solve_dual(gram, needed[use].double().cpu())
    return (rows.t() @ found.multipliers).to(jacobian)


def _bounded(change: Tensor, longest: float) -> Tensor:
    return change * min(1.0, longest / max(float(change.norm()), 1e-12))
