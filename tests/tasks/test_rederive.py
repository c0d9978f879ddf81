"""Weights of an earlier release are held to a tolerance that rounding explains and tampering does not."""

from __future__ import annotations

import pytest
import torch

from tasks.recheck.weights import nearly_equal
from tests.awkward import fixed


def test_the_last_bits_of_another_machine_are_near() -> None:
    left, right = fixed(40, 30), fixed(50, 30, seed=1)
    assert nearly_equal((left.double() @ right.double().t()).float(), left @ right.t())


@pytest.mark.parametrize("share", [1e-3, -1e-3, 1.0])
def test_one_changed_weight_is_not_near(share: float) -> None:
    ours = fixed(20, 10)
    stored = ours.clone()
    stored[3, 4] += share * float(ours[3].abs().max())
    assert not nearly_equal(stored, ours)


def test_a_changed_weight_beside_a_large_key_is_not_near() -> None:
    """A slot's keys are of size 1e5 in rows whose other entries are of size 1."""
    ours = torch.cat([fixed(20, 10), 3e5 * fixed(20, 2, seed=1)], dim=1)
    stored = ours.clone()
    stored[3, 4] += 0.01
    assert not nearly_equal(stored, ours)
    assert nearly_equal(ours * (1 + 2e-6), ours)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_near(value: float) -> None:
    stored = fixed(4)
    stored[1] = value
    assert not nearly_equal(stored, fixed(4)) and not nearly_equal(stored, stored)


def test_other_shapes_and_dtypes_are_never_near() -> None:
    assert not nearly_equal(fixed(4), fixed(5)) and not nearly_equal(fixed(4).double(), fixed(4))
    assert nearly_equal(torch.tensor(2.0), torch.tensor(2.0)) and not nearly_equal(torch.tensor(2), torch.tensor(3))
