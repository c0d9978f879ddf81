"""EMMET on tiny models: the constrained least squares of a batch, against slow forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from editors.base import Prepared
from editors.direct.emmet import Emmet, equality_update
from editors.errors import EditRefused
from editors.mechanics.second_moment import read_preparation
from editors.model import EditableModel
from editors.presets import load_editor
from editors.session import batch_of
from editors.targets.keys_values import lookup_states
from editors.targets.values import optimise_values
from tests.support import ONE_KEY_REQUESTS, SIX_REQUESTS, prepared_once, request


def editor_for(model: EditableModel, overrides: Mapping[str, Any] | None = None) -> tuple[Emmet, Prepared]:
    editor = load_editor("emmet", model, {"value_steps": 8, **(overrides or {})})
    assert isinstance(editor, Emmet)
    return editor, prepared_once(editor, model)


def system(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Residuals (4, 3), keys (10, 3) and a positive definite second moment (10, 10), fp64."""
    draw = torch.Generator().manual_seed(seed)
    root = torch.randn(10, 10, generator=draw, dtype=torch.float64)
    second = root @ root.t() / 10 + 0.1 * torch.eye(10, dtype=torch.float64)
    make = {"generator": draw, "dtype": torch.float64}
    return torch.randn(4, 3, **make), torch.randn(10, 3, **make), second


def test_the_update_is_the_constrained_least_squares_solution() -> None:
    residuals, keys, second = system()
    # Karush-Kuhn-Tucker system of min tr(D C D^T) subject to D K = R, row by row of D.
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    kkt = torch.cat([torch.cat([second, keys], dim=1), torch.cat([keys.t(), nothing], dim=1)])
    right = torch.cat([torch.zeros(10, 4, dtype=torch.float64), residuals.t()])
    slow = torch.linalg.solve(kkt, right)[:10].t()
    ours = equality_update(residuals, keys, torch.linalg.cholesky(second), 0.0).dense()
    torch.testing.assert_close(ours.double(), slow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((ours.double() @ keys), residuals, rtol=1e-4, atol=1e-5)


def test_alpha_enters_as_published() -> None:
    residuals, keys, second = system(1)
    inverse = torch.linalg.inv(second)
    inner = torch.linalg.inv(keys.t() @ inverse @ keys + 0.3 * torch.eye(3, dtype=torch.float64))
    ours = equality_update(residuals, keys, torch.linalg.cholesky(second), 0.3).dense()
    torch.testing.assert_close(ours.double(), residuals @ inner @ keys.t() @ inverse, rtol=1e-4, atol=1e-5)


def test_equal_keys_without_alpha_are_refused() -> None:
    residuals, keys, second = system()
    twice = torch.cat([keys[:, :1], keys[:, :1], torch.zeros(10, 1, dtype=torch.float64)], dim=1)
    with pytest.raises(EditRefused, match="raise alpha"):
        equality_update(residuals, twice, torch.linalg.cholesky(second), 0.0)


def test_one_request_is_edited_as_by_rome_with_one_key(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"value_site": "mlp", "alpha": 0.0})
    shared = editor.config.model_dump(exclude={"value_site", "alpha", "alpha_scale", "second_moment_weight"})
    name = tiny.anatomy.mlp_out.format(layer=1) + ".weight"
    for other in (load_editor("rome", tiny, {**shared, "compat": False}), load_editor("r_rome", tiny, shared)):
        for r in SIX_REQUESTS[:2]:
            ours, theirs = (e.edit(tiny, batch_of([r]), prepared).dense(name) for e in (editor, other))
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("site", ["mlp", "block"])
def test_after_a_batch_every_averaged_key_gives_its_solved_value(tiny: EditableModel, site: Any) -> None:
    editor, prepared = editor_for(tiny, {"value_site": site})
    known = read_preparation(prepared, (1,), tiny.device)
    before = lookup_states(tiny, ONE_KEY_REQUESTS, known.contexts, tiny.anatomy.mlp_out, 1)
    solved = optimise_values(tiny, ONE_KEY_REQUESTS, known.contexts, 1, site, editor.config)
    tiny.push(editor.edit(tiny, batch_of(ONE_KEY_REQUESTS), prepared))
    states = lookup_states(tiny, ONE_KEY_REQUESTS, known.contexts, tiny.anatomy.mlp_out, 1)
    _, values = states.averaged(known.contexts.weights(editor.config.key_average))
    torch.testing.assert_close(values, before.outputs[:, 0] + solved.deltas, rtol=1e-2, atol=1e-2)


def test_relative_alpha_does_not_see_the_scale_of_the_second_moment(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"alpha": 0.05})
    scaled = Prepared({n: 30.0 * t for n, t in prepared.tensors.items()}, prepared.meta)
    name = tiny.anatomy.mlp_out.format(layer=1) + ".weight"
    a, b = (editor.edit(tiny, batch_of(SIX_REQUESTS), p).dense(name) for p in (prepared, scaled))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_published_alpha_counts_against_the_weighted_second_moment(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"alpha": 0.1, "alpha_scale": "published", "second_moment_weight": 25.0})
    plain, _ = editor_for(tiny, {"alpha": 0.1, "alpha_scale": "published", "second_moment_weight": 1.0})
    scaled = Prepared({n: 5.0 * t for n, t in prepared.tensors.items()}, prepared.meta)
    name = tiny.anatomy.mlp_out.format(layer=1) + ".weight"
    ours = editor.edit(tiny, batch_of(SIX_REQUESTS), prepared).dense(name)
    theirs = plain.edit(tiny, batch_of(SIX_REQUESTS), scaled).dense(name)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_one_prompt_with_two_answers_in_a_batch_stays_finite(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    pair = [SIX_REQUESTS[0], request(9, "Ada Lovelace", "Tokyo")]
    update = editor.edit(tiny, batch_of(pair), prepared).dense(tiny.anatomy.mlp_out.format(layer=1) + ".weight")
    single = editor.edit(tiny, batch_of(pair[:1]), prepared).dense(tiny.anatomy.mlp_out.format(layer=1) + ".weight")
    assert update.norm() < 10 * single.norm()


def test_a_refused_batch_leaves_the_model_as_it_was(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, {"max_relative_norm": 1e-6})
    before = tiny.state_digest()
    with pytest.raises(EditRefused, match="and 1 more"):
        editor.edit(tiny, batch_of(SIX_REQUESTS), prepared)
    assert tiny.state_digest() == before
