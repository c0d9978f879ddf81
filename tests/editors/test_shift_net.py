"""KnowledgeEditor's net: the factored shift against the formula written out, its first weights, and what it reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editors.mechanics.gradients import TokenFactors
from editors.nets.shift_net import Condition, ShiftNet, Units, units_of

SHAPES = {"in": (12, 5), "out": (5, 12)}
UNITS = {"in": Units(3.0, 0.5), "out": Units(7.0, 0.2)}
EMBEDDING = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
ASKED = [Condition((3, 4, 5), (6,), (7, 8)), Condition((3, 4), (), (9,)), Condition((3, 4, 5), (10, 11), (7, 8))]


def net(max_scale: float = 0.8, seed: int = 0) -> ShiftNet:
    return ShiftNet(SHAPES, UNITS, 6, lstm=4, code=7, hidden=5, max_scale=max_scale, seed=seed)


def shaken() -> ShiftNet:
    """A net whose gates are far from those of a fresh one."""
    made = net()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.7 * torch.randn_like(parameter))
    return made


def factors(path: str, tokens: int = 3) -> TokenFactors:
    torch.manual_seed(tokens)
    rows, columns = SHAPES[path]
    return TokenFactors(torch.randn(tokens, columns), torch.randn(tokens, rows), torch.zeros(tokens, dtype=torch.long))


@pytest.mark.parametrize("path", SHAPES)
def test_the_factored_shift_is_the_published_formula(path: str) -> None:
    made, found = shaken(), factors(path)
    gates = made(ASKED, EMBEDDING)[1][path]
    (rows, columns), unit = SHAPES[path], UNITS[path]
    code = made._codes(ASKED, EMBEDDING)[1]
    raw = made.gates[list(SHAPES).index(path)](code)
    alpha, gamma, beta, delta, eta = raw.split([rows, columns, rows, columns, 1])
    gradient = torch.zeros(rows, columns)
    for u, d in zip(found.inputs, found.gradients, strict=True):
        gradient += torch.outer(d, u)
    a = torch.outer(alpha.softmax(0), unit.gamma * (gamma - 1))
    b = torch.outer(beta.softmax(0), unit.delta * delta)
    shift = gates.shift(found)
    torch.testing.assert_close(shift.dense(), 0.8 * eta.sigmoid() * (a * gradient + b), rtol=1e-4, atol=1e-6)
    assert shift.left.shape == (rows, 4) and shift.right.shape == (columns, 4)


@pytest.mark.parametrize("path", SHAPES)
def test_a_fresh_net_is_nearly_a_gradient_step_of_the_chosen_size(path: str) -> None:
    found = factors(path)
    gradient = found.gradients.t() @ found.inputs
    weight_norm = 4.0
    unit = units_of(SHAPES[path], weight_norm, float(gradient.norm()), 0.02, 0.8)
    made = ShiftNet({path: SHAPES[path]}, {path: unit}, 6, lstm=4, code=7, hidden=5, max_scale=0.8, seed=0)
    shift = made(ASKED[:1], EMBEDDING)[0][path].shift(found).dense().detach()
    step = -gradient * (0.02 * weight_norm / gradient.norm())
    assert float((shift - step).norm() / step.norm()) < 0.25
    assert float(torch.nn.functional.cosine_similarity(shift.flatten(), step.flatten(), dim=0)) > 0.97


def test_the_scale_of_a_shift_never_exceeds_its_bound() -> None:
    made = shaken()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith("gates.") and name.endswith("2.bias"):
                parameter[-1] = 1e4
    assert [float(g["in"].scale.detach()) for g in made(ASKED, EMBEDDING)] == pytest.approx([0.8] * 3)


def test_the_present_answer_changes_the_shift() -> None:
    first, _, third = shaken()(ASKED, EMBEDDING)
    assert not torch.allclose(first["in"].columns, third["in"].columns, atol=1e-3)


def test_the_parts_of_a_condition_are_told_apart() -> None:
    """The same tokens in the same order, but another one of them is the present answer."""
    one, other = Condition((3, 4), (5,), (6,)), Condition((3,), (4, 5), (6,))
    gates: list[Tensor] = [g["in"].columns for g in shaken()([one, other], EMBEDDING)]
    assert not torch.allclose(gates[0], gates[1], atol=1e-4)


def test_an_edit_reads_the_same_alone_and_among_others() -> None:
    made = shaken()
    for together, condition in zip(made(ASKED, EMBEDDING), ASKED, strict=True):
        alone = made([condition], EMBEDDING)[0]
        torch.testing.assert_close(together["out"].columns, alone["out"].columns)


def test_the_size_of_the_models_embeddings_does_not_matter() -> None:
    made = shaken()
    torch.testing.assert_close(made(ASKED, EMBEDDING)[0]["in"].rows, made(ASKED, 40 * EMBEDDING)[0]["in"].rows)


def test_building_a_net_follows_its_seed_and_moves_no_other_random_stream() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = net(seed=1), net(seed=1), net(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(next(first.lstm.parameters()), next(other.lstm.parameters()))
