"""SERAC: who is in scope, what the counterfactual model says, what a stack of patches carries."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from editors.architectural.serac import statements
from editors.asking.calls import Call, Generation
from editors.base import Prepared, Workbench
from editors.errors import PatchError
from editors.model import EditableModel
from editors.nets.counterfactual import (
    ANSWERING,
    EDIT_ANSWER,
    CounterfactualConfig,
    CounterfactualModel,
    StatedEdit,
    end_id,
    reading_of,
    train_counterfactual,
)
from editors.nets.scope import Features, ScopeConfig, ScopeNet, _Prompts, features_of
from editors.nets.stages import run_stages
from editors.patches.scope_index import Classifier, ScopeIndex
from editors.patches.serac import MEMORY, SeracPatch
from editors.presets import load_editor
from editors.session import batch_of, run_edits
from tests.support import CORPUS, SIX_REQUESTS, TRAINING_EDITS, request, tiny_model


@cache
def prepared() -> Prepared:
    model = tiny_model()
    return load_editor("serac", model).prepare(model, CORPUS)


def edited(model: EditableModel, *requests: object) -> list[SeracPatch]:
    editor = load_editor("serac", model)
    steps = run_edits(editor, model, list(requests), prepared(), mode="sequential")  # type: ignore[arg-type]
    return [step.patch for step in steps]  # type: ignore[misc]


# ------------------------------------------------------------ scope


def test_an_embedding_is_attention_over_tokens_and_two_layers(tiny: EditableModel) -> None:
    config = ScopeConfig(token_layer=0, prompt_layer=2, scope_width=8, scope_dim=4, scope_heads=2)
    net = ScopeNet.fresh(32, config)
    features = features_of(tiny, ["Ada was born in"], 0, 2)
    states = torch.nn.functional.layer_norm(features.tokens[0], (32,))
    pooled = []
    for query in net.pool:
        weights = torch.tensor([float(state @ query) for state in states]).softmax(0)
        pooled.append(sum(w * state for w, state in zip(weights, states, strict=True)))
    joined = torch.cat([*pooled, torch.nn.functional.layer_norm(features.last[0], (32,))])
    inner = torch.nn.functional.gelu(net.inner @ joined + net.inner_bias)
    expected = net.outer @ inner
    torch.testing.assert_close(net.embed(features)[0], expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_an_embedding_does_not_depend_on_longer_neighbours(tiny: EditableModel) -> None:
    net = ScopeNet.fresh(32, ScopeConfig(token_layer=0, prompt_layer=2))
    alone = net.embed(features_of(tiny, ["Ada"], 0, 2))
    beside = net.embed(features_of(tiny, ["Ada", "Where was this person born: Émile Zola"], 0, 2))
    torch.testing.assert_close(alone[0], beside[0], rtol=1e-4, atol=1e-5)


def test_a_prompt_is_always_in_scope_of_itself() -> None:
    net = ScopeNet.fresh(32, ScopeConfig(token_layer=0, prompt_layer=1))
    strict = ScopeNet(net.pool, net.inner, net.inner_bias, net.outer, torch.tensor([1.0, -100.0]))
    index = ScopeIndex(Classifier(strict, 0, 1))
    states = Features(torch.randn(2, 5, 32), torch.ones(2, 5, dtype=torch.bool), torch.randn(2, 32))
    index.extend(strict.embed(states), ["a", "b"])
    assert [[number for number, _ in row] for row in index.nearest_features(states)] == [[0], [1]]


def test_only_the_newest_edit_of_a_slot_answers_and_the_older_returns(tiny: EditableModel) -> None:
    asked = SIX_REQUESTS[0]
    edited(tiny, asked, asked.model_copy(update={"request_id": "newer", "target_new": "Tokyo"}))
    index = tiny.memories[MEMORY].index
    assert index.nearest(tiny, [asked.prompt]) == [[1]]
    tiny.rollback(1)
    assert tiny.memories[MEMORY].index.nearest(tiny, [asked.prompt]) == [[0]]


def test_a_text_without_a_prompt_passes_to_the_base(tiny: EditableModel) -> None:
    before = tiny.log_likelihoods(["Ada Lovelace was born in London."])
    edited(tiny, SIX_REQUESTS[0])
    assert tiny.log_likelihoods(["Ada Lovelace was born in London."]) == before


def test_a_prompt_kept_for_one_edit_may_be_about_another() -> None:
    prompts = _Prompts(TRAINING_EDITS[:2])
    texts = [TRAINING_EDITS[1].request.prompt, TRAINING_EDITS[0].request.rephrases[0], "Mary Shelley died in"]
    assert [prompts.fact[prompts.add(text)] for text in texts] == [1, 0, -1]
    assert prompts.add(texts[0]) == 0


def test_training_parts_one_subjects_facts_from_each_other() -> None:
    card = prepared().meta["scope"]
    assert card["curve"][-1]["loss"] < card["curve"][0]["loss"]
    assert {"precision", "recall", "false_alarms"} <= set(card)


# ------------------------------------------------------------ the counterfactual model


def test_the_edit_and_its_answer_stand_at_the_same_places() -> None:
    reading = reading_of([StatedEdit((5, 6), (7, 8, 9))], [(1, 2, 3)], [(7, 8)], 0)
    assert reading.ids.tolist() == [[5, 6, 7, 8, 9, 1, 2, 3, 7, 8]]
    stated, answering = reading.part[0] == EDIT_ANSWER, reading.part[0] == ANSWERING
    assert reading.place[0][stated].tolist() == reading.place[0][answering].tolist() == [0, 1, 2]


def test_probabilities_mix_the_pointer_and_the_head(tiny: EditableModel) -> None:
    net = CounterfactualModel.fresh(32, CounterfactualConfig(answer_width=16, answer_layers=1))
    reading = reading_of([StatedEdit((5,), (7, 9, 7))], [(1, 2)], [()], tiny.pad_id)
    wanted = reading.part == ANSWERING

    def said(gate: float) -> torch.Tensor:
        # States have mean zero and size one: a gate along one of them is that many logits, whichever way it points.
        return (
            CounterfactualModel({**net.weights, "gate": gate * net.weights["parts"][:1]})
            .log_probs(tiny, reading, wanted)[0]
            .exp()
        )

    even = said(0.0)
    assert float(even.sum()) == pytest.approx(1.0, abs=1e-5)
    ends = [said(1e4), said(-1e4)]
    pointed, headed = sorted(ends, key=lambda p: -float(p[[7, 9]].sum()))
    assert float(pointed[[7, 9]].sum()) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(even, (pointed + headed) / 2, rtol=1e-4, atol=1e-6)


def test_a_row_does_not_depend_on_longer_ones_beside_it(tiny: EditableModel) -> None:
    net = CounterfactualModel.fresh(32, CounterfactualConfig(answer_width=16, answer_layers=2))
    short, long = StatedEdit((5,), (7, 0)), StatedEdit((5, 6, 7, 8), (9, 10, 11, 0))
    alone = reading_of([short], [(1, 2)], [(7,)], tiny.pad_id)
    both = reading_of([short, long], [(1, 2), (1, 2, 3)], [(7,), (9, 10)], tiny.pad_id)
    one = net.log_probs(tiny, alone, alone.part == ANSWERING)
    two = net.log_probs(tiny, both, both.part == ANSWERING)
    torch.testing.assert_close(one, two[:2], rtol=1e-4, atol=1e-4)


def test_it_learns_to_say_answers_that_it_never_saw() -> None:
    model = tiny_model()
    config = CounterfactualConfig(answer_width=32, answer_layers=1, answer_updates=300, answer_batch=16)
    net, card = train_counterfactual(model, TRAINING_EDITS[:3], TRAINING_EDITS[3:], config, Workbench())
    unseen = StatedEdit((5, 6), (211, 57, 300, 42, end_id(model)))
    assert net.write(model, [unseen], [(5, 6)], 10) == [list(unseen.answer)]
    assert card["curve"][-1]["loss"] < 0.5 * card["curve"][0]["loss"]


def test_a_statement_ends_with_a_stop_and_the_end_of_text(tiny: EditableModel) -> None:
    stated = statements(tiny, [SIX_REQUESTS[2]])[0]
    assert tiny.tokenizer.decode(list(stated.prompt)) == "Alan Turing was born in"
    assert str(tiny.tokenizer.decode(list(stated.answer), skip_special_tokens=True)).startswith(" New York City")
    assert stated.answer[-1] == end_id(tiny)
    assert bool(tiny.stops[stated.answer[-2]])


# ------------------------------------------------------------ the wrapper and its patches


def test_prompts_of_no_edit_are_the_bases_bit_for_bit(tiny: EditableModel) -> None:
    edited(tiny, SIX_REQUESTS[0])
    outside = "A small boat went up the"
    assert tiny.memories[MEMORY].index.nearest(tiny, [outside, SIX_REQUESTS[0].prompt]) == [[], [0]]
    call = Call((outside, SIX_REQUESTS[0].prompt), (" river", " Paris"))
    shown = {row: batch.logits for batch in tiny.runner.logits(call) for row in batch.rows}
    tiny.rollback(0)
    base = {row: batch.logits for batch in tiny.runner.logits(call.select([0])) for row in batch.rows}
    assert torch.equal(shown[0], base[0])


def test_greedy_generation_says_what_scoring_calls_likeliest(tiny: EditableModel) -> None:
    edited(tiny, SIX_REQUESTS[2])
    prompt = SIX_REQUESTS[2].prompt
    first = int(tiny.next_token_log_probs([prompt])[0].argmax())
    assert tiny.generate([prompt], 1) == [tiny.tokenizer.decode([first], skip_special_tokens=True)]


def test_sampling_repeats_under_one_seed(tiny: EditableModel) -> None:
    edited(tiny, SIX_REQUESTS[0])
    prompts = [SIX_REQUESTS[0].prompt]
    once = tiny.runner.generate(prompts, Generation(6, sample=True, seed=3))
    assert once == tiny.runner.generate(prompts, Generation(6, sample=True, seed=3))


def test_the_first_patch_of_a_stack_carries_the_networks(tiny: EditableModel) -> None:
    first, second = edited(tiny, *SIX_REQUESTS[:2])
    assert set(first.networks) == set(prepared().tensors)
    assert not second.networks
    assert second.num_bytes < first.num_bytes / 10


def test_a_patch_without_its_networks_is_refused(tiny: EditableModel) -> None:
    second = edited(tiny, *SIX_REQUESTS[:2])[1]
    tiny.rollback(0)
    with pytest.raises(PatchError, match="first patch of its stack"):
        tiny.push(second)
    assert not tiny.memories


def test_networks_of_another_preparation_are_refused(tiny: EditableModel) -> None:
    edited(tiny, SIX_REQUESTS[0])
    other = Prepared({**prepared().tensors, "scope.line": torch.tensor([9.0, -6.0])}, prepared().meta)
    patch = load_editor("serac", tiny).edit(tiny, batch_of([request(9, "Mary", "Tokyo")]), other)
    with pytest.raises(PatchError, match="a preparation serves a whole stack"):
        tiny.push(patch)


# ------------------------------------------------------------ preparation


def test_stages_that_are_done_are_not_run_again(tmp_path: Path) -> None:
    ran = []

    def first(bench: Workbench, before: object) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
        ran.append("first")
        return {"a": torch.ones(1)}, {"steps": 1}

    def second(bench: Workbench, before: object) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
        ran.append("second")
        if ran.count("second") == 1:
            bench.save(1, {"b": torch.zeros(1)}, {})
            raise KeyboardInterrupt
        found = bench.load()
        assert found is not None and set(found[1]) == {"b"}
        return found[1], {"steps": 2}

    with pytest.raises(KeyboardInterrupt):
        run_stages(Workbench(tmp_path), {"first": first, "second": second})
    tensors, cards = run_stages(Workbench(tmp_path), {"first": first, "second": second})
    assert ran == ["first", "second", "second"]
    assert set(tensors) == {"a", "b"} and cards == {"first": {"steps": 1}, "second": {"steps": 2}}
