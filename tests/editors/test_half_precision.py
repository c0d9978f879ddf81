"""Every editor on models that are stored in bfloat16 and float16."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from editors import catalogue
from editors.errors import EditRefused, UnsupportedModel
from editors.model import EditableModel
from editors.patches.weight import Dense, WeightPatch
from editors.presets import load_editor
from editors.session import batch_of
from tests.editors.test_contract import raises, whole_and_first
from tests.support import CORPUS, request, tiny_model

DTYPES = (torch.bfloat16, torch.float16)
#: Each editor in each dtype and on each architecture; which meet alternates, so that each family has all four pairs.
CELLS = [
    (name, dtype, kind)
    for i, name in enumerate(sorted(catalogue.names(), key=lambda name: catalogue.editor_class(name).card.family))
    for dtype, kind in zip(DTYPES, ("gpt2", "llama") if i % 2 else ("llama", "gpt2"), strict=True)
]
ASKED = request(1, "Ada Lovelace", "Paris", prompt="Where was this person born: {}")


def cast(full: EditableModel, dtype: torch.dtype) -> EditableModel:
    hf: Any = full.hf
    return EditableModel(hf.to(dtype), full.tokenizer, name=f"{full.name}-{dtype}")


@pytest.mark.parametrize(("name", "dtype", "kind"), CELLS, ids=str)
def test_an_edit_of_a_half_precision_model_holds_and_goes(name: str, dtype: torch.dtype, kind: str) -> None:
    model = cast(tiny_model(kind), dtype)
    editor, state = load_editor(name, model), model.state_digest()
    before = whole_and_first(model, ASKED)
    prepared = editor.prepare(model, CORPUS)
    model.push(editor.edit(model, batch_of([ASKED]), prepared))
    after = whole_and_first(model, ASKED)
    assert all(math.isfinite(score) for score in after)
    assert raises(name, before, after)
    assert {p.dtype for p in model.hf.parameters()} == {dtype}
    model.rollback(0)
    assert model.state_digest() == state and whole_and_first(model, ASKED) == before


def widen(model: EditableModel) -> None:
    """Make activations inside the second feed-forward as large as some models' are."""
    model.weight(model.anatomy.mlp_in[-1], 1).mul_(2.0**16)


#: In context nothing of the model is computed with: what it says with such activations is its base's fault, found on loading.
@pytest.mark.parametrize("name", [name for name in catalogue.names() if name != "ice"])
def test_activations_that_float16_cannot_hold_are_refused_by_name(name: str) -> None:
    model = cast(tiny_model(), torch.float16)
    widen(model)
    editor, state = load_editor(name, model), model.state_digest()
    with pytest.raises(EditRefused, match=r"float16.*set model\.dtype to bfloat16 or float32"):
        editor.edit(model, batch_of([ASKED]), editor.prepare(model, CORPUS))
    assert model.state_digest() == state


def test_a_model_that_float16_cannot_hold_is_refused_when_it_is_loaded() -> None:
    wide = tiny_model()
    widen(wide)
    for dtype in (torch.float32, torch.bfloat16):
        assert all(math.isfinite(score) for score in whole_and_first(cast(wide, dtype), ASKED))
    with pytest.raises(UnsupportedModel, match=r"tiny.*float16.*set model\.dtype to bfloat16 or float32"):
        cast(wide, torch.float16)


def test_an_update_that_float16_cannot_hold_leaves_the_model_as_it_was() -> None:
    model = cast(tiny_model(), torch.float16)
    state, name = model.state_digest(), model.anatomy.mlp_out.format(layer=1) + ".weight"
    with pytest.raises(EditRefused, match=f"{name}.*float16.*set model.dtype"):
        model.push(WeightPatch({name: Dense(torch.full(tuple(model.weight(model.anatomy.mlp_out, 1).shape), 7e4))}))
    assert model.state_digest() == state and not model.patches


def test_a_descent_that_float16_cannot_hold_is_told_of_a_wider_dtype() -> None:
    model = cast(tiny_model(), torch.float16)
    editor = load_editor("ft", model, {"learning_rate": 1e6})
    with pytest.raises(EditRefused, match=r"set model\.dtype to bfloat16 or float32, or lower learning_rate"):
        editor.edit(model, batch_of([ASKED]), editor.prepare(model, CORPUS))
