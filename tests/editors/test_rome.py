"""ROME on tiny models: the published formula, its flaw, and the guard in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from editors.base import Prepared
from editors.direct import rome as module
from editors.direct.rome import Rome
from editors.errors import EditRefused, UnsupportedMode
from editors.mechanics.second_moment import read_preparation
from editors.model import EditableModel
from editors.presets import load_editor
from editors.session import batch_of
from editors.targets.keys_values import LookupStates, lookup_states
from editors.targets.values import optimise_values
from tests.support import SIX_REQUESTS, prepared_once

STEPS = {"value_steps": 8}


def editor_for(model: EditableModel, overrides: Mapping[str, Any] | None = None) -> tuple[Rome, Prepared]:
    editor = load_editor("rome", model, {**STEPS, **(overrides or {})})
    assert isinstance(editor, Rome)
    return editor, prepared_once(editor, model)


def test_after_a_published_edit_the_bare_prompt_gives_the_solved_value(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    known = read_preparation(prepared, (1,), tiny.device)
    r = SIX_REQUESTS[0]
    solved = optimise_values(tiny, [r], known.contexts, 1, "mlp", editor.config)
    tiny.push(editor.edit(tiny, batch_of([r]), prepared))
    states = lookup_states(tiny, [r], known.contexts, tiny.anatomy.mlp_out, 1)
    torch.testing.assert_close(states.outputs[:, 0], solved.targets, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(states.outputs.mean(1), solved.targets, rtol=1e-2, atol=1e-2)


def test_without_compat_it_is_r_rome(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"compat": False})
    other = load_editor("r_rome", tiny, editor.config.model_dump(exclude={"compat"}))
    name = tiny.anatomy.mlp_out.format(layer=1) + ".weight"
    ours, theirs = (e.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared).dense(name) for e in (editor, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_disabling_edit_is_refused_by_request_and_the_model_is_unchanged(
    tiny: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, prepared = editor_for(tiny)

    def turned(*args: Any) -> LookupStates:
        # The bare prompt's key without its part along C^-1 k: the denominator of the published formula vanishes.
        states = lookup_states(*args)
        known = read_preparation(prepared, (1,), tiny.device)
        u = torch.cholesky_solve(states.inputs[0].mean(0).double()[:, None], known.factors[1])[:, 0].float()
        bare = states.inputs[0, 0] - (states.inputs[0, 0] @ u) / (u @ u) * u
        # The other contexts make up for it, so that the average, hence u, stays.
        rest = states.inputs[0, 1:] + (states.inputs[0, 0] - bare) / (states.inputs.shape[1] - 1)
        return replace(states, inputs=torch.cat([bare[None], rest])[None])

    monkeypatch.setattr(module, "lookup_states", turned)
    before = tiny.state_digest()
    with pytest.raises(EditRefused, match=r"request r1: .*disable the model"):
        editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
    assert tiny.state_digest() == before
    right, _ = editor_for(tiny, {"compat": False})
    assert right.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared).updates


def test_a_large_update_is_refused_by_request(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"max_relative_norm": 1e-6})
    with pytest.raises(EditRefused, match="r1"):
        editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)


def test_anchored_values_have_the_base_models_norm(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"anchor_norm": True})
    known = read_preparation(prepared, (1,), tiny.device)
    tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared))
    value = lookup_states(tiny, SIX_REQUESTS[:1], known.contexts, tiny.anatomy.mlp_out, 1).outputs[0, 0]
    assert value.norm().item() == pytest.approx(known.mlp_norms[1], rel=1e-3)


def test_a_batch_is_refused_with_the_mode_to_use(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    with pytest.raises(UnsupportedMode, match=r"rome edits one request at once.*sequential"):
        editor.edit(tiny, batch_of(SIX_REQUESTS), prepared)
    assert editor.edit_each(tiny, [], prepared) == []
