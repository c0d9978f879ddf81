"""The ridge solution and its derivatives against direct float64 solves and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editors.solvers.ridge import ridge_directions, ridge_gradient


def matrices(d_in: int, tokens: int, d_out: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(d_in, tokens, generator=generator), torch.randn(d_out, tokens, generator=generator)


def solution(keys: Tensor, changes: Tensor, ridge: Tensor) -> Tensor:
    """S by one plain solve with the matrix of the width of the keys."""
    return torch.linalg.solve(keys @ keys.t() + ridge * torch.eye(len(keys), dtype=keys.dtype), keys @ changes.t()).t()


@pytest.mark.parametrize("tokens", [1, 5, 12, 13, 40], ids="{} tokens at width 12".format)
def test_the_update_equals_a_direct_solve(tokens: int) -> None:
    keys, changes = matrices(12, tokens)
    found = changes.double() @ ridge_directions(keys, 0.3).t()
    wanted = solution(keys.double(), changes.double(), torch.tensor(0.3).double())
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def test_the_dual_form_equals_the_primal() -> None:
    keys, _ = matrices(12, 9)
    dual = ridge_directions(keys, 0.3)
    # Columns of zeros change nothing but the choice of the form.
    padded = ridge_directions(torch.cat([keys, torch.zeros(12, 9)], dim=1), 0.3)
    torch.testing.assert_close(dual, padded[:, :9], rtol=1e-10, atol=1e-12)


def test_nearly_parallel_keys_are_solved_for() -> None:
    keys = torch.ones(12, 6) + 1e-7 * matrices(12, 6)[0]
    found = ridge_directions(keys, 1e-6)
    wanted = torch.linalg.solve(keys.double() @ keys.double().t() + 1e-6 * torch.eye(12).double(), keys.double())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("tokens", [1, 7, 20])
def test_the_derivatives_written_by_hand_equal_autograd(tokens: int) -> None:
    keys, changes = (m.double() for m in matrices(12, tokens))
    towards_update = matrices(12, 4, seed=3)[0].double().t()
    changes.requires_grad_(True)
    ridge = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    by_changes, by_ridge = torch.autograd.grad((solution(keys, changes, ridge) * towards_update).sum(), (changes, ridge))
    # G (U U^T + ridge I)^-1 U, as the decoupled pass accumulates it.
    by_hand = towards_update @ ridge_directions(keys, 0.7)
    torch.testing.assert_close(by_hand, by_changes, rtol=1e-8, atol=1e-10)
    assert ridge_gradient(keys, 0.7, changes.detach(), by_hand) == pytest.approx(float(by_ridge), rel=1e-8)
