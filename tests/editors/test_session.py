"""The four modes: who is edited with whom, what stays, and what is refused."""

from __future__ import annotations

from typing import Any, ClassVar, final

import pytest
import torch

from editors.base import NOTHING, Editor, EditorCard, EditorConfig, Mode, Prepared
from editors.errors import UnsupportedMode
from editors.model import EditableModel
from editors.patches.weight import Dense, WeightPatch
from editors.session import batch_of, run_edits, slices
from tests.support import SIX_REQUESTS, tiny_model
from warehouse.records import EditBatch

NORM = "transformer.ln_f.weight"


@final
class AddOne(Editor[EditorConfig]):
    """Adds the number of requests to one vector, so that every patch can be counted."""

    card: ClassVar[EditorCard] = EditorCard(
        name="add-one", title="", family="direct", patch_kind="weight", paper="none", max_batch=4
    )

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        return WeightPatch({NORM: Dense(torch.full((32,), float(len(batch.requests))))})


@final
class OnlySequential(Editor[EditorConfig]):
    card: ClassVar[EditorCard] = EditorCard(
        name="only",
        title="",
        family="direct",
        patch_kind="weight",
        paper="none",
        modes=("sequential",),
        why_not="no room",
    )

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        raise AssertionError("must not be reached")


def run(model: EditableModel, mode: Mode, batch_size: int | None = None, count: int = 6) -> list[tuple[Any, float]]:
    """(ids of each batch, how much of the vector was added while the step was in hand)."""
    seen = []
    for step in run_edits(AddOne(EditorConfig()), model, SIX_REQUESTS[:count], NOTHING, mode=mode, batch_size=batch_size):
        seen.append(([r.request_id for r in step.batch.requests], float(model.parameter(NORM)[0]) - 1.0))
    return seen


def test_single_edits_each_on_a_fresh_base() -> None:
    model = tiny_model()
    assert [added for _, added in run(model, "single")] == [1.0] * 6
    assert not model.patches


def test_sequential_keeps_every_edit() -> None:
    model = tiny_model()
    assert [added for _, added in run(model, "sequential")] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert len(model.patches) == 6


def test_batches_are_taken_off_again_in_batch_mode() -> None:
    model = tiny_model()
    assert [added for _, added in run(model, "batch", 4)] == [4.0, 2.0]
    assert not model.patches


def test_batches_stay_in_sequential_batch_mode() -> None:
    model = tiny_model()
    assert run(model, "sequential-batch", 4) == [(["r1", "r2", "r3", "r4"], 4.0), (["r5", "r6"], 6.0)]
    assert len(model.patches) == 2


def test_without_a_size_all_requests_are_one_batch() -> None:
    assert run(tiny_model(), "batch", count=3) == [(["r1", "r2", "r3"], 3.0)]


def test_earlier_patches_stay_where_a_mode_takes_its_own_off() -> None:
    model = tiny_model()
    model.push(WeightPatch({NORM: Dense(torch.full((32,), 10.0))}))
    before = model.state_digest()
    assert [added for _, added in run(model, "single", count=2)] == [11.0, 11.0]
    assert model.state_digest() == before


def test_a_caller_that_stops_half_way_leaves_nothing_behind() -> None:
    model = tiny_model()
    before = model.state_digest()
    steps = run_edits(AddOne(EditorConfig()), model, SIX_REQUESTS, NOTHING, mode="single")
    next(steps)
    steps.close()
    assert model.state_digest() == before
    assert not model.patches


def test_a_batch_beyond_the_card_is_refused_and_changes_nothing() -> None:
    model = tiny_model()
    with pytest.raises(UnsupportedMode, match="at most 4 at once, not 6"):
        run(model, "batch")
    assert not model.patches


def test_a_size_beyond_the_card_is_fine_where_there_are_fewer_requests() -> None:
    assert len(run(tiny_model(), "batch", 100, count=3)) == 1


def test_a_mode_that_the_card_does_not_grant_is_refused_with_its_reason() -> None:
    with pytest.raises(UnsupportedMode, match="no room"):
        list(run_edits(OnlySequential(EditorConfig()), tiny_model(), SIX_REQUESTS, NOTHING, mode="batch"))


def test_no_requests_are_no_steps() -> None:
    assert run(tiny_model(), "sequential", count=0) == []


def test_a_batch_is_named_by_its_requests_in_order() -> None:
    assert batch_of(SIX_REQUESTS).batch_id == batch_of(list(SIX_REQUESTS)).batch_id
    assert batch_of(SIX_REQUESTS).batch_id != batch_of(SIX_REQUESTS[::-1]).batch_id


@pytest.mark.parametrize(("size", "lengths"), [(4, [4, 2]), (6, [6]), (1, [1] * 6), (10, [6])])
def test_slices_lose_nothing(size: int, lengths: list[int]) -> None:
    parts = slices(SIX_REQUESTS, size)
    assert [len(p) for p in parts] == lengths
    assert [r for p in parts for r in p] == list(SIX_REQUESTS)
