"""CNP: codes, attention and FiLM against slow forms; what is modulated, and what passes as it is."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from editors.architectural.cnp import Cnp, CnpConfig
from editors.asking.calls import Call
from editors.base import Prepared, Workbench
from editors.errors import PatchError
from editors.mechanics.answers import answer_rows
from editors.model import EditableModel
from editors.nets.conditioning import ConditioningConfig, ConditionNet, Points, coded_requests, train_conditioning, waves
from editors.patches.conditioning import MEMORY, ConditioningPatch
from editors.presets import load_editor
from editors.session import batch_of, run_edits
from tests.support import CORPUS, SIX_REQUESTS, TRAINING_EDITS, tiny_model
from warehouse.records import EditRequest

CONFIG = ConditioningConfig(film_layers=(2, 3), code_width=16, attention_dim=8)


@cache
def prepared() -> Prepared:
    model = tiny_model()
    return load_editor("cnp", model).prepare(model, CORPUS)


def edited(model: EditableModel, *requests: EditRequest) -> list[ConditioningPatch]:
    steps = run_edits(load_editor("cnp", model), model, requests, prepared(), mode="sequential")
    return [step.patch for step in steps]  # type: ignore[misc]


def a_net() -> ConditionNet:
    """A net in which every part has its say."""
    generator = torch.Generator().manual_seed(5)
    fresh = ConditionNet.fresh(32, CONFIG)
    return ConditionNet({n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in fresh.weights.items()})


def norm(state: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(state, (32,))


# ------------------------------------------------------------ the equations


def test_a_code_is_the_token_and_what_its_state_adds() -> None:
    net, state, token = a_net(), torch.randn(32), torch.randn(32)
    inner = torch.nn.functional.gelu(net.weights["enc1"] @ torch.cat([norm(state), norm(token)]))
    expected = norm(token) + net.weights["enc2"] @ inner
    torch.testing.assert_close(net.encode(state[None], token[None])[0], expected, rtol=1e-4, atol=1e-5)


def test_a_query_gathers_codes_by_attention_with_a_null_point() -> None:
    net, state, place = a_net(), torch.randn(32), torch.tensor([1])
    keys, codes = torch.randn(3, 8), torch.randn(3, 32)
    points = Points(keys[None], codes[None], torch.tensor([[0.0, -1.0, float("-inf")]]))
    asking = net.weights["asking"] @ torch.cat([norm(state), waves(place)[0]])
    scores = [float(net.weights["null"]), float(asking @ keys[0]) / 8**0.5, float(asking @ keys[1]) / 8**0.5 - 1]
    share = torch.tensor(scores).softmax(0)
    expected = share[1] * codes[0] + share[2] * codes[1]
    torch.testing.assert_close(net.gather(state[None], place, points)[0], expected, rtol=1e-4, atol=1e-5)


def test_film_scales_and_shifts_in_units_of_the_state() -> None:
    net, state, code = a_net(), torch.randn(32), torch.randn(32)
    gamma = net.weights["2.gamma"] @ torch.nn.functional.gelu(net.weights["2.wide"] @ code)
    beta = net.weights["2.scale"] * (net.weights["2.beta"] @ code)
    expected = (1 + gamma) * state + (state**2).mean().sqrt() * beta
    torch.testing.assert_close(net.film(2, state[None], code[None])[0], expected, rtol=1e-4, atol=1e-5)


def test_a_code_of_zero_changes_nothing_bit_for_bit() -> None:
    state = torch.randn(4, 32)
    assert torch.equal(a_net().film(3, state, torch.zeros(4, 32)), state)


def test_before_training_the_conditioned_model_is_the_base() -> None:
    state = torch.randn(4, 32)
    assert torch.equal(ConditionNet.fresh(32, CONFIG).film(2, state, torch.randn(4, 32)), state)


def test_the_order_of_points_does_not_matter() -> None:
    net, states, place = a_net(), torch.randn(2, 32), torch.tensor([0, 1])
    keys, codes, order = torch.randn(5, 8), torch.randn(5, 32), torch.tensor([3, 1, 4, 0, 2])
    one = net.gather(states, place, Points(keys.expand(2, 5, 8), codes.expand(2, 5, 32), torch.zeros(2, 5)))
    two = net.gather(states, place, Points(keys[order].expand(2, 5, 8), codes[order].expand(2, 5, 32), torch.zeros(2, 5)))
    torch.testing.assert_close(one, two)


# ------------------------------------------------------------ codes and patches


def test_an_edit_has_a_point_for_each_target_token_and_one_for_the_stop(tiny: EditableModel) -> None:
    rows = answer_rows(tiny, SIX_REQUESTS[:3])
    found = coded_requests(tiny, a_net(), rows)
    assert [len(e.keys) for e in found] == [len(target) + 1 for target in rows.targets]


def test_a_code_does_not_depend_on_the_edits_before_it(tiny: EditableModel) -> None:
    last = edited(tiny, *SIX_REQUESTS[:3])[-1]
    tiny.rollback(0)
    alone = edited(tiny, SIX_REQUESTS[2])[0]
    assert torch.equal(last.edits[0].codes, alone.edits[0].codes)
    assert torch.equal(last.edits[0].keys, alone.edits[0].keys)
    assert torch.equal(last.vectors, alone.vectors)


def test_the_first_patch_of_a_stack_carries_the_networks(tiny: EditableModel) -> None:
    first, second = edited(tiny, *SIX_REQUESTS[:2])
    assert set(first.networks) == set(prepared().tensors) and not second.networks
    tiny.rollback(0)
    with pytest.raises(PatchError, match="first patch of its stack"):
        tiny.push(second)
    assert not tiny.memories


# ------------------------------------------------------------ what is modulated


def test_a_prompt_of_no_edit_is_the_bases_bit_for_bit(tiny: EditableModel) -> None:
    call = Call(("A small boat went up the", SIX_REQUESTS[0].prompt), (" river", " Paris"))

    def first_row() -> torch.Tensor:
        for batch in tiny.runner.logits(call):
            at = 0
            for row, ids in zip(batch.rows, batch.ids, strict=True):
                if row == 0:
                    return batch.logits[at : at + len(ids) + 1]
                at += len(ids) + 1
        raise AssertionError("row 0 was not answered")

    before = first_row()
    edited(tiny, SIX_REQUESTS[0])
    assert torch.equal(first_row(), before)


def test_only_states_from_the_prompts_last_token_on_are_modulated(tiny: EditableModel) -> None:
    asked, site = SIX_REQUESTS[0], tiny.anatomy.block.format(layer=2)
    last = len(tiny.tokenizer(asked.prompt)["input_ids"]) - 1

    def states() -> torch.Tensor:
        seen: list[torch.Tensor] = []
        remove = tiny.hook(site, lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
        list(tiny.runner.logits(Call((asked.prompt,), (" Paris",))))
        remove()
        return seen[0][0]

    before = states()
    edited(tiny, asked)
    moved = (before != states()).any(-1)
    assert not bool(moved[:last].any())
    assert bool(moved[last:].all())


def test_text_behind_the_longest_answer_is_not_modulated(tiny: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, places = SIX_REQUESTS[0], []
    edited(tiny, asked)
    gather = ConditionNet.gather

    def watched(self: ConditionNet, states: torch.Tensor, place: torch.Tensor, points: Points) -> torch.Tensor:
        places.extend(place.tolist())
        return gather(self, states, place, points)

    monkeypatch.setattr(ConditionNet, "gather", watched)
    list(tiny.runner.logits(Call((asked.prompt,), (" Paris" + " is good" * 8,))))
    assert sorted(places) == list(range(len(tiny.memories[MEMORY].edits[0].keys)))


def test_a_newer_edit_of_the_slot_takes_over_and_rollback_returns_the_older(tiny: EditableModel) -> None:
    asked = SIX_REQUESTS[0]
    edited(tiny, asked, asked.model_copy(update={"request_id": "newer", "target_new": "Tokyo"}))
    newer = tiny.next_token_log_probs([asked.prompt])
    tiny.rollback(0)
    edited(tiny, asked.model_copy(update={"request_id": "newer", "target_new": "Tokyo"}))
    assert (tiny.next_token_log_probs([asked.prompt]) == newer).all()


# ------------------------------------------------------------ training


def test_training_lowers_the_loss_of_new_answers() -> None:
    model = tiny_model()
    config = CONFIG.model_copy(update={"film_updates": 80, "film_batch": 4, "random_targets": 0.0})
    _, card = train_conditioning(model, TRAINING_EDITS[:4], TRAINING_EDITS[4:], config, Workbench())
    losses = [point["loss"] for point in card["curve"]]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert 0 <= card["held_out_exact"] <= 1


def test_scope_must_be_known_before_the_first_film_block(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="film_layers"):
        Cnp(CnpConfig(token_layer=0, prompt_layer=3, film_layers=(2, 3))).prepare(tiny, CORPUS)


def test_film_that_starts_at_the_last_block_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="begin one lower"):
        train_conditioning(tiny, TRAINING_EDITS, TRAINING_EDITS, ConditioningConfig(film_layers=(3,)), Workbench())


def test_edit_and_batch_give_the_same_codes(tiny: EditableModel) -> None:
    together = load_editor("cnp", tiny).edit(tiny, batch_of(SIX_REQUESTS[:3]), prepared())
    alone = load_editor("cnp", tiny).edit(tiny, batch_of(SIX_REQUESTS[1:2]), prepared())
    assert isinstance(together, ConditioningPatch) and isinstance(alone, ConditioningPatch)
    torch.testing.assert_close(together.edits[1].codes, alone.edits[0].codes, rtol=1e-4, atol=1e-4)
