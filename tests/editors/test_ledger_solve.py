"""The ledger's closed-form writer: weights as a function of the set, and its growing system."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editors.base import Prepared
from editors.errors import PatchError
from editors.ledger.growing_solve import GrowingSolve
from editors.ledger.ledger_solve import LedgerSolve
from editors.mechanics.contexts import BARE
from editors.mechanics.second_moment import read_preparation
from editors.model import EditableModel
from editors.patches.files import load_patch, save_patch
from editors.patches.total import TotalPatch, active_total
from editors.patches.weight import LowRank, WeightPatch
from editors.presets import load_editor
from editors.session import batch_of
from editors.solvers.solve import ridge_update
from editors.targets.keys_values import lookup_states
from tests.editors.test_ledger import EVERY, KINDS, batchings
from tests.support import CORPUS, request, tiny_model
from warehouse.records import EditRequest

pytestmark = pytest.mark.law

QUICK = settings(max_examples=4, deadline=None)


@cache
def world(kind: str) -> tuple[LedgerSolve, Prepared]:
    model = tiny_model(kind)
    editor = load_editor("ledger_solve", model, {"value_steps": 6, "stop_loss": None})
    assert isinstance(editor, LedgerSolve)
    return editor, editor.prepare(model, CORPUS)


def wearing(kind: str, *batches: Sequence[EditRequest], editor: LedgerSolve | None = None) -> EditableModel:
    model, (known, prepared) = tiny_model(kind), world(kind)
    for batch in batches:
        model.push((editor or known).edit(model, batch_of(batch), prepared))
    return model


def weights(model: EditableModel) -> dict[str, torch.Tensor]:
    return {name: model.parameter(name).clone() for name in model.parameter_names()}


def same(one: EditableModel, other: EditableModel) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_and_any_batching_give_the_same_weights(kind: str) -> None:
    expected = wearing(kind, EVERY)
    assert expected.changed_parameters()

    @QUICK
    @given(batchings())
    def law(batches: list[list[EditRequest]]) -> None:
        assert same(wearing(kind, *batches), expected)

    law()


@pytest.mark.parametrize("kind", KINDS)
def test_retracting_any_edits_gives_the_weights_without_them(kind: str) -> None:
    editor, prepared = world(kind)

    @QUICK
    @given(batchings(), st.sets(st.sampled_from(range(len(EVERY))), min_size=1, max_size=len(EVERY) - 1))
    def law(batches: list[list[EditRequest]], out: set[int]) -> None:
        model = wearing(kind, *batches)
        model.push(editor.retract(model, [EVERY[i].request_id for i in sorted(out)], prepared))
        assert same(model, wearing(kind, [r for i, r in enumerate(EVERY) if i not in out]))

    law()


@pytest.mark.parametrize("kind", KINDS)
def test_superseding_is_as_if_the_old_edit_had_never_been(kind: str) -> None:
    newer = [request(20 + i, r.subject, "Warsaw", prompt=r.prompt.replace(r.subject, "{}"), relation=r.relation)
             for i, r in enumerate(EVERY[:4])]  # fmt: skip
    assert same(wearing(kind, EVERY, newer), wearing(kind, [*newer, *EVERY[4:]]))


def test_retracting_everything_gives_the_base_bit_for_bit() -> None:
    editor, prepared = world("gpt2")
    model = wearing("gpt2", EVERY[:3])
    model.push(editor.retract(model, [r.request_id for r in EVERY[:3]], prepared))
    assert same(model, tiny_model())
    with pytest.raises(ValueError, match="no active edit r1;"):
        editor.retract(model, ["r1"], prepared)


@pytest.mark.parametrize("kind", KINDS)
def test_rollback_and_saved_patches_give_every_earlier_state(kind: str, tmp_path: Path) -> None:
    batches = [EVERY[:3], EVERY[3:7], EVERY[7:]]
    model, loaded = wearing(kind, *batches), tiny_model(kind)
    for number, patch in enumerate(model.patches):
        save_patch(patch, tmp_path / str(number))
        loaded.push(load_patch(tmp_path / str(number)))
    for depth in (3, 2, 1, 0):
        model.rollback(depth)
        loaded.rollback(depth)
        assert same(model, wearing(kind, *batches[:depth])) and same(loaded, model)


def test_the_newest_total_alone_gives_the_same_weights() -> None:
    model, alone = wearing("gpt2", EVERY[:3], EVERY[3:]), tiny_model()
    total = active_total(model)
    assert total is not None
    assert {r.request_id for group in total.active.values() for r in group} == {r.request_id for r in EVERY}
    alone.push(total)
    assert same(alone, model)


def test_a_total_over_another_editors_weights_is_refused_and_changes_nothing() -> None:
    model = tiny_model()
    name = model.anatomy.mlp_out.format(layer=1) + ".weight"
    model.push(WeightPatch({name: LowRank(torch.ones(32, 1), torch.ones(96, 1))}))
    before = model.state_digest()
    with pytest.raises(PatchError, match="would undo the WeightPatch"):
        model.push(wearing("gpt2", EVERY[:1]).patches[0])
    assert model.state_digest() == before


def test_a_total_needs_a_name_for_each_update_and_a_value_for_each_subject() -> None:
    with pytest.raises(ValueError, match="not among the names"):
        TotalPatch([], {"x": LowRank(torch.ones(2, 1), torch.ones(2, 1))}, {}, {})
    with pytest.raises(ValueError, match="its value"):
        TotalPatch([], {}, {"a": ()}, {})


def test_what_a_total_solved_is_not_solved_again_by_an_editor_that_remembers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known, prepared = world("gpt2")
    total, expected = wearing("gpt2", EVERY[:4]).patches[0], wearing("gpt2", EVERY[:2])
    fresh, model = LedgerSolve(known.config), tiny_model()
    fresh.remember(model, total, prepared)
    monkeypatch.setattr("editors.ledger.ledger_solve.solve_subject", lambda *_: pytest.fail("solved again"))
    model.push(fresh.edit(model, batch_of(EVERY[:2]), prepared))
    assert same(model, expected)


def test_the_update_equals_the_equations_written_out() -> None:
    # One key form, one layer: W = W0 + (Z - H) K^T (lambda C + K K^T)^-1 over the whole set.
    model = tiny_model()
    editor = load_editor("ledger_solve", model, {"layers": (1,), "value_steps": 6, "stop_loss": None, "contexts": ()})
    assert isinstance(editor, LedgerSolve)
    prepared = editor.prepare(model, CORPUS)
    total = editor.edit(model, batch_of(EVERY), prepared)
    requests = [r for group in total.active.values() for r in group]
    states = lookup_states(model, requests, BARE, model.anatomy.mlp_out, 1)
    keys = states.inputs[:, 0].t().double()
    factor = read_preparation(prepared, (1,), torch.device("cpu")).factors[1]
    wanted = torch.stack([total.deltas[r.subject] for r in requests]).t().double()
    slow = wanted @ keys.t() @ torch.linalg.inv(editor.config.second_moment_weight * factor @ factor.t() + keys @ keys.t())
    found = total.updates[model.anatomy.mlp_out.format(layer=1) + ".weight"].dense().double()
    assert torch.allclose(found, slow, rtol=1e-3, atol=1e-4 * float(slow.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_incremental_and_full_agree_to_a_ten_thousandth(kind: str) -> None:
    known, _ = world(kind)
    growing = LedgerSolve(known.config.model_copy(update={"resolve": "incremental"}))
    batches = [EVERY[:2], EVERY[2:5], EVERY[5:]]
    one, other = wearing(kind, *batches, editor=growing), wearing(kind, EVERY)
    base = tiny_model(kind)
    for name in other.changed_parameters():
        update, expected = (m.parameter(name) - base.parameter(name) for m in (one, other))
        assert float((update - expected).norm() / expected.norm()) < 1e-4


def system(width: int = 12, keys: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    root = torch.randn(width, 3 * width, generator=random).double()
    factor = torch.linalg.cholesky(root @ root.t() / (3 * width) + 0.1 * torch.eye(width).double())
    return factor, torch.randn(width, keys, generator=random), torch.randn(5, keys, generator=random)


def test_a_bordered_system_equals_one_solve_in_any_order_of_the_names() -> None:
    factor, keys, residuals = system()
    names, growing = [str(i) for i in range(9)], GrowingSolve(factor, 0.3)
    growing.update(residuals[:, :4], keys[:, :4], names[:4])
    order = [7, 2, 0, 8, 3, 1, 6, 5, 4]
    found = growing.update(residuals[:, order], keys[:, order], [names[i] for i in order])
    assert (growing.added, growing.renewed) == (5, False)
    expected = ridge_update(residuals, keys, factor, 0.3)
    assert torch.allclose(found.dense(), expected.dense(), rtol=1e-4, atol=1e-6)


def test_a_system_that_loses_a_key_begins_anew() -> None:
    factor, keys, residuals = system()
    growing = GrowingSolve(factor, 0.3)
    growing.update(residuals, keys, [str(i) for i in range(9)])
    found = growing.update(residuals[:, 1:], keys[:, 1:], [str(i) for i in range(1, 9)])
    assert growing.renewed
    expected = ridge_update(residuals[:, 1:], keys[:, 1:], factor, 0.3)
    assert torch.allclose(found.dense(), expected.dense(), rtol=1e-4, atol=1e-6)
