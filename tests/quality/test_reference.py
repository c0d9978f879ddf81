"""The shipped weights know the facts, and can be edited as large models can. Uses the reference model."""

from __future__ import annotations

import random

import pytest
import torch

from editors.model import EditableModel
from editors.reference.evaluate import exact_match
from editors.reference.masked import hidden_states
from warehouse.reference import HERE
from warehouse.reference.world import facts

pytestmark = pytest.mark.quality


@pytest.fixture(scope="module")
def reference() -> EditableModel:
    return EditableModel.from_pretrained(str(HERE / "model"))


def test_a_sample_of_facts_meets_both_bars(reference: EditableModel) -> None:
    result = exact_match(reference.hf, reference.tokenizer, sample=150, seed=7)
    assert result.trained >= 0.98
    assert result.held_out >= 0.95


def test_weights_are_small_enough_to_ship() -> None:
    assert (HERE / "model" / "model.safetensors").stat().st_size <= 40_000_000


def test_reserved_facts_of_the_nights_are_not_taught() -> None:
    taught = {(f.subject_id, f.relation, f.object_id) for f in facts()}
    # New facts of the nights are what the model must learn by an edit.
    assert ("Q242416", "P19", "Q18419") not in taught


def test_masked_pass_without_a_subject_equals_the_plain_model(reference: EditableModel) -> None:
    ids = torch.tensor([random.Random(0).choices(range(2, 5000), k=24)])
    causal = torch.full((1, 1, 24, 24), torch.finfo(torch.float32).min).triu(1)
    with torch.inference_mode():
        ours = hidden_states(reference.hf, ids, causal, causal)
        plain = reference.hf.transformer(ids).last_hidden_state
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
