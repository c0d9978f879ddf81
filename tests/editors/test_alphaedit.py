"""AlphaEdit on tiny models: the published formula, the null space, and keys that travel with the patches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.base import Prepared
from editors.direct.alphaedit import AlphaEdit, AlphaEditConfig, earlier_keys
from editors.errors import EditRefused
from editors.model import EditableModel
from editors.patches.files import load_patch, save_patch
from editors.presets import load_editor
from editors.session import batch_of
from editors.solvers.null_space import null_dimension, null_space_update, read_null_spaces
from editors.targets.keys_values import lookup_states
from tests.support import ONE_KEY_REQUESTS, SIX_REQUESTS, prepared_once, request

DRAW = {"dtype": torch.float64}


def editor_for(model: EditableModel, overrides: Mapping[str, Any] | None = None) -> tuple[AlphaEdit, Prepared]:
    editor = load_editor("alphaedit", model, {"value_steps": 8, **(overrides or {})})
    assert isinstance(editor, AlphaEdit)
    return editor, prepared_once(editor, model)


@pytest.mark.parametrize("others", [0, 2, 30], ids=["first batch", "few keys", "more keys than directions"])
def test_the_small_form_equals_the_published_one(others: int) -> None:
    torch.manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(20, 12, **DRAW))
    residuals, keys, earlier = torch.randn(6, 3, **DRAW), torch.randn(20, 3, **DRAW), torch.randn(20, others, **DRAW)
    projector, gram = basis @ basis.t(), earlier @ earlier.t() + keys @ keys.t()
    slow = residuals @ keys.t() @ projector @ torch.linalg.inv(gram @ projector + 0.7 * torch.eye(20, **DRAW))
    ours = null_space_update(residuals, keys, basis, 0.7, earlier)
    torch.testing.assert_close(ours.dense().double(), slow, rtol=1e-4, atol=1e-6)


def test_the_update_leaves_every_key_outside_the_null_space_alone() -> None:
    torch.manual_seed(1)
    full, _ = torch.linalg.qr(torch.randn(20, 20, **DRAW))
    update = null_space_update(torch.randn(6, 3, **DRAW), torch.randn(20, 3, **DRAW), full[:, :12], 0.1).dense().double()
    assert (update @ full[:, 12:]).abs().max() < 1e-6
    assert (update @ full[:, :12]).abs().max() > 1e-2


def test_the_null_space_by_share_does_not_see_the_scale_and_the_threshold_is_absolute() -> None:
    eigenvalues = torch.tensor([0.0, 0.01, 0.04, 0.15, 0.8], **DRAW)
    assert null_dimension(eigenvalues, 0.06, None) == 3
    assert null_dimension(1000 * eigenvalues, 0.06, None) == 3
    assert null_dimension(eigenvalues, 0.06, 0.02) == 2
    assert null_dimension(1000 * eigenvalues, 0.06, 0.02) == 1


def test_generic_keys_lose_no_more_than_the_share_to_the_null_space(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"null_share": 0.1})
    known = read_null_spaces(prepared, editor.config.layers, tiny.device, 0.1, None)
    for layer, basis in known.bases.items():
        vectors = prepared.tensors[f"eigenvectors.{layer}"].double()
        second = (vectors * prepared.tensors[f"eigenvalues.{layer}"]) @ vectors.t()
        assert torch.trace(basis.t() @ second @ basis) <= 0.1 * known.energies[layer] + 1e-6
        torch.testing.assert_close(basis.t() @ basis, torch.eye(basis.shape[1], **DRAW), rtol=0, atol=1e-5)


def test_written_updates_lie_in_the_null_space_of_their_layer(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    known = read_null_spaces(prepared, editor.config.layers, tiny.device, editor.config.null_share, None)
    patch = editor.edit(tiny, batch_of(SIX_REQUESTS), prepared)
    for layer, basis in known.bases.items():
        update = patch.dense(tiny.anatomy.mlp_out.format(layer=layer) + ".weight").double()
        torch.testing.assert_close(update @ basis @ basis.t(), update, rtol=0, atol=1e-4 * update.abs().max().item())


def test_a_layer_without_null_space_is_refused(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"null_threshold": 1e-30})
    with pytest.raises(EditRefused, match="no null space"):
        editor.edit(tiny, batch_of(SIX_REQUESTS), prepared)


def test_patches_carry_the_keys_of_their_batch_and_the_keys_add_nothing(tiny: EditableModel, tmp_path: Path) -> None:
    editor, prepared = editor_for(tiny)
    known = read_null_spaces(prepared, editor.config.layers, tiny.device, editor.config.null_share, None)
    name = tiny.anatomy.mlp_out.format(layer=0) + ".weight"
    keys, _ = lookup_states(tiny, ONE_KEY_REQUESTS, known.contexts, tiny.anatomy.mlp_out, 0).averaged(
        known.contexts.weights(editor.config.key_average)
    )
    patch = editor.edit(tiny, batch_of(ONE_KEY_REQUESTS), prepared)
    assert not patch.updates[name].left[:, -5:].any()
    save_patch(patch, tmp_path / "patch")
    tiny.push(load_patch(tmp_path / "patch"))
    torch.testing.assert_close(earlier_keys(tiny, name, frozenset()), keys.t(), rtol=0, atol=0)
    assert earlier_keys(tiny, name, frozenset({"France"})).shape[1] == 4
    tiny.rollback(0)
    assert earlier_keys(tiny, name, frozenset()) is None
    # "Łódź" is one token that begins its prompt: two keys, both left out with their subject.
    tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS), prepared))
    assert earlier_keys(tiny, name, frozenset()).shape[1] == 7
    assert earlier_keys(tiny, name, frozenset({"Łódź"})).shape[1] == 5


def test_protected_keys_keep_earlier_values_better(tiny: EditableModel) -> None:
    drift = {}
    name = tiny.anatomy.mlp_out.format(layer=0) + ".weight"
    for protect in (False, True):
        editor, prepared = editor_for(tiny, {"protect_earlier": protect, "l2": 1e-3, "layers": [0]})
        tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS[:3]), prepared))
        keys = earlier_keys(tiny, name, frozenset())
        drift[protect] = (editor.edit(tiny, batch_of(SIX_REQUESTS[3:]), prepared).dense(name) @ keys).norm().item()
        tiny.rollback(0)
    assert drift[True] < 0.7 * drift[False]


def test_a_later_edit_of_the_same_subject_is_not_held_back(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    free, _ = editor_for(tiny, {"protect_earlier": False})
    tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared))
    again = request(8, "Ada Lovelace", "London")
    with_keys, without = (e.edit(tiny, batch_of([again]), prepared) for e in (editor, free))
    assert with_keys.digest == without.digest


def test_an_edit_after_a_rollback_is_as_if_the_other_had_never_been(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    fresh = editor.edit(tiny, batch_of(SIX_REQUESTS[3:]), prepared)
    tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS[:3]), prepared))
    after = editor.edit(tiny, batch_of(SIX_REQUESTS[3:]), prepared)
    tiny.rollback(0)
    assert editor.edit(tiny, batch_of(SIX_REQUESTS[3:]), prepared).digest == fresh.digest != after.digest


def test_a_refused_batch_leaves_the_model_as_it_was(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"max_relative_norm": 1e-6})
    before = tiny.state_digest()
    with pytest.raises(EditRefused, match="and 1 more"):
        editor.edit(tiny, batch_of(SIX_REQUESTS), prepared)
    assert tiny.state_digest() == before


def test_layers_must_ascend() -> None:
    with pytest.raises(ValueError, match="ascending"):
        AlphaEditConfig(layers=(2, 1))
