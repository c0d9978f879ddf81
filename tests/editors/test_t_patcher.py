"""T-Patcher: its losses against a slow form, which tokens get a neuron, the bank, and what the patch does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from editors.architectural.t_patcher import Bank, TPatcher, TPatcherConfig, activation_loss, memory_loss
from editors.base import NOTHING, Corpus, Prepared
from editors.errors import EditRefused
from editors.mechanics.answers import answer_rows
from editors.mechanics.last_layer import last_block, last_layer_answers, last_site, read_bank
from editors.model import EditableModel
from editors.patches.neurons import ACTIVATIONS, NeuronPatch
from editors.patches.weight import Dense, WeightPatch
from editors.session import batch_of
from tests.support import CORPUS, SIX_REQUESTS, TEXTS, prepared_once, request
from warehouse.questions import Question
from warehouse.records import EditRequest


def t_patcher(**values: Any) -> TPatcher:
    settings = {"learning_rate": 5e-2, "num_steps": 60, "bank_size": 200, "top_k": 20, "memory_weight": 0.1, **values}
    return TPatcher(TPatcherConfig(**settings))


def edit(model: EditableModel, *requests: EditRequest, **values: Any) -> NeuronPatch:
    by = t_patcher(**values)
    return by.edit(model, batch_of(requests), prepared_once(by, model))


def mistaken(model: EditableModel, asked: EditRequest) -> int:
    """Tokens of the answer, its stop included, that greedy decoding gets wrong, one forward pass each."""
    row = answer_rows(model, [asked])
    ids, wrong = row.ids[0].tolist(), 0
    for token in (*row.targets[0], None):
        upto = ids[: int(row.last_prompt[0]) + 1]
        guess = int(model.hf(torch.tensor([upto])).logits[0, -1].argmax())
        wrong += not bool(model.stops[guess]) if token is None else guess != token
        row.last_prompt[0] += 1
    return wrong


# ------------------------------------------------------------ losses


def test_the_activation_loss_is_exp_of_minus_the_neurons_input() -> None:
    keys, own, biases = (
        torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        torch.tensor([[3.0, 5.0], [7.0, 1.0]]),
        torch.tensor([0.5, -1.0]),
    )
    expected = torch.tensor([3.5, 1.0]).neg().exp()
    torch.testing.assert_close(activation_loss(keys, biases, own), expected)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_memory_loss_agrees_with_the_sum_written_out(activation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    keys, own, biases = (
        torch.randn(3, 4, generator=generator),
        torch.randn(3, 4, generator=generator),
        torch.tensor([0.3, 0.0, -0.5]),
    )
    bank, config = torch.randn(30, 4, generator=generator), TPatcherConfig(top_k=5, silent=-2.0, apart=-1.0)
    hardest = Bank(bank, torch.ones(3, 30, dtype=torch.bool)).hardest(keys, biases, 5)
    value = memory_loss(keys, biases, own, hardest, ACTIVATIONS[activation], config)
    for i in range(3):
        there = sorted((float(m @ keys[i] + biases[i]) for m in bank), reverse=True)[:5]
        here = float(own[i] @ keys[i] + biases[i])
        slow = sum(torch.tensor(t + 2.0).exp() for t in there) / 5 + sum(torch.tensor(t - here + 1.0).exp() for t in there) / 5
        slow = slow + sum(abs(ACTIVATIONS[activation](torch.tensor(t))) for t in there) / 5
        assert float(value[i]) == pytest.approx(float(slow), rel=1e-4)


def test_the_hardest_entries_never_are_the_own_prompt() -> None:
    queries = torch.eye(4)
    foreign = torch.tensor([[False, True, True, True]])
    hardest = Bank(queries, foreign).hardest(queries[:1], torch.zeros(1), 10)
    assert hardest.shape == (1, 3, 4)
    assert float(hardest[..., 0].max()) == 0


def test_a_bank_of_nothing_but_the_own_prompt_holds_nothing_back() -> None:
    own = torch.ones(1, 4)
    hardest = Bank(own, torch.zeros(1, 1, dtype=torch.bool)).hardest(own, torch.zeros(1), 10)
    assert memory_loss(own, torch.zeros(1), own, hardest, ACTIVATIONS["relu"], TPatcherConfig()).tolist() == [0.0]


# ------------------------------------------------------------ the cached last layer


def test_cached_positions_give_the_models_own_logits(tiny: EditableModel) -> None:
    places, labels = last_layer_answers(tiny, SIX_REQUESTS)
    rows = answer_rows(tiny, SIX_REQUESTS)
    logits = tiny.hf(rows.ids, attention_mask=rows.mask).logits[labels.row, labels.at]
    torch.testing.assert_close(places.logits(tiny), logits, rtol=1e-4, atol=1e-4)


def test_the_bank_holds_the_last_feed_forwards_inputs_and_the_last_blocks_outputs(tiny: EditableModel) -> None:
    bank = read_bank(tiny, Corpus(TEXTS), 60, seed=3)
    assert sum(bank.lengths) == 60 == len(bank.places.queries)
    seen: dict[str, torch.Tensor] = {}
    undos = [
        tiny.hook(last_site(tiny), lambda _m, inputs, _out: seen.update(query=inputs[0][0])),
        tiny.hook(last_block(tiny), lambda _m, _in, out: seen.update(hidden=(out[0] if isinstance(out, tuple) else out)[0])),
    ]
    at = 0
    for text, length in zip(bank.texts, bank.lengths, strict=True):
        tiny.hf.base_model(torch.tensor([tiny.tokenizer(text)["input_ids"]]))
        torch.testing.assert_close(bank.places.queries[at : at + length], seen["query"].view(-1, 32)[:length])
        torch.testing.assert_close(bank.places.hidden[at : at + length], seen["hidden"].view(-1, 32)[:length])
        at += length
    for undo in undos:
        undo()


def test_the_bank_is_the_base_models_even_if_the_model_wears_a_patch(tiny: EditableModel) -> None:
    by = t_patcher()
    before = by.prepare(tiny, CORPUS)
    tiny.push(WeightPatch({tiny.anatomy.mlp_out.format(layer=0) + ".weight": Dense(torch.full((32, 96), 0.1))}))
    assert by.prepare(tiny, CORPUS).digest == before.digest
    assert len(tiny.patches) == 1


# ------------------------------------------------------------ edits


@pytest.mark.parametrize("asked", SIX_REQUESTS[:4], ids=lambda r: r.subject)
def test_each_mistaken_token_has_one_neuron(tiny: EditableModel, asked: EditRequest) -> None:
    # A margin near 0: what is right by any lead is no mistake.
    assert len(edit(tiny, asked, stop_margin=1e-6).keys) == mistaken(tiny, asked) > 0


def test_an_answer_that_is_right_already_needs_no_neuron(tiny: EditableModel) -> None:
    tiny.push(edit(tiny, SIX_REQUESTS[0], stop_margin=2.0))
    assert len(edit(tiny, SIX_REQUESTS[0]).keys) == 0


def test_a_batch_gives_every_answer_exactly(tiny: EditableModel) -> None:
    tiny.push(edit(tiny, *SIX_REQUESTS, num_steps=200))
    assert all(a.exact for a in tiny.score([Question(r.prompt, r.target_new) for r in SIX_REQUESTS]))


def test_a_neuron_notes_the_request_and_the_query_it_is_for(tiny: EditableModel) -> None:
    patch = edit(tiny, *SIX_REQUESTS[:2])
    assert set(patch.note["requests"]) == {"r1", "r2"}
    places, labels = last_layer_answers(tiny, SIX_REQUESTS[:2])
    own = {tuple(q.tolist()) for q in patch.queries}
    assert own <= {tuple(q.tolist()) for q in places.queries} and labels.num_rows == 2


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_the_memory_loss_keeps_relu_neurons_silent_on_the_bank(tiny: EditableModel, weight: float) -> None:
    by = t_patcher(activation="relu", memory_weight=weight, num_steps=100, stop_margin=50.0)
    prepared = prepared_once(by, tiny)
    patch = by.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
    fires = float((prepared.tensors["queries"] @ patch.keys.t() + patch.biases > 0).float().mean())
    assert fires < 0.02 if weight else fires > 0.1


def test_earlier_queries_join_the_bank(tiny: EditableModel) -> None:
    by = t_patcher(activation="relu", memory_weight=5.0, num_steps=100, stop_margin=50.0)
    prepared = Prepared({"queries": torch.zeros(1, 32)})
    tiny.push(by.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared))
    first = tiny.patches[0]
    assert isinstance(first, NeuronPatch)
    second = by.edit(tiny, batch_of(SIX_REQUESTS[1:2]), prepared)
    tiny.rollback(0)
    alone = by.edit(tiny, batch_of(SIX_REQUESTS[1:2]), prepared)
    held, free = (float((first.queries @ p.keys.t() + p.biases).max()) for p in (second, alone))
    assert held < free
    assert held < 0


def test_the_activation_of_the_patch_is_the_models_unless_named(tiny: EditableModel) -> None:
    own = {"gpt2": "gelu_tanh", "llama": "silu"}[tiny.hf.config.model_type]
    assert edit(tiny, SIX_REQUESTS[0], num_steps=1).activation == own
    assert edit(tiny, SIX_REQUESTS[0], num_steps=1, activation="relu").activation == "relu"


# ------------------------------------------------------------ preparation and refusals


def test_preparation_does_not_depend_on_the_optimiser() -> None:
    assert t_patcher(learning_rate=0.5).preparation_key() == t_patcher(memory_weight=9.0).preparation_key()
    assert t_patcher(bank_size=10).preparation_key() != t_patcher(bank_size=20).preparation_key()


def test_an_empty_corpus_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="bank"):
        t_patcher().prepare(tiny, Corpus(()))


def test_an_edit_without_its_bank_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="bank"):
        t_patcher().edit(tiny, batch_of(SIX_REQUESTS[:1]), NOTHING)


def test_a_loss_that_runs_away_is_refused_by_name(tiny: EditableModel) -> None:
    with pytest.raises(EditRefused, match="r9"):
        edit(tiny, request(9, "Ada Lovelace", "Paris"), learning_rate=1e30, memory_weight=5.0)
