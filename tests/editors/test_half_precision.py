"""Every editor on models that are stored in bfloat16 and float16."""

from __future__ import annotations

import math

import pytest
import torch

from editors import catalogue
from editors.model import EditableModel
from editors.presets import load_editor
from editors.session import batch_of
from tests.editors.test_contract import raises, whole_and_first
from tests.support import CORPUS, request, tiny_model

DTYPES = (torch.bfloat16, torch.float16)
ASKED = request(1, "Ada Lovelace", "Paris", prompt="Where was this person born: {}")


def half_model(dtype: torch.dtype, kind: str = "gpt2") -> EditableModel:
    full = tiny_model(kind)
    return EditableModel(full.hf.to(dtype), full.tokenizer, name=f"tiny-{kind}-{dtype}")


@pytest.mark.parametrize("kind", ("gpt2", "llama"))
@pytest.mark.parametrize("dtype", DTYPES, ids=("bf16", "fp16"))
@pytest.mark.parametrize("name", catalogue.names())
def test_an_edit_of_a_half_precision_model_holds_and_goes(name: str, dtype: torch.dtype, kind: str) -> None:
    model = half_model(dtype, kind)
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
