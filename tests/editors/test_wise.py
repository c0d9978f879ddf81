"""WISE: the router and its margins, shards and their merge, and what the side memory leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from editors.architectural.wise import Wise, WiseConfig, activation_loss
from editors.asking.calls import Generation
from editors.base import NOTHING, Corpus
from editors.errors import EditRefused, PatchError
from editors.mechanics.answers import answer_rows
from editors.mechanics.locality_bank import out_of_scope
from editors.model import EditableModel
from editors.patches.files import load_patch, save_patch
from editors.patches.side_memory import SideMemory, SidePatch, SideRules, activity, side_memory_name, ties_merge
from editors.session import batch_of, run_edits
from tests.support import CORPUS, SIX_REQUESTS, prepared_once, request, tiny_model
from warehouse.questions import Question
from warehouse.records import EditRequest

RULES = SideRules(shard_size=2, shards_per_merge=2, density=0.5, ratio=0.9)


def wise(**values: Any) -> Wise:
    return Wise(WiseConfig(**{"layer": 2, "num_steps": 30, "num_prompts": 16, **values}))


def edit(editor: Wise, model: EditableModel, *requests: EditRequest) -> SidePatch:
    return editor.edit(model, batch_of(requests), prepared_once(editor, model))


def memory_of(model: EditableModel, layer: int = 2) -> SideMemory:
    return model.memories[side_memory_name(model.anatomy.mlp_out.format(layer=layer))]


def keys_at(model: EditableModel, prompt: str, layer: int = 2) -> torch.Tensor:
    """(1, tokens, d_mlp) input of the projection."""
    seen: list[torch.Tensor] = []
    undo = model.hook(model.anatomy.mlp_out.format(layer=layer), lambda _m, inputs, _out: seen.append(inputs[0]))
    model.hf.base_model(torch.tensor([model.tokenizer(prompt)["input_ids"]]))
    undo()
    return seen[0].view(1, -1, 96)


def active(delta: torch.Tensor, keys: torch.Tensor) -> float:
    """D of one prompt, all of whose tokens count."""
    return float(activity(delta, keys, torch.ones(1, keys.shape[1])))


def side_patch(
    start: int,
    shard: int,
    values: list[float],
    activities: list[float],
    rules: SideRules = RULES,
    unrelated: float | None = None,
) -> SidePatch:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    mask.view(-1)[: len(values)] = True
    return SidePatch("x", start, shard, mask, torch.tensor(values), activities, rules, [("p", "a")], unrelated)


# ------------------------------------------------------------ activity and margins


def test_the_activity_is_the_mean_norm_of_the_change_over_the_prompts_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    delta, keys = torch.randn(4, 6, generator=generator), torch.randn(2, 5, 6, generator=generator)
    mask = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    slow = [sum(float((delta @ keys[r, t]).norm()) for t in range(5) if mask[r, t]) / int(mask[r].sum()) for r in range(2)]
    assert activity(delta, keys, mask).tolist() == pytest.approx(slow, rel=1e-4)


def test_an_unchanged_side_weight_has_an_activity_with_a_gradient() -> None:
    delta = torch.zeros(4, 6, requires_grad=True)
    activity(delta, torch.ones(1, 2, 6), torch.ones(1, 2)).sum().backward()
    assert delta.grad is not None and bool(torch.isfinite(delta.grad).all())


def test_the_margins_are_the_three_hinges() -> None:
    config = WiseConfig(layer=0, alpha=0.5, beta=2.0, gamma=1.5)
    near, far = torch.tensor([1.0, 3.0]), torch.tensor([0.4, 1.1, 2.0])
    low = sum(max(0.0, 2.0 - n) for n in near.tolist()) / 2
    high = sum(max(0.0, f - 0.5) for f in far.tolist()) / 3
    between = sum(max(0.0, 1.5 - (n - f)) for n in near.tolist() for f in far.tolist()) / 6
    assert float(activation_loss(near, far, config)) == pytest.approx(low + high + between)
    assert float(activation_loss(near, far[:0], config)) == pytest.approx(low)


def test_training_keeps_the_margins_on_edits_and_unrelated_prompts(tiny: EditableModel) -> None:
    editor = wise(num_steps=150, learning_rate=0.03, stop_missed=0.0)
    prepared = prepared_once(editor, tiny)
    patch, size = editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared), prepared.meta["output_norm"]
    delta = patch.delta(torch.device("cpu"))
    own = active(delta, keys_at(tiny, SIX_REQUESTS[0].prompt))
    assert patch.activities == pytest.approx([own], rel=1e-3)
    far = [active(delta, keys_at(tiny, p)) for p in prepared.meta["prompts"] if "Ada" not in p]
    assert own / size > 0.9 * editor.config.beta
    assert max(far) < own


# ------------------------------------------------------------ shards and merges


def test_ties_keeps_the_largest_elects_a_sign_and_averages_those_that_agree() -> None:
    first, second = torch.tensor([[4.0, -1.0, 0.5, 3.0]]), torch.tensor([[-2.0, -5.0, 0.2, 1.0]])
    # Trimmed to half: 4, 3 and -2, -5. Signs by sum: +, -, +. The first entry keeps 4 alone.
    assert ties_merge([first, second], 0.5).tolist() == [[4.0, -5.0, 0.0, 3.0]]
    assert ties_merge([first, second], 1.0).tolist() == [[4.0, -3.0, pytest.approx(0.35), 2.0]]


def test_closed_shards_merge_in_groups_and_the_open_one_stands_alone() -> None:
    memory = SideMemory((2, 3), RULES, torch.device("cpu"))
    memory.append(side_patch(0, 0, [1.0, 2.0], [5.0]))
    assert memory.open_shard == 0
    memory.append(side_patch(1, 0, [1.0, 0.0], [4.0, 6.0]))
    assert memory.open_shard == 1
    memory.append(side_patch(2, 1, [0.0, 0.0, 3.0], [7.0, 3.0]))
    assert memory.open_shard == 2
    assert [m.threshold for m in memory.memories] == pytest.approx([2.7])
    expected = ties_merge([memory.shards[0], memory.shards[1]], 0.5)
    assert torch.equal(memory.memories[0].delta, expected)
    memory.append(side_patch(3, 2, [9.0], [1.0]))
    assert [m.threshold for m in memory.memories] == pytest.approx([2.7, 0.9])
    memory.truncate(2)
    assert [m.threshold for m in memory.memories] == pytest.approx([3.6])
    assert memory.shards[0].view(-1)[:2].tolist() == [2.0, 2.0]


def test_retrieve_keeps_every_shard_as_a_memory() -> None:
    memory = SideMemory((2, 3), SideRules(1, 0, 0.5, 0.9), torch.device("cpu"))
    for i in range(3):
        memory.append(side_patch(i, i, [float(i + 1)], [1.0], memory.rules))
    assert len(memory.memories) == 3


def test_the_most_active_memory_above_its_threshold_answers() -> None:
    rules = SideRules(1, 0, 1.0, 0.5)
    memory = SideMemory((2, 3), rules, torch.device("cpu"))
    memory.append(side_patch(0, 0, [1.0], [2.0], rules))
    memory.append(side_patch(1, 1, [0.0, 3.0], [8.0], rules))
    keys = torch.tensor([[[3.0, 0.0, 0.0]], [[0.5, 0.0, 0.0]], [[3.0, 2.0, 0.0]], [[2.0, 1.0, 0.0]]])
    assert memory.route(keys, torch.ones(4, 1, dtype=torch.bool)).tolist() == [0, -1, 1, 0]


@pytest.mark.parametrize(("shard_size", "steps"), [(6, 3), (500, 3), (2, 9), (4, 6)])
def test_a_batch_larger_than_a_shard_takes_the_steps_of_so_many_shards(
    tiny: EditableModel, caplog: pytest.LogCaptureFixture, shard_size: int, steps: int
) -> None:
    with caplog.at_level("INFO"):
        edit(wise(shard_size=shard_size, num_steps=3, stop_margin=1e6), tiny, *SIX_REQUESTS)
    assert f"6 requests, {steps} steps" in caplog.text


@pytest.mark.parametrize(("unrelated", "threshold"), [(None, 1.8), (1.2, 1.2), (1.9, 1.8)])
def test_unrelated_prompts_lower_the_threshold_and_never_raise_it(unrelated: float | None, threshold: float) -> None:
    memory = SideMemory((2, 3), SideRules(1, 0, 0.5, 0.9), torch.device("cpu"))
    memory.append(side_patch(0, 0, [1.0], [2.0], memory.rules, unrelated))
    assert memory.memories[0].threshold == pytest.approx(threshold)


def test_a_merge_goes_by_its_edits_alone() -> None:
    memory = SideMemory((2, 3), SideRules(1, 2, 0.5, 0.9), torch.device("cpu"))
    for i in range(2):
        memory.append(side_patch(i, i, [1.0], [2.0], memory.rules, 0.1))
    assert [m.threshold for m in memory.memories] == pytest.approx([1.8])


def test_so_many_unrelated_prompts_stay_below_the_limit(tiny: EditableModel) -> None:
    editor = wise(unrelated_share=0.75)
    prepared = prepared_once(editor, tiny)
    patch = editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
    allowed = out_of_scope(prepared.meta["prompts"], [SIX_REQUESTS[0].subject])
    prompts = [p for i, p in enumerate(prepared.meta["prompts"]) if i in allowed]
    found = [active(patch.delta(torch.device("cpu")), keys_at(tiny, p)[:, : editor.config.max_tokens]) for p in prompts]
    assert patch.unrelated is not None
    assert sum(f <= patch.unrelated + 1e-6 for f in found) / len(found) == pytest.approx(0.75, abs=1 / len(found))


def test_what_unrelated_prompts_reach_is_saved_and_older_patches_keep_their_digest(tmp_path: Path) -> None:
    old, new = side_patch(0, 0, [1.0], [2.0]), side_patch(0, 0, [1.0], [2.0], unrelated=0.5)
    assert "unrelated" not in old.meta and old.digest != new.digest
    save_patch(new, tmp_path)
    found = load_patch(tmp_path)
    assert isinstance(found, SidePatch) and found.unrelated == 0.5 and found.digest == new.digest


def test_shards_train_other_entries_and_edits_of_one_shard_the_same(tiny: EditableModel) -> None:
    editor = wise(shard_size=2, num_steps=3, retrieve=True)
    prepared = prepared_once(editor, tiny)
    patches = [s.patch for s in run_edits(editor, tiny, SIX_REQUESTS[:5], prepared, mode="sequential")]
    assert [p.shard for p in patches if isinstance(p, SidePatch)] == [0, 0, 1, 1, 2]
    masks = [p.mask for p in patches if isinstance(p, SidePatch)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])
    assert float(masks[0].float().mean()) == pytest.approx(0.2, abs=0.03)
    assert len(memory_of(tiny).memories) == 3


def test_what_is_kept_is_the_side_weights_output_at_earlier_edits(tiny: EditableModel) -> None:
    def moved(keep_weight: float) -> float:
        tiny.rollback(0)
        editor = wise(keep_weight=keep_weight)
        prepared = prepared_once(editor, tiny)
        tiny.push(editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared))
        second = editor.edit(tiny, batch_of(SIX_REQUESTS[1:2]), prepared)
        keys = keys_at(tiny, SIX_REQUESTS[0].prompt + " " + SIX_REQUESTS[0].target_new)
        return active(second.delta(torch.device("cpu")), keys)

    assert moved(100.0) < 0.5 * moved(0.0)


def test_every_edit_of_a_shard_is_above_its_threshold(tiny: EditableModel) -> None:
    editor = wise()
    prepared = prepared_once(editor, tiny)
    for _ in run_edits(editor, tiny, SIX_REQUESTS, prepared, mode="sequential"):
        pass
    (memory,) = memory_of(tiny).memories
    for asked in SIX_REQUESTS:
        assert active(memory.delta, keys_at(tiny, asked.prompt)) > memory.threshold


# ------------------------------------------------------------ answers


def test_a_prompt_above_the_threshold_is_answered_with_the_side_weight(tiny: EditableModel) -> None:
    asked = SIX_REQUESTS[0]
    patch = edit(wise(num_steps=60), tiny, asked)
    tiny.push(patch)
    routed = tiny.score([Question(asked.prompt, asked.target_new)])[0].log_prob
    tiny.rollback(0)
    tiny.add_to_weight(patch.site + ".weight", patch.delta(torch.device("cpu")))
    assert routed == pytest.approx(tiny.score([Question(asked.prompt, asked.target_new)])[0].log_prob, abs=1e-4)


def test_prompts_below_the_threshold_are_untouched_to_the_bit(tiny: EditableModel) -> None:
    patch = edit(wise(), tiny, SIX_REQUESTS[0])
    prompts = [r.prompt for r in SIX_REQUESTS[1:]]
    limit = patch.rules.ratio * patch.activities[0]
    far = [p for p in prompts if active(patch.delta(torch.device("cpu")), keys_at(tiny, p)) < limit]
    assert far
    before = tiny.next_token_log_probs(far)
    tiny.push(patch)
    assert (tiny.next_token_log_probs(far) == before).all()


def test_a_generation_keeps_the_decision_of_its_prompt(tiny: EditableModel) -> None:
    asked = SIX_REQUESTS[0]
    patch = edit(wise(num_steps=60), tiny, asked)
    tiny.push(patch)
    routed = tiny.runner.generate([asked.prompt, "A small boat"], Generation(8))
    tiny.rollback(0)
    plain = tiny.runner.generate(["A small boat"], Generation(8))[0]
    tiny.add_to_weight(patch.site + ".weight", patch.delta(torch.device("cpu")))
    assert routed[0] == tiny.runner.generate([asked.prompt], Generation(8))[0]
    assert routed[1] == plain


def test_text_without_a_prompt_is_read_with_the_main_weight(tiny: EditableModel) -> None:
    before = tiny.hf(torch.tensor([[5, 9, 40]])).logits
    tiny.push(edit(wise(), tiny, SIX_REQUESTS[0]))
    assert torch.equal(tiny.hf(torch.tensor([[5, 9, 40]])).logits, before)


def test_training_on_cached_states_sees_the_models_own_logits(tiny: EditableModel) -> None:
    editor, rows = wise(), answer_rows(tiny, SIX_REQUESTS[:3])
    cached = editor._rows(tiny, rows, None)
    weight = tiny.weight(tiny.anatomy.mlp_out, 2)
    delta = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    fast = cached.logits(tiny, delta)
    with tiny.scratch():
        tiny.add_to_weight(tiny.anatomy.mlp_out.format(layer=2) + ".weight", delta)
        slow = tiny.hf(rows.ids, attention_mask=rows.mask).logits[cached.labels.row, cached.labels.at]
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 3])
def test_any_layer_takes_edits_the_last_one_too(tiny: EditableModel, layer: int) -> None:
    asked = SIX_REQUESTS[0]
    before = tiny.score([Question(asked.prompt, asked.target_new)])[0].log_prob
    tiny.push(edit(wise(layer=layer), tiny, asked))
    assert tiny.score([Question(asked.prompt, asked.target_new)])[0].log_prob > before


# ------------------------------------------------------------ patches, preparation, refusals


def test_a_saved_patch_has_equal_entries(tmp_path: Any, tiny: EditableModel) -> None:
    patch = edit(wise(num_steps=2), tiny, *SIX_REQUESTS[:2])
    save_patch(patch, tmp_path)
    loaded = load_patch(tmp_path)
    assert isinstance(loaded, SidePatch) and loaded.digest == patch.digest
    cpu = torch.device("cpu")
    assert torch.equal(loaded.delta(cpu), patch.delta(cpu))
    # One bit an entry and four bytes a changed one.
    assert patch.num_bytes == 32 * 96 // 8 + 4 * int(patch.mask.sum())


def test_a_patch_made_on_other_patches_or_rules_is_refused(tiny: EditableModel) -> None:
    editor = wise(num_steps=2)
    first = edit(editor, tiny, SIX_REQUESTS[0])
    tiny.push(first)
    with pytest.raises(PatchError, match="made on 0 patches, the model has 1"):
        tiny.push(first)
    other = edit(wise(num_steps=2, shard_size=3), tiny, SIX_REQUESTS[1])
    with pytest.raises(PatchError, match="one preset"):
        tiny.push(other)
    assert len(tiny.patches) == 1


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values for 1 entries"):
        SidePatch("x", 0, 0, torch.eye(1).bool(), torch.ones(2), [1.0], RULES, [("p", "a")])
    with pytest.raises(ValueError, match="0 activities for 1 edits"):
        SidePatch("x", 0, 0, torch.eye(1).bool(), torch.ones(1), [], RULES, [("p", "a")])


def test_an_edit_does_not_depend_on_what_the_editor_has_read_before(tiny: EditableModel) -> None:
    editor = wise(num_steps=3)
    prepared = prepared_once(editor, tiny)
    for step in run_edits(editor, tiny, SIX_REQUESTS[:3], prepared, mode="sequential"):
        last = step.patch
    tiny.rollback(2)
    assert wise(num_steps=3).edit(tiny, batch_of(SIX_REQUESTS[2:3]), prepared).digest == last.digest


def test_the_bank_is_half_texts_half_prompts_of_training_edits(tiny: EditableModel) -> None:
    prompts = wise(num_prompts=8).prepare(tiny, CORPUS).meta["prompts"]
    assert len(prompts) == 8 == len(set(prompts))
    assert sum(p in CORPUS.texts for p in prompts) == 4
    assert len(wise(num_prompts=4).prepare(tiny, Corpus(CORPUS.texts)).meta["prompts"]) == 4


def test_the_output_norm_is_the_mean_over_the_prompts_tokens(tiny: EditableModel) -> None:
    prepared = wise(num_prompts=3).prepare(tiny, CORPUS)
    weight = tiny.weight(tiny.anatomy.mlp_out, 2)
    norms = [n for p in prepared.meta["prompts"] for n in F.linear(keys_at(tiny, p)[0], weight).norm(dim=1).tolist()]
    assert prepared.meta["output_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-4)


def test_preparation_does_not_depend_on_the_optimiser() -> None:
    assert wise(learning_rate=0.5).preparation_key() == wise(beta=0.5).preparation_key()
    assert wise(layer=1).preparation_key() != wise().preparation_key()


def test_an_empty_corpus_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="unrelated prompts"):
        wise().prepare(tiny, Corpus(()))


def test_an_edit_without_its_preparation_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="prepare it first"):
        wise().edit(tiny, batch_of(SIX_REQUESTS[:1]), NOTHING)


def test_a_loss_that_runs_away_is_refused() -> None:
    # GPT-2 only: Llama's norm keeps any state finite.
    with pytest.raises(EditRefused, match="learning_rate"):
        edit(wise(learning_rate=1e37), tiny_model("gpt2"), request(9, "Ada Lovelace", "Paris"))
