"""Knowledge neurons on tiny models: integrated gradients against a slow loop, the sets, and the slots."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from editors.base import Prepared
from editors.direct.knowledge_neurons import KnowledgeNeurons, coarse_set, refined_set
from editors.mechanics.attribution import answer_ids, current_answer, neuron_attributions
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from editors.presets import load_editor
from editors.session import batch_of
from tests.support import SIX_REQUESTS, prepared_once

PROMPT = "Ada Lovelace was born in"


def editor_for(model: EditableModel, **changed: Any) -> tuple[KnowledgeNeurons, Prepared]:
    editor = load_editor("knowledge_neurons", model, changed)
    assert isinstance(editor, KnowledgeNeurons)
    return editor, prepared_once(editor, model)


def likelihood(model: EditableModel, ids: list[int], layer: int, position: int, token: int, activation: Tensor) -> float:
    """P(token) with a layer's activations at one position put in by hand."""

    def put(_module: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        keys = args[0].clone()
        keys[0, position] = activation
        return (keys,)

    handle = model.hf.get_submodule(model.anatomy.mlp_out.format(layer=layer)).register_forward_pre_hook(put)
    with torch.no_grad():
        logits = model.hf(torch.tensor([ids])).logits[0, position]
    handle.remove()
    return float(logits.softmax(-1)[token])


def activations(model: EditableModel, ids: list[int], layer: int, position: int) -> Tensor:
    seen: list[Tensor] = []
    path = model.anatomy.mlp_out.format(layer=layer)
    undo = model.hook(path, lambda _module, args, _output: seen.append(args[0][0, position].detach()))
    with torch.no_grad():
        model.hf(torch.tensor([ids]))
    undo()
    return seen[0]


def test_attributions_equal_a_slow_riemann_sum_neuron_by_neuron(tiny: EditableModel) -> None:
    tiny.hf.double()
    answer = answer_ids(tiny, PROMPT, "New York City")[:2]
    prompt = list(tiny.tokenizer(PROMPT)["input_ids"])
    ids = [*prompt, *answer[:-1]]
    ours = neuron_attributions(tiny, [PROMPT], [answer], points=5)[0]
    # Llama's norms are fp32 in any model: a smaller step would measure rounding.
    step = 3e-3
    for layer, neuron in ((0, 3), (1, 50), (2, 7), (3, 95)):
        slow = 0.0
        for j, token in enumerate(answer):
            position = len(prompt) - 1 + j
            w = activations(tiny, ids, layer, position)
            for k in range(1, 6):
                ends = []
                for sign in (1, -1):
                    moved = k / 5 * w
                    moved[neuron] += sign * step
                    ends.append(likelihood(tiny, ids, layer, position, token, moved))
                slow += float(w[neuron]) * (ends[0] - ends[1]) / (2 * step) / 5
        assert float(ours[layer, neuron]) == pytest.approx(slow, rel=1e-2, abs=1e-9)


def test_a_layers_attributions_add_up_to_what_its_neurons_give(tiny: EditableModel) -> None:
    """Completeness: with many points the sum over a layer is P(w) - P(0)."""
    answer = answer_ids(tiny, PROMPT, "Paris")[:1]
    prompt = list(tiny.tokenizer(PROMPT)["input_ids"])
    ours = neuron_attributions(tiny, [PROMPT], [answer], points=400)[0]
    for layer in range(4):
        w = activations(tiny, prompt, layer, len(prompt) - 1)
        ends = [likelihood(tiny, prompt, layer, len(prompt) - 1, answer[0], x) for x in (w, torch.zeros_like(w))]
        assert float(ours[layer].sum()) == pytest.approx(ends[0] - ends[1], rel=0.02, abs=1e-7)


def test_prompts_together_are_attributed_as_alone(tiny: EditableModel) -> None:
    prompts = [PROMPT, "The capital of France is"]
    ids = [answer_ids(tiny, p, "Paris") for p in prompts]
    together = neuron_attributions(tiny, prompts, ids, points=4)
    alone = torch.cat([neuron_attributions(tiny, [p], [i], points=4) for p, i in zip(prompts, ids, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-8)


def test_an_answer_without_tokens_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="a token or more"):
        neuron_attributions(tiny, [PROMPT], [[]])


def test_the_coarse_set_is_above_its_share_of_the_largest() -> None:
    found = coarse_set(torch.tensor([[1.0, 0.1, 0.3], [-5.0, 0.2, 0.21]]), 0.2)
    assert set(found) == {(0, 0), (0, 2), (1, 2)}
    assert coarse_set(-torch.ones(2, 2), 0.2) == {}


def test_the_refined_set_moves_its_share_until_few_enough_are_left() -> None:
    mean = torch.zeros(1, 20)
    sets = [dict.fromkeys([(0, n) for n in range(20) if n < 3 or (n + i) % 4], 1.0) for i in range(4)]
    assert refined_set(sets, mean, 0.7, 2, 5) == [(0, 0), (0, 1), (0, 2)]


def test_the_refined_set_lowers_its_share_until_enough_are_left() -> None:
    sets = [{(0, 1): 1.0}, {(0, 2): 1.0}, {(0, 2): 1.0}, {(0, 3): 1.0}]
    assert refined_set(sets, torch.zeros(1, 9), 0.7, 2, 5) == [(0, 1), (0, 2), (0, 3)]


def test_of_too_many_neurons_the_largest_are_taken() -> None:
    sets = [dict.fromkeys([(0, n) for n in range(9)], 1.0)]
    assert refined_set(sets, torch.arange(9.0)[None], 0.7, 2, 3) == [(0, 6), (0, 7), (0, 8)]


def test_without_any_positive_attribution_the_largest_neuron_is_taken() -> None:
    assert refined_set([{}], torch.tensor([[-3.0, -1.0], [-2.0, -4.0]]), 0.7, 2, 5) == [(0, 1)]


def test_slots_lose_the_old_answer_and_gain_the_new(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny, old_weight=1.0, new_weight=8.0)
    asked = SIX_REQUESTS[0].model_copy(update={"target_true": "London"})
    patch = editor.edit(tiny, batch_of([asked]), prepared)
    table = tiny.head.weight.detach()
    old, new = (table[answer_ids(tiny, asked.prompt, text)].mean(0) for text in ("London", "Paris"))
    direction = 8 * new / new.norm() - old / old.norm()
    for layer, index, _ in patch.meta["note"]["neurons"]:
        path = tiny.anatomy.mlp_out
        change = patch.dense(path.format(layer=layer) + ".weight")[:, index]
        torch.testing.assert_close(change, direction * tiny.weight(path, layer)[:, index].norm(), rtol=1e-4, atol=1e-5)


def test_nothing_but_the_chosen_slots_changes(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    patch = editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
    neurons = patch.meta["note"]["neurons"]
    assert 1 <= len(neurons) <= editor.config.most
    changed = sum(int((patch.dense(name) != 0).any(0).sum()) for name in patch.updates)
    assert changed == len(neurons)


def test_erasing_sets_the_slots_to_zero(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    asked = SIX_REQUESTS[0].model_copy(update={"kind": "erase", "target_new": "unknown", "target_true": "London"})
    patch = editor.edit(tiny, batch_of([asked]), prepared)
    assert isinstance(patch, WeightPatch)
    tiny.push(patch)
    for layer, index, _ in patch.meta["note"]["neurons"]:
        assert not tiny.weight(tiny.anatomy.mlp_out, layer)[:, index].any()


def test_without_an_old_answer_it_is_what_the_model_says(tiny: EditableModel) -> None:
    editor, prepared = editor_for(tiny)
    said = current_answer(tiny, SIX_REQUESTS[0].prompt)
    assert said
    assert editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared).meta["note"]["old_answer"] == said


def test_the_current_answer_is_the_answer_alone(tiny: EditableModel) -> None:
    tuned = load_editor("ft_m", tiny)
    tiny.push(tuned.edit(tiny, batch_of(SIX_REQUESTS[2:3]), prepared_once(tuned, tiny)))
    assert current_answer(tiny, SIX_REQUESTS[2].prompt) == SIX_REQUESTS[2].target_new


def test_edits_that_meet_at_a_neuron_add_up_and_do_not_multiply(tiny: EditableModel) -> None:
    editor, known = editor_for(tiny)
    path, edits = tiny.anatomy.mlp_out, 40
    before = [tiny.weight(path, layer).norm(dim=0) for layer in range(4)]
    for _ in range(edits):
        tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), known))
    # An edit takes an old answer's direction out once and puts a new one's in eight times, in slots of the base's kind.
    for layer, norms in enumerate(before):
        grown = tiny.weight(path, layer).norm(dim=0) - norms
        assert float(grown.max()) <= edits * 9 * 2 * float(norms.max())
