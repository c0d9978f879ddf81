"""Neurons beside a feed-forward: their sum, their growth and undo, and the plain model that holds them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from editors.errors import PatchError, UnsupportedModel
from editors.export.form import OF_BEFORE, PlainForm
from editors.export.plain import plain_model
from editors.model import EditableModel
from editors.patches.files import load_patch, save_patch
from editors.patches.memory import MemoryPatch
from editors.patches.neurons import (
    ACTIVATIONS,
    NeuronPatch,
    Neurons,
    activation_of,
    count_neurons,
    neuron_queries,
    neurons_name,
)
from editors.patches.weight import LowRank, WeightPatch
from tests.support import tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 9, 40, 77, 3], [8, 8, 100, 200, 31]])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def neurons(model: EditableModel, layer: int = 1, count: int = 3, seed: int = 0, **more: Any) -> NeuronPatch:
    site = model.anatomy.mlp.format(layer=layer)
    activation = more.pop("activation", activation_of(model))
    start = more.pop("start", count_neurons(model, site, activation))
    parts = randn(count, 32, seed=seed), randn(count, seed=seed + 1), randn(count, 32, seed=seed + 2)
    return NeuronPatch(site, activation, start, *parts, **more)


def widened(model: EditableModel, sharpness: float | None = None) -> Any:
    """The form of before, which is equal on a model of random numbers too; see tests/editors/test_plain.py for today's."""
    return plain_model(model, replace(OF_BEFORE, sharpness=sharpness)).hf


def logits(model: Any) -> torch.Tensor:
    return getattr(model, "hf", model)(IDS).logits


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_the_output_grows_by_each_neurons_activation_times_its_value(tiny: EditableModel, activation: str) -> None:
    path = tiny.anatomy.mlp.format(layer=1)
    hidden = randn(2, 5, 32, seed=9)
    before = tiny.hf.get_submodule(path)(hidden)
    patch = neurons(tiny, activation=activation)
    tiny.push(patch)
    after = tiny.hf.get_submodule(path)(hidden)
    slow = before.clone()
    for row in range(2):
        for token in range(5):
            for k, b, v in zip(patch.keys, patch.biases, patch.values, strict=True):
                slow[row, token] += ACTIVATIONS[activation](hidden[row, token] @ k + b) * v
    torch.testing.assert_close(after, slow)


def test_the_matrix_grows_past_its_buffer_and_keeps_its_order(tiny: EditableModel) -> None:
    made = [neurons(tiny, count=7, seed=10 * i, start=7 * i) for i in range(6)]
    for patch in made:
        tiny.push(patch)
    found: Neurons = tiny.memories[neurons_name(made[0].site, made[0].activation)]
    assert len(found) == 42
    assert torch.equal(found.keys, torch.cat([p.keys for p in made]))
    assert torch.equal(found.values, torch.cat([p.values for p in made]))


def test_two_activations_stand_at_one_site_and_come_off_in_any_number(tiny: EditableModel) -> None:
    states = [logits(tiny)]
    for patch in (neurons(tiny, activation="relu"), neurons(tiny, activation="silu", seed=5)):
        tiny.push(patch)
        states.append(logits(tiny))
    assert not torch.equal(states[1], states[2])
    tiny.rollback(1)
    assert torch.equal(logits(tiny), states[1])
    tiny.rollback(0)
    assert torch.equal(logits(tiny), states[0])
    assert not tiny.memories


def test_no_neurons_change_nothing(tiny: EditableModel) -> None:
    before = logits(tiny)
    tiny.push(neurons(tiny, count=0))
    assert torch.equal(logits(tiny), before)


def test_a_patch_made_on_other_neurons_is_refused(tiny: EditableModel) -> None:
    tiny.push(neurons(tiny))
    before = tiny.state_digest()
    with pytest.raises(PatchError, match="made on 0 neurons, the model has 3"):
        tiny.push(neurons(tiny, start=0))
    assert tiny.state_digest() == before


def test_a_saved_patch_loads_with_its_queries_and_note(tmp_path: Path) -> None:
    patch = neurons(tiny_model(), queries=randn(3, 32, seed=7), note={"requests": ["r1", "r1", "r2"]})
    save_patch(patch, tmp_path)
    loaded = load_patch(tmp_path)
    assert isinstance(loaded, NeuronPatch)
    assert loaded.digest == patch.digest
    assert torch.equal(loaded.queries, patch.queries) and loaded.note == patch.note
    assert [q.shape[0] for q in neuron_queries([loaded], patch.site)] == [3]
    assert neuron_queries([loaded], "elsewhere") == []


@pytest.mark.parametrize(("keys", "activation", "match"), [(2, "relu", "2 keys"), (3, "tanh", "tanh")])
def test_parts_that_do_not_fit_are_refused(keys: int, activation: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        NeuronPatch("x", activation, 0, randn(keys, 4), randn(3), randn(3, 4))


def test_a_strange_activation_of_the_model_is_refused(tiny: EditableModel) -> None:
    tiny.hf.config.activation_function = "quick_gelu"
    with pytest.raises(UnsupportedModel, match="quick_gelu"):
        activation_of(tiny)


# ------------------------------------------------------------ the plain model


def test_the_widened_model_is_equal_and_loads_without_our_code(tiny: EditableModel, tmp_path: Path) -> None:
    tiny.push(neurons(tiny, layer=1))
    tiny.push(neurons(tiny, layer=3, count=5, seed=4))
    tiny.push(WeightPatch({tiny.anatomy.mlp_out.format(layer=2) + ".weight": LowRank(randn(32, 1), randn(96, 1))}))
    tiny.push(neurons(tiny, layer=1, count=1, seed=8, start=3))
    widened(tiny).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    config = loaded.config
    assert (config.n_inner if config.model_type == "gpt2" else config.intermediate_size) == 96 + 5
    torch.testing.assert_close(logits(loaded), logits(tiny), rtol=1e-4, atol=1e-5)


def test_widening_leaves_the_model_as_it_is_and_without_neurons_copies_it(tiny: EditableModel) -> None:
    state, random = tiny.state_digest(), torch.get_rng_state()
    wide = widened(tiny)
    torch.testing.assert_close(logits(wide), logits(tiny))
    assert tiny.state_digest() == state
    assert torch.equal(torch.get_rng_state(), random)


def test_relu_neurons_are_refused_without_a_sharpness_and_near_with_one(tiny: EditableModel) -> None:
    base = logits(tiny)
    tiny.push(neurons(tiny, layer=3, activation="relu"))
    with pytest.raises(UnsupportedModel, match="ReLU"):
        widened(tiny)
    change = float((logits(tiny) - base).abs().max())
    misses = [float((logits(widened(tiny, sharpness=c)) - logits(tiny)).abs().max()) for c in (10.0, 1000.0)]
    assert misses[1] < 0.1 * misses[0] < 0.1 * change
    assert misses[1] < 1e-3 * change


def test_a_patch_that_is_no_weight_or_neuron_cannot_be_widened(tiny: EditableModel) -> None:
    none = torch.empty(0, 32)
    tiny.push(MemoryPatch(tiny.anatomy.block.format(layer=1), 0, none, none, torch.empty(0), [], []))
    with pytest.raises(UnsupportedModel, match="memory"):
        widened(tiny)


def test_neurons_beside_no_feed_forward_cannot_be_widened(tiny: EditableModel) -> None:
    tiny.push(NeuronPatch(tiny.anatomy.block.format(layer=1), "relu", 0, randn(1, 32), randn(1), randn(1, 32)))
    with pytest.raises(UnsupportedModel, match="no feed-forward"):
        widened(tiny)


def test_a_gated_model_holds_them_only_with_a_direction_that_is_known() -> None:
    config = Qwen2Config(
        vocab_size=len(tiny_tokenizer()), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96,
    )  # fmt: skip
    torch.manual_seed(0)
    model = EditableModel(Qwen2ForCausalLM(config), tiny_tokenizer(), name="tiny-qwen2")
    assert widened(model).config.intermediate_size == 96  # nothing to make room for
    model.push(NeuronPatch(model.anatomy.mlp.format(layer=1), "silu", 0, randn(1, 32), randn(1), randn(1, 32)))
    with pytest.raises(UnsupportedModel, match=r"constant direction of model\.layers\.1\.mlp is not known"):
        plain_model(model, PlainForm())
    with pytest.raises(UnsupportedModel, match="qwen2"):
        widened(model)
