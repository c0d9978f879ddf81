"""Closed forms: rank one, ridge, Woodbury, norms; and the keys that they are given."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from editors.errors import EditRefused
from editors.mechanics.contexts import Contexts
from editors.model import EditableModel
from editors.patches.weight import Dense, LowRank
from editors.presets import load_editor
from editors.solvers.solve import (
    check_norm,
    key_directions,
    rank_one,
    ridge_update,
    shared_direction,
    smallest_form,
    update_norm,
)
from editors.targets.keys_values import lookup_states, written_keys
from editors.targets.values import optimise_values
from tests.editors.locating import CONTEXTS, config, positive, randn
from tests.support import CORPUS, ONE_KEY_REQUESTS, request
from warehouse.records import EditBatch

# ------------------------------------------------------------ solvers


def test_rank_one_is_the_constrained_least_squares_solution() -> None:
    second, key, residual = positive(9), randn(9), randn(5, seed=2)
    (directions,) = key_directions(key[None, None], torch.linalg.cholesky(second))
    update = rank_one(residual, key, shared_direction(key[None], directions)).dense().double()
    # Lagrange system row by row: minimise d C d^T subject to d k = r.
    system = torch.zeros(10, 10, dtype=torch.float64)
    system[:9, :9], system[:9, 9], system[9, :9] = 2 * second, key, key
    for row in range(5):
        right = torch.zeros(10, dtype=torch.float64)
        right[9] = residual[row]
        torch.testing.assert_close(update[row], torch.linalg.solve(system, right)[:9], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(update @ key, residual, rtol=1e-4, atol=1e-5)


def test_several_forms_of_a_key_all_get_the_residual_by_the_smallest_update() -> None:
    second, keys, residual = positive(9), randn(3, 9), randn(5, seed=2)
    (directions,) = key_directions(keys[None], torch.linalg.cholesky(second))
    update = rank_one(residual, keys.mean(0), shared_direction(keys, directions)).dense().double()
    # Lagrange system: minimise d C d^T subject to K d = r for each row.
    system = torch.zeros(12, 12, dtype=torch.float64)
    system[:9, :9], system[:9, 9:], system[9:, :9] = 2 * second, keys.t(), keys
    for row in range(5):
        right = torch.cat([torch.zeros(9, dtype=torch.float64), residual[row].repeat(3)])
        # The small ridge among the forms costs a per mille or so.
        torch.testing.assert_close(update[row], torch.linalg.solve(system, right)[:9], rtol=2e-2, atol=2e-2)
    twice = keys[[0, 0]]
    (directions,) = key_directions(twice[None], torch.linalg.cholesky(second))
    update = rank_one(residual, twice[0], shared_direction(twice, directions)).dense().double()
    torch.testing.assert_close(update @ keys[0], residual, rtol=2e-3, atol=2e-3)


def test_three_forms_are_the_bare_prompt_the_contexts_and_the_subject_alone(tiny: EditableModel) -> None:
    written = written_keys(tiny, ONE_KEY_REQUESTS, CONTEXTS, 1, config(key_forms="each"))
    keys = torch.stack([written.of(i) for i in range(len(ONE_KEY_REQUESTS))])
    states = lookup_states(tiny, ONE_KEY_REQUESTS, CONTEXTS, tiny.anatomy.mlp_out, 1)
    torch.testing.assert_close(keys[:, 0], states.inputs[:, 0])
    torch.testing.assert_close(keys[:, 1], states.inputs[:, 1:].mean(1))
    torch.testing.assert_close(written.values, states.outputs.mean(1))
    # "Ada Lovelace was born in" begins with its subject, "The capital of France is" does not.
    torch.testing.assert_close(keys[0, 2], keys[0, 0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(keys[4, 2], keys[4, 0], atol=1e-3)
    single = written_keys(tiny, ONE_KEY_REQUESTS, CONTEXTS, 1, config())
    torch.testing.assert_close(single.keys, states.inputs.mean(1))
    assert single.owner.tolist() == list(range(len(ONE_KEY_REQUESTS)))


def test_a_subject_of_one_token_that_nothing_stands_before_has_two_keys(tiny: EditableModel) -> None:
    first, later = request(1, "The", "Paris"), request(2, "The", "Paris", prompt="Where {} was born:")
    written = written_keys(tiny, [later, first], CONTEXTS, 1, config())
    states = lookup_states(tiny, [later, first], CONTEXTS, tiny.anatomy.mlp_out, 1)
    assert states.alone.tolist() == [False, True]
    assert written.owner.tolist() == [0, 1, 1]
    torch.testing.assert_close(written.of(1), torch.stack([states.inputs[1, 0], states.inputs[1, 1:].mean(0)]))
    torch.testing.assert_close(written.of(0)[0], states.inputs[0].mean(0))
    torch.testing.assert_close(written.values[1], states.outputs[1, 0])


@pytest.mark.parametrize("name", ["r_rome", "memit", "emmet", "alphaedit"])
def test_an_edit_reaches_a_subject_of_one_token_that_begins_its_prompt(name: str, tiny: EditableModel) -> None:
    """The change at the lookup token is the change that the value optimisation found, alone and behind a context."""
    asked = request(1, "The", "Paris", prompt="{} lies in")
    editor = load_editor(name, tiny)
    prepared = editor.prepare(tiny, CORPUS)
    config = cast(Any, editor.config)
    layers = config.layers if hasattr(config, "layers") else (config.layer,)
    layer, path = layers[-1], tiny.anatomy.block if hasattr(config, "layers") else tiny.anatomy.mlp_out
    contexts = Contexts(("{}", "Paris is big. {}", "I saw the river. {}"), (0, 1, 1))
    before = lookup_states(tiny, [asked], contexts, path, layer).outputs[0]
    tiny.push(editor.edit(tiny, EditBatch(batch_id="b", requests=(asked,)), prepared))
    changes = lookup_states(tiny, [asked], contexts, path, layer).outputs[0] - before
    tiny.rollback(0)
    wanted = optimise_values(
        tiny, [asked], Contexts(tuple(prepared.meta["templates"]), tuple(prepared.meta["groups"])), layer,
        "block" if hasattr(config, "layers") else getattr(config, "value_site", "mlp"), config,
    ).deltas[0]  # fmt: skip
    assert float((changes[0] - wanted).norm() / wanted.norm()) < 0.05


def test_rank_one_refuses_a_vanishing_denominator() -> None:
    # C^-1 k is almost all along the second axis, k along the first.
    factor = torch.linalg.cholesky(torch.diag(torch.tensor([1e12, 1.0], dtype=torch.float64)))
    keys = torch.tensor([[[1.0, 1e-8]], [[1.0, 1.0]]])
    bad, good = key_directions(keys, factor)
    with pytest.raises(EditRefused, match="no stable update"):
        rank_one(randn(3), keys[0, 0], shared_direction(keys[0], bad))
    direction = shared_direction(keys[1], good)
    assert rank_one(randn(3), keys[1, 0], direction).left.isfinite().all()
    with pytest.raises(EditRefused, match="no stable update"):
        rank_one(randn(3), keys[1, 0], -direction)


@pytest.mark.parametrize("edits", [1, 3, 4, 7, 20])
@pytest.mark.parametrize("protected", [0, 2])
def test_ridge_update_solves_the_normal_equations(edits: int, protected: int) -> None:
    second, keys, residuals, weight = positive(11), randn(11, edits), randn(4, edits, seed=3), 0.7
    others = randn(11, protected, seed=4) if protected else None
    update = ridge_update(residuals, keys, torch.linalg.cholesky(second), weight, others).dense().double()
    matrix = weight * second + keys @ keys.t() + (others @ others.t() if others is not None else 0)
    torch.testing.assert_close(update @ matrix, residuals @ keys.t(), rtol=1e-3, atol=1e-4)


def test_woodbury_and_the_direct_form_agree_across_their_border() -> None:
    factor = torch.linalg.cholesky(positive(12))
    keys, residuals = randn(12, 6), randn(3, 6, seed=5)
    by_woodbury = ridge_update(residuals, keys, factor, 2.0)
    padded = torch.cat([keys, torch.zeros(12, 1, dtype=torch.float64)], 1)
    direct = ridge_update(torch.cat([residuals, torch.zeros(3, 1, dtype=torch.float64)], 1), padded, factor, 2.0)
    torch.testing.assert_close(by_woodbury.dense(), direct.dense(), rtol=1e-4, atol=1e-6)


def test_a_large_weight_on_the_second_moment_writes_nothing() -> None:
    factor = torch.linalg.cholesky(positive(8))
    assert update_norm(ridge_update(randn(3, 2), randn(8, 2), factor, 1e9)) < 1e-6


def test_norm_of_factors_is_the_frobenius_norm_and_is_guarded() -> None:
    update = LowRank(randn(4, 2).float(), randn(9, 2, seed=7).float())
    norm = update.dense().norm().item()
    assert update_norm(update) == pytest.approx(norm, rel=1e-4)
    weight = torch.full((4, 9), norm / 6)  # Frobenius norm equal to the update's
    check_norm(update, weight, 1.01, ["r1"])
    with pytest.raises(EditRefused, match="r1, r2"):
        check_norm(update, weight, 0.99, ["r1", "r2"])
    with pytest.raises(EditRefused):
        check_norm(LowRank(update.left * float("nan"), update.right), weight, 0.99, ["r1"])


def test_many_edits_are_kept_as_a_matrix_and_few_as_factors() -> None:
    few, many = LowRank(torch.ones(4, 2), torch.ones(9, 2)), LowRank(torch.ones(4, 3), torch.ones(9, 3))
    assert smallest_form(few) is few
    form = smallest_form(many)
    assert isinstance(form, Dense)
    torch.testing.assert_close(form.dense(), many.dense())
