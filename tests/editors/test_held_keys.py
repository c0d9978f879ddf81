"""Least squares that remembers: every answer equals a solve with the whole system, made anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editors.solvers.held_keys import HeldKeys
from editors.solvers.ridge import ridge_directions
from tests.awkward import awkward

pytestmark = pytest.mark.law

WIDTH = 12


def keys(tokens: int, seed: int) -> Tensor:
    return torch.randn(WIDTH, tokens, generator=torch.Generator().manual_seed(seed))


def held(*blocks: Tensor, ridge: float = 0.3) -> HeldKeys:
    found = HeldKeys(WIDTH, ridge)
    for block in blocks:
        found.hold(block)
    return found


def solved(new: Tensor, kept: Tensor, ridge: float = 0.3) -> Tensor:
    """(P P^T + U U^T + ridge I)^-1 U by one plain solve."""
    u, p = new.double(), kept.double()
    return torch.linalg.solve(p @ p.t() + u @ u.t() + ridge * torch.eye(WIDTH).double(), u)


@pytest.mark.parametrize("blocks", [[4], [4, 3], [1, 1, 1, 1], [5, 9], [20], [5, 9, 30, 2]], ids=str)
@pytest.mark.parametrize("tokens", [1, 5, 15])
def test_directions_equal_a_solve_below_and_beyond_the_width(blocks: list[int], tokens: int) -> None:
    earlier = [keys(number, seed) for seed, number in enumerate(blocks)]
    new = keys(tokens, 99)
    torch.testing.assert_close(held(*earlier).directions(new), solved(new, torch.cat(earlier, dim=1)), rtol=1e-9, atol=1e-11)


def test_directions_with_nothing_held_are_those_of_the_keys_alone() -> None:
    torch.testing.assert_close(held().directions(keys(5, 1)), ridge_directions(keys(5, 1), 0.3), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("number", [3, 30])
def test_keys_that_count_no_more_are_taken_out(number: int) -> None:
    first, released, last, new = keys(4, 1), keys(2, 2), keys(number, 3), keys(3, 4)
    found = held(first, released, last).directions(new, released)
    torch.testing.assert_close(found, solved(new, torch.cat([first, last], dim=1)), rtol=1e-9, atol=1e-11)


def test_a_key_that_comes_again_and_again_is_held_as_often() -> None:
    same, new = keys(1, 1), keys(2, 2)
    found = held(*[same] * 400).directions(new)
    torch.testing.assert_close(found, solved(new, same.repeat(1, 400)), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("number", [5, 30])
def test_asking_for_directions_holds_nothing(number: int) -> None:
    found = held(keys(number, 1))
    first = found.directions(keys(3, 2), keys(number, 1)[:, :1])
    assert torch.equal(first, found.directions(keys(3, 2), keys(number, 1)[:, :1]))


@pytest.mark.parametrize("number", [5, 30])
def test_one_that_is_rebuilt_equals_one_that_was_asked_while_it_grew(number: int) -> None:
    grew = HeldKeys(WIDTH, 0.3)
    for seed in range(number):
        grew.directions(keys(2, 500 + seed))
        grew.hold(keys(2, seed))
    # As a patch that was read from a file would give them.
    rebuilt = held(*(awkward(keys(2, seed)) for seed in range(number)))
    assert torch.equal(grew.directions(keys(3, 999)), rebuilt.directions(keys(3, 999)))


def test_values_at_earlier_keys_stay_where_they_were() -> None:
    new, earlier, changes = keys(3, 1), keys(4, 2), torch.randn(4, 3, generator=torch.Generator().manual_seed(3)).double()
    moved = [
        (changes @ directions.t() @ earlier.double()).norm()
        for directions in (held(earlier, ridge=1e-6).directions(new), held(ridge=1e-6).directions(new))
    ]
    assert moved[0] < 1e-4 * moved[1]
