"""The shipped weights know the facts, and can be edited as large models can. Uses the reference model."""

from __future__ import annotations

import random

import pytest
import torch

from editors.analysis.separability import separability
from editors.ledger.ledger import LedgerConfig
from editors.model import EditableModel
from editors.reference.evaluate import exact_match
from editors.reference.masked import hidden_states
from tests.support import CORPUS
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


#: (layer, detector) -> own and foreign answers of three subjects, as they were when every layer had passes of its own.
SEPARATED = {
    (0, "key"): ([0.82964, 0.26993, 0.86546], [0.81577, 0.68064, 0.46794]),
    (0, "filter"): ([0.97403, 0.2131, 1.03864], [0.24596, 0.2215, 0.13924]),
    (1, "key"): ([0.87375, 0.20606, 0.91142], [0.7285, 0.52817, 0.49661]),
    (1, "filter"): ([0.95892, 0.04903, 0.96218], [0.51761, 0.24846, 0.30067]),
    (5, "key"): ([0.81315, 0.1252, 0.90469], [0.65531, 0.50029, 0.43754]),
    (5, "filter"): ([0.79825, 0.0124, 0.893], [0.48573, 0.10516, 0.28982]),
}


def test_separability_of_all_layers_in_one_pass_is_what_it_was_layer_by_layer(reference: EditableModel) -> None:
    config = LedgerConfig(layer=0, key_wordings=4, bank_tokens=60)
    found = separability(reference, CORPUS, ("Grace Hopper", "Rome", "Alan Turing"), config, range(6))
    for (layer, kind), (own, foreign) in SEPARATED.items():
        assert found[layer][kind].own.tolist() == pytest.approx(own, abs=1e-4)
        assert found[layer][kind].foreign.tolist() == pytest.approx(foreign, abs=1e-4)
