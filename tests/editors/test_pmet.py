"""PMET on tiny models: the two changes and their pass through the block, the part that is written, the spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from editors.base import Prepared
from editors.direct.pmet import Pmet, PmetConfig
from editors.errors import EditRefused
from editors.mechanics.contexts import BARE
from editors.mechanics.second_moment import read_preparation
from editors.model import EditableModel
from editors.presets import load_editor
from editors.session import batch_of
from editors.targets.keys_values import lookup_states
from editors.targets.objective import encode_edits
from editors.targets.two_latents import optimise_two_latents, two_latent_objective
from tests.support import ONE_KEY_REQUESTS, SIX_REQUESTS, prepared_once


def editor_for(model: EditableModel, overrides: Mapping[str, Any] | None = None) -> tuple[Pmet, Prepared]:
    editor = load_editor("pmet", model, {"value_steps": 8, **(overrides or {})})
    assert isinstance(editor, Pmet)
    return editor, prepared_once(editor, model)


@pytest.mark.parametrize("kept", [[0, 1, 2], [2]], ids=["all rows", "after a row has left"])
def test_both_changes_act_as_hooks_on_the_two_modules_do(tiny: EditableModel, kept: list[int]) -> None:
    config = PmetConfig(layers=(1,), kl_weight=0.0)
    encoded = encode_edits(tiny, SIX_REQUESTS[:3], BARE, config)
    objective, base = two_latent_objective(tiny, encoded, 1, config)
    torch.manual_seed(0)
    changes = torch.randn_like(base)
    with torch.no_grad():
        fast = objective.suffix.select(torch.tensor(kept)).run(changes[kept])
    width = changes.shape[1] // 2
    for number, i in enumerate(kept):
        row = encoded[i].rows[0]

        def add(change: torch.Tensor, at: int) -> Any:
            def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
                output = output.clone()
                output[0, at] += change
                return output

            return hook

        seen: list[torch.Tensor] = []
        undos = [
            tiny.hook(tiny.anatomy.attention_out.format(layer=1), add(changes[i, :width], row.lookup)),
            tiny.hook(tiny.anatomy.mlp_out.format(layer=1), add(changes[i, width:], row.lookup)),
            tiny.hook(tiny.anatomy.block.format(layer=3), lambda _m, _i, out, seen=seen: seen.append(out)),
        ]
        with torch.no_grad():
            tiny.hf(torch.tensor([row.ids]))
        for undo in undos:
            undo()
        out = (seen[0][0] if isinstance(seen[0], tuple) else seen[0])[0, row.lookup :]
        torch.testing.assert_close(fast[number, : len(out)], out, rtol=1e-4, atol=1e-4)


def test_base_values_are_those_of_the_two_modules_at_the_bare_prompt(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    known = read_preparation(prepared, editor.config.layers, tiny.device)
    solution = optimise_two_latents(tiny, SIX_REQUESTS, known.contexts, 2, editor.config)
    attention, mlp = (
        lookup_states(tiny, SIX_REQUESTS, BARE, path, 2).outputs[:, 0]
        for path in (tiny.anatomy.attention_out, tiny.anatomy.mlp_out)
    )
    torch.testing.assert_close(solution.base_values, torch.cat([attention, mlp], dim=1), rtol=1e-4, atol=1e-4)
    halves = solution.deltas.chunk(2, dim=1)
    assert all(half.norm(dim=1).min() > 0 for half in halves)


def test_only_the_feed_forward_part_is_written_with_a_square_root_spread(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"layers": [0, 1, 2]})
    patch = editor.edit(tiny, batch_of(ONE_KEY_REQUESTS), prepared)
    known = read_preparation(prepared, (0, 1, 2), tiny.device)
    targets = optimise_two_latents(tiny, ONE_KEY_REQUESTS, known.contexts, 2, editor.config).targets.chunk(2, dim=1)[1]
    path, weights = tiny.anatomy.mlp_out, known.contexts.weights(editor.config.key_average)
    with tiny.scratch():
        for layer, remaining in ((0, 3), (1, 2), (2, 1)):
            k = lookup_states(tiny, ONE_KEY_REQUESTS, known.contexts, path, layer).averaged(weights)[0].double().t()
            now = lookup_states(tiny, ONE_KEY_REQUESTS, BARE, path, 2).outputs[:, 0]
            residuals = ((targets - now) / remaining**0.5).double().t()
            second = known.factors[layer] @ known.factors[layer].t()
            inverse = torch.linalg.inv(editor.config.second_moment_weight * second + k @ k.t())
            name = path.format(layer=layer) + ".weight"
            update = patch.dense(name)
            torch.testing.assert_close(update.double(), residuals @ k.t() @ inverse, rtol=1e-2, atol=1e-3)
            tiny.add_to_weight(name, update)


def test_a_refused_batch_leaves_the_model_as_it_was(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"max_relative_norm": 1e-6})
    before = tiny.state_digest()
    with pytest.raises(EditRefused, match="and 1 more"):
        editor.edit(tiny, batch_of(SIX_REQUESTS), prepared)
    assert tiny.state_digest() == before
    assert editor.edit_each(tiny, [], prepared) == []


def test_layers_must_ascend_and_nothing_is_kept() -> None:
    with pytest.raises(ValueError, match="ascending"):
        PmetConfig(layers=(2, 1))
    with pytest.raises(ValueError, match="kept relations"):
        PmetConfig(layers=(1,), kept_weight=1.0)
