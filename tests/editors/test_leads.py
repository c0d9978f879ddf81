"""The smallest change with which answers lead: against quadratic programs solved by hand, and on a tiny model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.errors import EditRefused
from editors.model import EditableModel
from editors.targets.leads import LeadConfig, LeadSolution, _leads, solve_leads
from editors.targets.objective import Kind, Objective, build_objective, encode_edits
from tests.editors.locating import CONTEXTS, config, randn
from tests.support import SIX_REQUESTS

KEPT = {"P19": "{} was born in", "P27": "The country of {} is", "P20": "{} died in"}
TARGET, STOP, ESSENCE, KEPT_ROW = Kind.TARGET, Kind.STOP, Kind.ESSENCE, Kind.KEPT


class Straight:
    """Leads that are linear in the change: one read a row, `leads = start + slopes @ change`."""

    def __init__(self, slopes: list[list[float]], start: list[float], kinds: list[Kind], norm: float = 10.0) -> None:
        self._slopes, self._start = torch.tensor(slopes), torch.tensor(start)
        self.kind = torch.tensor([int(k) for k in kinds])
        self.row = self.edit = torch.arange(len(kinds))
        self.base_norms = torch.tensor([norm])
        self.suffix: Any = SimpleNamespace(hidden=torch.zeros(len(kinds), 1, len(slopes[0])))
        self.passes = 0

    def logits(self, changes: Tensor) -> Tensor:
        self.passes += 1
        return self._start + (self._slopes * changes).sum(1)

    def leads(self, logits: Tensor) -> Tensor:
        return logits


def solved(objective: Any, **settings: Any) -> LeadSolution:
    quiet = {"lead_aim": 1e-6, "lead_ridge": 1e-9, "lead_reach": 1.0, "clamp_norm": 1e6}
    return solve_leads(objective, LeadConfig(**(quiet | settings)), "r1")


def test_the_change_is_the_shortest_with_which_all_lead() -> None:
    found = solved(Straight([[1.0, 0.0], [1.0, 1.0]], [-1.0, -3.0], [TARGET, TARGET]), lead_margin=1.0)
    # x >= 2 and x + y >= 4: the point of the line that is nearest to the origin.
    torch.testing.assert_close(found.change, torch.tensor([2.0, 2.0]), rtol=1e-4, atol=1e-4)
    assert found.passes == 2 and found.margin == pytest.approx(1.0, abs=1e-3)


def test_what_leads_already_asks_for_nothing() -> None:
    found = solved(Straight([[1.0, 0.0]], [5.0], [TARGET]), lead_margin=1.0)
    assert not found.change.any() and found.passes == 1 and found.margin == 5.0


def test_a_kept_answer_goes_on_leading_by_its_margin_or_by_what_it_had() -> None:
    slopes = [[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]
    found = solved(Straight(slopes, [0.0, 9.0, 0.5], [TARGET, KEPT_ROW, KEPT_ROW]), lead_margin=10.0, kept_margin=2.0)
    leads = torch.tensor([0.0, 9.0, 0.5]) + torch.tensor(slopes) @ found.change
    torch.testing.assert_close(leads, torch.tensor([10.0, 2.0, 0.5]), rtol=1e-3, atol=1e-3)


def test_the_essence_is_no_constraint() -> None:
    found = solved(Straight([[1.0, 0.0], [0.0, 1.0]], [-1.0, -5.0], [TARGET, ESSENCE]), lead_margin=1.0)
    torch.testing.assert_close(found.change, torch.tensor([2.0, 0.0]), rtol=1e-4, atol=1e-4)


def test_no_change_is_longer_than_the_clamp_and_no_step_than_its_reach() -> None:
    objective = Straight([[1.0, 0.0]], [-100.0], [TARGET])
    found = solved(objective, clamp_norm=4.0, lead_reach=0.25, lead_steps=9)
    assert float(found.change.norm()) == pytest.approx(40.0) and found.margin == pytest.approx(-60.0)
    assert objective.passes == 9


def test_where_leads_exclude_each_other_both_are_missed_by_like_much() -> None:
    found = solved(Straight([[1.0], [-1.0]], [0.0, 0.0], [TARGET, TARGET]), lead_margin=2.0, lead_ridge=1e-2)
    assert abs(float(found.change)) < 0.1 and found.margin <= 0


def test_of_all_changes_tried_the_one_that_misses_least_is_taken() -> None:
    class Bent(Straight):
        """Every second pass is worse than what came before."""

        def leads(self, logits: Tensor) -> Tensor:
            return logits if self.passes != 3 else logits - 50.0

    objective = Bent([[1.0, 0.0]], [-100.0], [TARGET])
    found = solved(objective, clamp_norm=1.0, lead_reach=0.5, lead_steps=3)
    assert found.margin == pytest.approx(-95.0)


def test_a_lead_that_is_no_number_is_refused_by_the_edits_name() -> None:
    with pytest.raises(EditRefused, match=r"value optimisation of r1 became infinite or NaN at step 1; lower clamp_norm"):
        solved(Straight([[1.0]], [float("nan")], [TARGET]))


# ------------------------------------------------------------ on a model


def of_model(tiny: EditableModel, kl_weight: float = 0.0, count: int = 1) -> tuple[Objective, Tensor]:
    settings = config(kept_prompts=KEPT, kept_weight=0.7, kept_count=3, kl_weight=kl_weight)
    encoded = encode_edits(tiny, SIX_REQUESTS[:count], CONTEXTS, settings)
    return build_objective(tiny, encoded, 1, tiny.anatomy.mlp_out, settings)


def test_one_backward_pass_gives_every_rows_own_gradient(tiny: EditableModel) -> None:
    objective, _ = of_model(tiny)
    asked = torch.ones(len(objective.row), dtype=torch.bool)
    change = 0.3 * randn(1, 32).float()
    leads, jacobian = _leads(objective, change.expand(len(objective.edit), -1), asked, last=False)
    for row in range(len(objective.edit)):
        one = torch.zeros(len(objective.edit), dtype=torch.bool)
        one[row] = True
        alone = objective.select_rows(one)
        moved = change.clone().requires_grad_(True)
        every = alone.leads(alone.logits(moved))
        shares = ((every.min() - every.detach()) / 0.5).exp()
        (gradient,) = torch.autograd.grad((every * shares / shares.sum()).sum(), moved)
        torch.testing.assert_close(jacobian[row], gradient[0], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(leads[row], every.detach().min(), rtol=1e-4, atol=1e-4)


def test_its_margin_is_that_of_the_objective(tiny: EditableModel) -> None:
    objective, _ = of_model(tiny, kl_weight=0.1)
    found = solve_leads(objective, LeadConfig(clamp_norm=20.0), "r1")
    assert objective(found.change[None]).margin.item() == pytest.approx(found.margin, abs=1e-3)
    assert found.margin > objective(torch.zeros(1, 32)).margin.item()
