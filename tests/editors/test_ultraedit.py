"""UltraEdit on tiny models: running moments, the dual ridge form, and statistics that leave with their patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from editors.base import Corpus, Prepared
from editors.direct.ultraedit import UltraEdit, carried, compact, value_changes
from editors.mechanics.gradients import TokenFactors
from editors.model import EditableModel
from editors.nets.lessons import joined, request_factors
from editors.presets import load_editor
from editors.session import batch_of
from editors.solvers.lifelong import LifelongMoments
from editors.solvers.ridge import ridge_directions
from tests.support import SIX_REQUESTS, TEXTS, prepared_once

DRAW = {"dtype": torch.float64}


def editor_for(model: EditableModel, overrides: Mapping[str, Any] | None = None) -> tuple[UltraEdit, Prepared]:
    editor = load_editor("ultraedit", model, overrides)
    assert isinstance(editor, UltraEdit)
    return editor, prepared_once(editor, model)


def factors(tokens: int) -> TokenFactors:
    torch.manual_seed(tokens)
    return TokenFactors(torch.randn(tokens, 12), torch.randn(tokens, 5), torch.arange(tokens))


def test_moments_merged_batch_by_batch_equal_those_of_all_rows() -> None:
    torch.manual_seed(0)
    rows = 3 + 2 * torch.randn(50, 4, **DRAW)
    moments = LifelongMoments.empty(4)
    for start, stop in ((0, 1), (1, 1), (1, 20), (20, 50)):
        moments = moments.merged(rows[start:stop])
    assert moments.count == 50
    torch.testing.assert_close(moments.mean, rows.mean(0))
    torch.testing.assert_close(moments.variance, ((rows - rows.mean(0)) ** 2).mean(0))


def test_moments_of_features_of_far_scales_equal_numpy() -> None:
    rows = np.random.default_rng(0).normal(5.0, [1e-3, 1.0, 1e3], (37, 3))
    moments = LifelongMoments.empty(3)
    for part in np.split(rows, [1, 1, 8, 30]):
        moments = moments.merged(torch.from_numpy(part))
    np.testing.assert_allclose(moments.mean.numpy(), rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance.sqrt().numpy(), rows.std(0), rtol=1e-10)


def test_moments_of_one_row_are_finite() -> None:
    moments = LifelongMoments.empty(3).merged(torch.tensor([[1.0, 2.0, 3.0]]))
    assert moments.normalised(torch.tensor([[1.0, 2.0, 3.0]])).isfinite().all()


@pytest.mark.parametrize("tokens", [1, 3, 40], ids=["one token", "fewer than the key's width", "more"])
def test_the_update_equals_the_published_formula(tokens: int) -> None:
    found = factors(tokens)
    moments = (
        LifelongMoments.empty(12).merged(torch.randn(9, 12)).merged(found.inputs),
        LifelongMoments.empty(5).merged(torch.randn(9, 5)).merged(found.gradients),
    )
    h = found.inputs.double()
    rows = []
    for j in range(tokens):
        u = (h[j] - moments[0].mean) / moments[0].variance.sqrt()
        g = (found.gradients[j].double() - moments[1].mean) / moments[1].variance.sqrt()
        rows.append(-0.3 * float(u @ u) * g)
    slow = (torch.linalg.inv(h.t() @ h + 0.7 * torch.eye(12, **DRAW)) @ h.t() @ torch.stack(rows)).t()
    ours = compact(value_changes(found, moments, 0.3), ridge_directions(found.inputs.t(), 0.7))
    assert ours.left.shape[1] <= 5
    torch.testing.assert_close(ours.dense().double(), slow, rtol=1e-4, atol=1e-5)


def test_the_compact_form_is_the_same_matrix() -> None:
    left, right = torch.randn(4, 9), torch.randn(7, 9)
    torch.testing.assert_close(compact(left, right).dense(), left @ right.t())


def test_the_next_edit_starts_from_the_statistics_after_the_last_one(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    path = tiny.anatomy.mlp_out.format(layer=1)
    counts = [carried(tiny, path, prepared)[0].count]
    for asked in SIX_REQUESTS[:2]:
        patch = editor.edit(tiny, batch_of([asked]), prepared)
        tiny.push(patch)
        inputs, gradients = carried(tiny, path, prepared)
        counts.append(inputs.count)
        assert inputs.count == gradients.count == patch.meta["note"]["tokens"][f"{path}.weight"]
    assert counts[0] < counts[1] < counts[2]


def test_a_rollback_takes_the_statistics_along(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared))
    second = editor.edit(tiny, batch_of(SIX_REQUESTS[1:2]), prepared)
    for asked in SIX_REQUESTS[2:4]:
        tiny.push(editor.edit(tiny, batch_of([asked]), prepared))
    tiny.rollback(1)
    assert editor.edit(tiny, batch_of(SIX_REQUESTS[1:2]), prepared).digest == second.digest


def test_earlier_edits_change_how_the_next_one_is_normalised(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    path = tiny.anatomy.mlp_out.format(layer=1)
    before = carried(tiny, path, prepared)[0].mean
    tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS), prepared))
    assert not torch.equal(carried(tiny, path, prepared)[0].mean, before)


def test_carried_statistics_add_nothing_to_the_weight(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    patch = editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
    for name in patch.updates:
        left, right = patch.tensors[f"{name}|left"], patch.tensors[f"{name}|right"]
        torch.testing.assert_close(patch.dense(name), left[:, :-4] @ right[:, :-4].t(), rtol=0, atol=1e-6)


def test_the_update_grows_with_the_rate(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    patch = editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
    twice, _ = editor_for(tiny, {"edit_rate": 2.0})
    for name in patch.updates:
        doubled = twice.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared).dense(name)
        torch.testing.assert_close(doubled, 2 * patch.dense(name), rtol=1e-4, atol=1e-6)


def test_a_corpus_without_training_edits_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="training edits"):
        load_editor("ultraedit", tiny).prepare(tiny, Corpus(TEXTS))


def test_preserved_text_enters_the_solution_as_its_second_moment(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"preserved": 5.0, "second_moment_tokens": 200})
    path = tiny.anatomy.mlp_out.format(layer=1)
    factor = prepared.tensors[f"{path}|factor"].double()
    found = joined(request_factors(tiny, SIX_REQUESTS[:1], editor._places(tiny)))[path]
    inputs, gradients = carried(tiny, path, prepared)
    moments = (inputs.merged(found.inputs), gradients.merged(found.gradients))
    eta, _ = editor._scales(found, path, prepared)
    h = found.inputs.double().t()
    slow = value_changes(found, moments, eta) @ h.t() @ torch.linalg.inv(h @ h.t() + 5.0 * factor @ factor.t())
    patch = editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
    torch.testing.assert_close(patch.dense(f"{path}.weight").double(), slow, rtol=1e-3, atol=1e-5)
