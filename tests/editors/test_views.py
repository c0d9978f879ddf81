"""The model as it was some patches ago: what is taken off goes on again, whatever happens meanwhile."""

from __future__ import annotations

import pytest
import torch

from editors.model import EditableModel
from editors.patches.weight import Dense, WeightPatch
from editors.views import AtDepth, at_base, at_depth
from tests.support import tiny_model

NORM = "transformer.ln_f.weight"
ASKED = ["The capital of France is"]


@pytest.fixture
def patched() -> EditableModel:
    model = tiny_model()
    for number in (1.0, 2.0, 4.0):
        model.push(WeightPatch({NORM: Dense(torch.full((32,), number))}))
    return model


@pytest.mark.parametrize(("depth", "value"), [(0, 1.0), (1, 2.0), (2, 4.0), (3, 8.0)])
def test_only_the_first_patches_are_on(patched: EditableModel, depth: int, value: float) -> None:
    with at_depth(patched, depth) as model:
        assert float(model.parameter(NORM)[0]) == value
    assert float(patched.parameter(NORM)[0]) == 8.0


def test_the_patches_are_back_in_their_order_after_an_error(patched: EditableModel) -> None:
    state = patched.state_digest()
    with pytest.raises(RuntimeError, match="killed"), at_base(patched):
        raise RuntimeError("killed")
    assert patched.state_digest() == state


def test_a_view_answers_as_the_model_of_that_depth(patched: EditableModel) -> None:
    digest, said = patched.digest, patched.next_token_log_probs(ASKED)
    base = tiny_model()
    view = AtDepth(patched)
    assert view.digest == base.digest
    assert (view.next_token_log_probs(ASKED) == base.next_token_log_probs(ASKED)).all()
    assert (AtDepth(patched, 3).next_token_log_probs(ASKED) == said).all()
    assert patched.digest == digest
