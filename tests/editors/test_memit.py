"""MEMIT on tiny models: its equations layer by layer, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from editors.base import Prepared
from editors.direct.memit import Memit, MemitConfig
from editors.errors import EditRefused
from editors.mechanics.contexts import BARE
from editors.mechanics.paraphrases import other_forms
from editors.mechanics.second_moment import read_preparation
from editors.model import EditableModel
from editors.presets import load_editor, sections
from editors.session import batch_of
from editors.targets.keys_values import lookup_states
from editors.targets.values import optimise_values
from tests.support import ONE_KEY_REQUESTS, SIX_REQUESTS, prepared_once, request


def editor_for(model: EditableModel, overrides: Mapping[str, Any] | None = None) -> tuple[Memit, Prepared]:
    editor = load_editor("memit", model, {"value_steps": 8, **(overrides or {})})
    assert isinstance(editor, Memit)
    return editor, prepared_once(editor, model)


def test_the_relative_ridge_weighs_each_layer_by_its_key_energy(tiny: EditableModel) -> None:
    # The published ridge is held against the golden (`test_goldens.py`).
    editor, prepared = editor_for(tiny, {"ridge": "relative", "layers": [0, 1, 2]})
    patch = editor.edit(tiny, batch_of(ONE_KEY_REQUESTS), prepared)
    known = read_preparation(prepared, (0, 1, 2), tiny.device)
    solved = optimise_values(tiny, ONE_KEY_REQUESTS, known.contexts, 2, "block", editor.config)
    path, block = tiny.anatomy.mlp_out, tiny.anatomy.block
    with tiny.scratch():
        for layer, share in ((0, 3), (1, 2), (2, 1)):
            states = lookup_states(tiny, ONE_KEY_REQUESTS, known.contexts, path, layer)
            k = torch.stack([0.5 * s[0] + 0.5 * s[1:].mean(0) for s in states.inputs]).double().t()
            now = lookup_states(tiny, ONE_KEY_REQUESTS, BARE, block, 2).outputs[:, 0]
            residuals = ((solved.targets - now) / share).double().t()
            second = known.factors[layer] @ known.factors[layer].t()
            weight = editor.config.second_moment_weight * k.square().sum(0).mean().item() / known.energies[layer]
            inverse = torch.linalg.inv(weight * second + k @ k.t())
            name = path.format(layer=layer) + ".weight"
            update = patch.dense(name)
            torch.testing.assert_close(update.double(), residuals @ k.t() @ inverse, rtol=1e-2, atol=1e-4)
            tiny.add_to_weight(name, update)


def test_with_a_small_weight_on_the_second_moment_the_targets_are_reached(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"second_moment_weight": 1e-6, "contexts": [], "max_relative_norm": 1000})
    known = read_preparation(prepared, editor.config.layers, tiny.device)
    solved = optimise_values(tiny, SIX_REQUESTS, known.contexts, 2, "block", editor.config)
    tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS), prepared))
    now = lookup_states(tiny, SIX_REQUESTS, BARE, tiny.anatomy.block, 2).outputs[:, 0]
    torch.testing.assert_close(now, solved.targets, rtol=5e-2, atol=5e-2)


def test_the_relative_ridge_does_not_see_the_scale_of_keys_against_the_corpus(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"ridge": "relative"})
    scaled = Prepared(
        {n: 3.0 * t for n, t in prepared.tensors.items()},
        {**prepared.meta, "energies": {n: 9.0 * e for n, e in prepared.meta["energies"].items()}},
    )
    name = tiny.anatomy.mlp_out.format(layer=2) + ".weight"
    a, b = (editor.edit(tiny, batch_of(SIX_REQUESTS), p).dense(name) for p in (prepared, scaled))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_refused_batch_leaves_the_model_as_it_was(tiny: EditableModel) -> None:
    _, prepared = editor_for(tiny)
    strict, _ = editor_for(tiny, {"max_relative_norm": 1e-6})
    before = tiny.state_digest()
    with pytest.raises(EditRefused, match="and 1 more"):
        strict.edit(tiny, batch_of(SIX_REQUESTS), prepared)
    assert tiny.state_digest() == before


def test_protected_keys_keep_earlier_values_better(tiny: EditableModel) -> None:
    drift = {}
    for accumulate in (False, True):
        editor, prepared = editor_for(tiny, {"accumulate_keys": accumulate, "second_moment_weight": 1e-3})
        known = read_preparation(prepared, editor.config.layers, tiny.device)
        early, late = SIX_REQUESTS[:3], SIX_REQUESTS[3:]
        tiny.push(editor.edit(tiny, batch_of(early), prepared))
        path, weights = tiny.anatomy.mlp_out, known.contexts.weights("grouped")
        keys, _ = lookup_states(tiny, early, known.contexts, path, 0).averaged(weights)
        patch = editor.edit(tiny, batch_of(late), prepared)
        drift[accumulate] = (patch.dense(path.format(layer=0) + ".weight") @ keys.t()).norm().item()
        tiny.rollback(0)
    assert drift[True] < 0.7 * drift[False]


def test_keys_are_protected_in_every_form_of_an_earlier_edit(tiny: EditableModel) -> None:
    early = [r.model_copy(update={"also": (f"Question: where was {r.subject} born? Answer:",)}) for r in SIX_REQUESTS[:3]]
    editor, prepared = editor_for(tiny, {"accumulate_keys": True, "second_moment_weight": 1e-3})
    known = read_preparation(prepared, editor.config.layers, tiny.device)
    path, weights = tiny.anatomy.mlp_out, known.contexts.weights("grouped")
    others = [form for r in early for form in other_forms(r)]
    keys, _ = lookup_states(tiny, others, known.contexts, path, 0).averaged(weights)
    drift = []
    for forms in (slice(None), slice(2)):
        earlier = editor.edit(tiny, batch_of(early), prepared)
        earlier.meta["note"]["sites"] = [site[forms] for site in earlier.meta["note"]["sites"]]
        tiny.push(earlier)
        patch = editor.edit(tiny, batch_of(SIX_REQUESTS[3:]), prepared)
        drift.append((patch.dense(path.format(layer=0) + ".weight") @ keys.t()).norm().item())
        tiny.rollback(0)
    assert drift[0] < 0.8 * drift[1]


def test_an_edit_of_the_same_subject_is_not_held_back_by_its_earlier_key(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"accumulate_keys": True})
    free, _ = editor_for(tiny)
    tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared))
    again = request(8, "Ada Lovelace", "London")
    with_keys, without = (e.edit(tiny, batch_of([again]), prepared) for e in (editor, free))
    assert with_keys.digest == without.digest


def test_rollback_takes_the_protected_keys_along(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"accumulate_keys": True})
    fresh = editor.edit(tiny, batch_of(SIX_REQUESTS[3:]), prepared)
    tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS[:3]), prepared))
    tiny.rollback(0)
    assert editor.edit(tiny, batch_of(SIX_REQUESTS[3:]), prepared).digest == fresh.digest


def test_layers_must_ascend_and_every_preset_section_is_valid() -> None:
    with pytest.raises(ValueError, match="ascending"):
        MemitConfig(layers=(2, 1))
    known = sections("memit")
    for key, values in known.items():
        if key != "default":
            assert MemitConfig(**{**known["default"], **values}).layers
