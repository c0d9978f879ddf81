"""R-ROME on tiny models: what its update does to the key, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from editors.base import Prepared
from editors.direct.r_rome import RRome
from editors.errors import EditRefused, InvalidRequest, UnsupportedMode
from editors.mechanics.second_moment import read_preparation
from editors.model import EditableModel
from editors.patches.files import load_patch, save_patch
from editors.presets import load_editor, sections
from editors.session import batch_of
from editors.targets.keys_values import lookup_states
from editors.targets.values import optimise_values
from tests.stand_ins import Ask
from tests.support import ONE_KEY_REQUESTS, SIX_REQUESTS, prepared_once, request


def editor_for(model: EditableModel, overrides: Mapping[str, Any] | None = None) -> tuple[RRome, Prepared]:
    editor = load_editor("r_rome", model, overrides)
    assert isinstance(editor, RRome)
    return editor, prepared_once(editor, model)


def test_after_the_edit_the_averaged_key_gives_the_solved_value(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    known = read_preparation(prepared, (1,), tiny.device)
    for r in ONE_KEY_REQUESTS:
        solved = optimise_values(tiny, [r], known.contexts, 1, "mlp", editor.config)
        tiny.push(editor.edit(tiny, batch_of([r]), prepared))
        states = lookup_states(tiny, [r], known.contexts, tiny.anatomy.mlp_out, 1)
        _, value = states.averaged(known.contexts.weights("flat"))
        # Layer 1 does not change its own input, so the key is the same as before.
        torch.testing.assert_close(value, solved.targets, rtol=1e-3, atol=1e-3)
        tiny.rollback(0)


def test_edits_raise_the_log_probability_of_their_targets(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"contexts": [], "include_stop": False, "value_steps": 30})

    gains = []
    for r, patch in zip(SIX_REQUESTS, editor.edit_each(tiny, SIX_REQUESTS, prepared), strict=True):
        before = tiny.score([Ask(r.prompt, r.target_new)])[0].log_prob
        tiny.push(patch)
        gains.append(tiny.score([Ask(r.prompt, r.target_new)])[0].log_prob - before)
        tiny.rollback(0)
    # Two of six may lose: in a random model the update also moves the prompt's other tokens.
    assert sum(g > 0 for g in gains) >= 4
    assert sum(gains) / 6 > 0.5


def test_an_edit_repeats_bit_for_bit_and_survives_the_disk(tiny: EditableModel, tmp_path) -> None:
    editor, prepared = editor_for(tiny)
    first, second = (editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared) for _ in range(2))
    assert first.digest == second.digest
    save_patch(first, tmp_path / "patch")
    assert load_patch(tmp_path / "patch").digest == first.digest


def test_a_large_update_is_refused_by_request_and_the_model_is_unchanged(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"max_relative_norm": 1e-6})
    before = tiny.state_digest()
    with pytest.raises(EditRefused, match="r1"):
        editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
    assert tiny.state_digest() == before


def test_anchored_values_have_the_base_models_norm(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"anchor_norm": True})
    known = read_preparation(prepared, (1,), tiny.device)
    tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared))
    states = lookup_states(tiny, SIX_REQUESTS[:1], known.contexts, tiny.anatomy.mlp_out, 1)
    _, value = states.averaged(known.contexts.weights("flat"))
    assert value.norm().item() == pytest.approx(known.mlp_norms[1], rel=1e-3)


def test_more_than_one_request_or_a_missing_subject_is_an_error(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    with pytest.raises(UnsupportedMode, match="sequential"):
        editor.edit(tiny, batch_of(SIX_REQUESTS), prepared)
    with pytest.raises(InvalidRequest, match="must name its subject"):
        editor.edit(tiny, batch_of([request(7, "Spain", "Paris", prompt="The capital is")]), prepared)


def test_every_preset_section_is_a_valid_configuration() -> None:
    known = sections("r_rome")
    for key, values in known.items():
        if key != "default":
            assert RRome.config_class(**{**known["default"], **values}).layer >= 0
