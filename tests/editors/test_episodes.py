"""Episodes: who is kept aside, what is drawn, and what an edit is judged by."""

from __future__ import annotations

import pytest
import torch

from editors.base import TrainingEdit
from editors.meta_learning.enn import plain_steps
from editors.model import EditableModel
from editors.nets.episodes import divergences, draw_episode, episode_loss, hold_out, oriented, read, row_divergences, success_on
from editors.patches.weight import Dense, WeightPatch
from tests.support import TRAINING_EDITS, request

#: Two edits of each of ten subjects.
MANY = [TrainingEdit(request(i, f"Subject {i % 10}", "Paris", relation=f"P{i}")) for i in range(20)]


# ------------------------------------------------------------ held-out subjects


def test_no_subject_is_on_both_sides() -> None:
    shown, aside = hold_out(MANY, 0.3, 0)
    sides = [{e.request.subject for e in part} for part in (shown, aside)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 3
    assert sorted(e.request.request_id for e in (*shown, *aside)) == sorted(e.request.request_id for e in MANY)


def test_who_is_kept_aside_does_not_depend_on_the_order_of_the_edits() -> None:
    aside = [{e.request.subject for e in hold_out(edits, 0.3, 0)[1]} for edits in (MANY, MANY[::-1])]
    assert aside[0] == aside[1]
    assert aside[0] != {e.request.subject for e in hold_out(MANY, 0.3, 5)[1]}


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_both_sides_have_a_subject_whatever_the_share(share: float) -> None:
    assert all(hold_out(MANY, share, 0))


def test_one_subject_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="two subjects"):
        hold_out(MANY[:1], 0.1, 0)


# ------------------------------------------------------------ what is drawn


def test_a_round_visits_every_edit_once_and_the_next_in_another_order() -> None:
    rounds = [[draw_episode(MANY, r * 20 + i, 0, 1, 1).edit.request.request_id for i in range(20)] for r in range(2)]
    assert [sorted(r) for r in rounds] == [sorted(e.request.request_id for e in MANY)] * 2
    assert rounds[0] != rounds[1]


def test_an_episode_is_a_function_of_its_number() -> None:
    assert draw_episode(TRAINING_EDITS, 3, 0, 1, 2) == draw_episode(TRAINING_EDITS, 3, 0, 1, 2)
    drawn = {draw_episode(TRAINING_EDITS[:1], n, 0, 1, 2).kept for n in range(8)}
    assert len(drawn) > 1


def test_an_episode_holds_rephrases_with_the_new_answer_and_kept_prompts_with_their_own() -> None:
    episode = draw_episode(TRAINING_EDITS, 0, 0, 5, 2)
    asked = episode.edit.request
    assert episode.stated == (asked.prompt, asked.target_new)
    assert episode.rephrased == tuple((prompt, asked.target_new) for prompt in asked.rephrases)
    assert len(set(episode.kept)) == 2 and set(episode.kept) <= set(episode.edit.kept)


# ------------------------------------------------------------ what an edit is judged by


def test_logits_of_a_reading_are_those_of_the_model_with_that_weight(tiny: EditableModel) -> None:
    name = tiny.anatomy.mlp_out.format(layer=1) + ".weight"
    reading = read(tiny, [("Ada Lovelace was born in", "New York City"), ("Alan", "Paris")], 1)
    changed = tiny.parameter(name) * 1.5
    found = reading.logits({name: changed})
    torch.testing.assert_close(reading.logits({}), reading.base, rtol=1e-4, atol=1e-5)
    with tiny.scratch():
        tiny.overwrite(name, changed)
        whole = tiny.hf(reading.rows.ids, attention_mask=reading.rows.mask).logits
    torch.testing.assert_close(found, whole[reading.labels.row, reading.labels.at], rtol=1e-4, atol=1e-5)


def test_a_divergence_is_the_kl_from_the_first_to_the_second() -> None:
    torch.manual_seed(0)
    base, other = torch.randn(4, 9), torch.randn(4, 9)
    full = torch.nn.functional.kl_div(other.log_softmax(-1), base.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(divergences(base, other), full)


def test_a_rows_divergence_is_the_mean_over_its_own_labels(tiny: EditableModel) -> None:
    reading = read(tiny, [("Ada Lovelace was born in", "New York City"), ("Alan", "Paris")], 1)
    torch.manual_seed(0)
    other = reading.base + torch.randn_like(reading.base)
    every = divergences(reading.base, other)
    slow = [every[reading.labels.row == row].mean() for row in range(2)]
    torch.testing.assert_close(row_divergences(reading.base, other, reading.labels), torch.stack(slow))


def test_the_loss_of_an_episode_counts_new_answers_and_kept_prompts_apart(tiny: EditableModel) -> None:
    episode = draw_episode(TRAINING_EDITS, 0, 0, 1, 2)
    name = tiny.anatomy.mlp_out.format(layer=1) + ".weight"
    same = episode_loss(tiny, episode, 1, {})
    assert float(same.kept) == pytest.approx(0.0, abs=1e-6)
    changed = {name: tiny.parameter(name) * 2}
    found = episode_loss(tiny, episode, 1, changed)
    rows = read(tiny, [episode.stated, *episode.rephrased], 1)
    scores = rows.logits(changed).log_softmax(-1)[torch.arange(len(rows.labels.token)), rows.labels.token]
    slow = torch.stack([-scores[rows.labels.row == row].mean() for row in range(2)]).mean()
    torch.testing.assert_close(found.edited, slow, rtol=1e-4, atol=1e-5)
    assert float(found.kept) > 1e-4


def test_success_counts_what_is_exact_after_each_edit_alone(tiny: EditableModel) -> None:
    """Weights trained on the second edit answer that one; what is kept counts where the base has it right."""
    name = tiny.anatomy.mlp_out.format(layer=1) + ".weight"
    asked = [e.request for e in TRAINING_EDITS[:2]]
    start = {name: tiny.parameter(name).clone()}
    rate = {name: torch.tensor(0.4)}
    learnt = plain_steps(read(tiny, [(asked[1].prompt, asked[1].target_new)], 1), start, rate, 60, 0.5).parameters
    edits = [TrainingEdit(r) for r in asked]
    assert success_on(tiny, edits, 1, lambda _: start)["success"] == 0.0
    found = success_on(tiny, edits, 1, lambda edit: learnt if edit.request is asked[1] else start)
    assert found["success"] == 0.5
    assert "locality" not in found
    tiny.push(WeightPatch({name: Dense(oriented(tiny, name, learnt[name] - start[name]))}))
    keeping = [TrainingEdit(asked[0], ((asked[1].prompt, asked[1].target_new),))]
    assert success_on(tiny, keeping, 1, lambda _: learnt)["locality"] == 1.0
    assert success_on(tiny, keeping, 1, lambda _: start)["locality"] == 0.0


def test_an_update_is_turned_to_outputs_by_inputs(tiny: EditableModel) -> None:
    name = tiny.anatomy.mlp_out.format(layer=1) + ".weight"
    delta = torch.randn_like(tiny.parameter(name))
    before = tiny.parameter(name).clone()
    with tiny.scratch():
        tiny.add_to_weight(name, oriented(tiny, name, delta))
        torch.testing.assert_close(tiny.parameter(name), before + delta)
    assert oriented(tiny, name, delta).shape == (32, 96)
