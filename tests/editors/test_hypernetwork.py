"""Running moments against numpy, and what a fresh and a shared net do."""

from __future__ import annotations

import pytest
import torch

from editors.mechanics.gradients import TokenFactors
from editors.nets.hypernetwork import SMALLEST_STD, EditorNets, FactorMoments, fresh_nets, scale_of
from editors.solvers.lifelong import LifelongMoments

SHAPES = {"one": (3, 5), "two": (3, 5), "other": (4, 2)}


def some_factors(path: str, tokens: int, seed: int = 0) -> TokenFactors:
    generator = torch.Generator().manual_seed(seed)
    d_out, d_in = SHAPES[path]
    inputs = torch.randn(tokens, d_in, generator=generator) * 3 + 1
    return TokenFactors(inputs, torch.randn(tokens, d_out, generator=generator) * 0.1, torch.arange(tokens))


def nets() -> EditorNets:
    moments = FactorMoments(SHAPES)
    moments.update({path: some_factors(path, 40, seed=9) for path in SHAPES})
    return EditorNets(fresh_nets(SHAPES, 2, seed=0), moments.fixed(), SHAPES)


def test_a_single_token_has_a_scale_of_one() -> None:
    moments = LifelongMoments.empty(4).merged(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert moments.variance.tolist() == [0.0] * 4
    assert scale_of(moments).tolist() == [1.0] * 4


def test_a_silent_dimension_keeps_a_scale_off_zero() -> None:
    moments = LifelongMoments.empty(2).merged(torch.tensor([[0.0, 2.0], [0.0, -2.0]]))
    assert scale_of(moments).tolist() == pytest.approx([SMALLEST_STD * 2**0.5, 2.0])


def test_the_energy_is_the_mean_squared_norm_of_the_inputs() -> None:
    moments, factors = FactorMoments(SHAPES), some_factors("one", 11)
    moments.update({"one": factors})
    torch.testing.assert_close(moments.energy("one"), factors.inputs.square().sum(1).mean())


def test_a_fresh_net_gives_the_normalised_factors_back() -> None:
    fresh, factors = nets(), some_factors("one", 7)
    inputs, gradients = fresh("one", factors)
    torch.testing.assert_close(torch.cat([inputs, gradients], dim=1), fresh.normalised("one", factors))


def test_normalised_training_factors_have_mean_zero_and_deviation_one() -> None:
    z = nets().normalised("other", some_factors("other", 40, seed=9))
    torch.testing.assert_close(z.mean(0), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(6))


def test_every_layer_of_a_fresh_net_has_a_gradient() -> None:
    fresh = nets()
    for tensor in fresh.learnt.values():
        tensor.requires_grad_(True)
    inputs, gradients = fresh("one", some_factors("one", 7))
    (inputs.square().sum() + gradients.square().sum()).backward()
    for i in range(2):
        for name in (f"3x5|{i}|up", f"one|{i}|shift"):
            found = fresh.learnt[name].grad
            assert found is not None and bool((found != 0).all()), name


def test_projections_of_one_shape_share_a_net_and_have_their_own_modulation() -> None:
    fresh, factors = nets(), some_factors("one", 7)
    for path in SHAPES:
        fresh.fixed[f"{path}|mean"].zero_()
        fresh.fixed[f"{path}|std"].fill_(1.0)
    fresh.learnt["3x5|1|up"].fill_(0.5)
    assert torch.equal(fresh("one", factors)[0], fresh("two", factors)[0])
    fresh.learnt["two|1|shift"].fill_(2.0)
    torch.testing.assert_close(fresh("two", factors)[0], fresh("one", factors)[0] + 2.0)
