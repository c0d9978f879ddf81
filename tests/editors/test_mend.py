"""MEND: the update against a loop over tokens, batches that do not meet, and a preparation that outlives a kill."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from editors.base import Corpus, Prepared
from editors.errors import EditRefused
from editors.mechanics.answers import row_losses
from editors.meta_learning.mend import Mend, MendConfig, terms
from editors.model import EditableModel
from editors.nets.episodes import draw_episode
from editors.nets.hypernetwork import EditorNets
from editors.nets.lessons import (
    Places,
    ask,
    batch_factors,
    compatible,
    joined,
    passes,
    request_factors,
    slices,
    success_of,
    whole_episode,
)
from editors.nets.net_training import draw_batches
from editors.patches.weight import LowRank
from editors.session import batch_of
from tests.support import CORPUS, SIX_REQUESTS, TEXTS, TRAINING_EDITS, request, tiny_model

TINY = MendConfig(layers=(1, 2), rank=4, edit_rate=0.02, updates=6, edits_each=3, batch_sizes=(1, 2), max_relative_norm=100.0)


@cache
def prepared(kind: str = "gpt2") -> Prepared:
    return Mend(TINY).prepare(tiny_model(kind), CORPUS)


def ready(model: EditableModel) -> Prepared:
    return prepared(model.name.removeprefix("tiny-"))


def places(model: EditableModel) -> Places:
    return Places.of(model, TINY.layers, TINY.projections, "all")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_update_is_the_sum_of_the_nets_outer_products(kind: str) -> None:
    model, known = tiny_model(kind), prepared(kind)
    patch = Mend(TINY).edit(model, batch_of(SIX_REQUESTS[:2]), known)
    where = places(model)
    nets = EditorNets(known.tensors, known.tensors, where.shapes)
    every = request_factors(model, SIX_REQUESTS[:2], where)
    for path, (d_out, d_in) in where.shapes.items():
        step = known.tensors[f"{path}|step"].exp() * model.parameter(f"{path}.weight").square().mean().sqrt()
        wanted = torch.zeros(d_out, d_in)
        for factors in every:
            inputs, gradients = nets(path, factors[path])
            for u, d in zip(inputs, gradients, strict=True):
                wanted -= step * torch.outer(d, u)
        torch.testing.assert_close(patch.dense(f"{path}.weight"), wanted, rtol=1e-3, atol=1e-5)


def test_a_single_edit_leaves_low_rank_factors(tiny: EditableModel) -> None:
    short = request(9, "Ada", "Paris", prompt="{} lies in")
    patch = Mend(TINY).edit(tiny, batch_of([short]), ready(tiny))
    assert {type(update) for update in patch.updates.values()} == {LowRank}


def test_a_batch_adds_the_updates_of_its_edits_up(tiny: EditableModel) -> None:
    editor, known = Mend(TINY), ready(tiny)
    together = editor.edit(tiny, batch_of(SIX_REQUESTS), known)
    alone = editor.edit_each(tiny, SIX_REQUESTS, known)
    for name in together.updates:
        total = torch.stack([patch.dense(name) for patch in alone]).sum(0)
        torch.testing.assert_close(together.dense(name), total, rtol=1e-3, atol=1e-4)


def test_batches_of_one_pass_do_not_meet(tiny: EditableModel) -> None:
    known, where = ready(tiny), places(tiny)
    nets = EditorNets(known.tensors, known.tensors, where.shapes)
    episodes = [whole_episode(edit) for edit in TRAINING_EDITS[:3]]
    batches = [compatible(episodes[:2]), compatible(episodes[2:])]
    updates = [terms(nets, factors) for factors in batch_factors(tiny, batches, where)]
    with torch.no_grad():
        together = ask(tiny, batches, where).losses(updates)
        apart = [ask(tiny, [b], where).losses([u]) for b, u in zip(batches, updates, strict=True)]
    for both, parts in zip(together, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(both, torch.cat(parts), rtol=1e-3, atol=1e-5)


def test_terms_of_training_are_the_weights_of_the_edit(tiny: EditableModel) -> None:
    known, where, edit = ready(tiny), places(tiny), TRAINING_EDITS[0]
    nets = EditorNets(known.tensors, known.tensors, where.shapes)
    batch = [[whole_episode(edit)]]
    with torch.no_grad():
        seen = ask(tiny, batch, where).losses([terms(nets, factors) for factors in batch_factors(tiny, batch, where)])[0]
        tiny.push(Mend(TINY).edit(tiny, batch_of([edit.request]), known))
        after = ask(tiny, batch, where)
        # The stop is the one that the model preferred before the edit.
        tiny.rollback(0)
        labels = ask(tiny, batch, where).reading.labels
    written = row_losses(after.reading.base, labels)[after.is_new]
    torch.testing.assert_close(seen, written, rtol=1e-3, atol=1e-4)


def test_kept_prompts_that_another_edit_of_the_batch_changes_are_dropped() -> None:
    first, second = (whole_episode(edit) for edit in TRAINING_EDITS[:2])
    clash = (second.edit.request.prompt, "London")
    batch = compatible([replace(first, kept=(*first.kept, clash)), second])
    assert clash not in batch[0].kept
    assert batch[0].kept[0] == first.kept[0]


def test_passes_lose_no_episode_and_keep_batches_apart() -> None:
    episodes = [draw_episode(TRAINING_EDITS, i, 0, 1, 1) for i in range(7)]
    batches = slices(episodes, 3)
    parts = [part for some in passes(batches, 2) for part in some]
    assert [e for _, some in parts for e in some] == episodes
    assert [n for n, some in parts for _ in some] == [0, 0, 0, 1, 1, 1, 2]
    assert all(sum(len(some) for _, some in group) <= 2 for group in passes(batches, 2))


@pytest.mark.parametrize("size", [1, 4])
def test_edits_that_change_nothing_keep_all_locality(size: int, tiny: EditableModel) -> None:
    def nothing(factors: object) -> dict[str, LowRank]:
        shapes = places(tiny).shapes
        return {path: LowRank(torch.zeros(d_out, 1), torch.zeros(d_in, 1)) for path, (d_out, d_in) in shapes.items()}

    known = tiny.generate([TRAINING_EDITS[0].request.prompt], 3)[0].strip()
    edit = replace(TRAINING_EDITS[0], kept=((TRAINING_EDITS[1].request.prompt, known), *TRAINING_EDITS[0].kept))
    found = success_of(tiny, [edit, *TRAINING_EDITS[2:]], places(tiny), nothing, size)
    assert found["success"] == found["generalization"] == 0.0
    assert found.get("locality", 1.0) == 1.0


def test_training_lowers_the_loss_it_is_given() -> None:
    fast = {"updates": 20, "learning_rate": 0.01, "rate_learning_rate": 0.1, "edit_weight": 1.0, "batch_sizes": (1,)}
    curve = Mend(TINY.model_copy(update=fast)).prepare(tiny_model(), CORPUS).meta["curve"]
    assert curve[-1]["edited"] < 0.8 * curve[0]["edited"]


def test_the_bound_on_the_norm_asks_for_no_new_preparation() -> None:
    keys = [Mend(TINY.model_copy(update=change)).preparation_key() for change in ({"max_relative_norm": 1.0}, {}, {"rank": 5})]
    assert keys[0] == keys[1] != keys[2]


def test_a_corpus_without_training_edits_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="two subjects"):
        Mend(TINY).prepare(tiny, Corpus(TEXTS))


def test_an_update_that_is_too_large_is_refused_by_name(tiny: EditableModel) -> None:
    strict = Mend(TINY.model_copy(update={"max_relative_norm": 1e-6}))
    before = tiny.state_digest()
    with pytest.raises(EditRefused, match="r1"):
        strict.edit(tiny, batch_of(SIX_REQUESTS[:1]), ready(tiny))
    assert tiny.state_digest() == before


def test_the_card_of_a_preparation_says_how_it_did_on_other_subjects() -> None:
    meta = prepared().meta
    assert set(meta["held_out"]) == {"batch of 1", "batch of 2"}
    assert meta["training_edits"] + meta["held_out_edits"] == len(TRAINING_EDITS)
    assert len(meta["curve"]) == TINY.updates


def test_updates_draw_every_training_edit_once_a_round_in_batches_that_need_not_divide() -> None:
    config = TINY.model_copy(update={"batch_sizes": (2,)})
    batches = [batch for number in range(4) for batch in draw_batches(TRAINING_EDITS, number, config)]
    assert [len(batch) for batch in batches] == [2, 1] * 4
    drawn = [episode.edit.request.request_id for batch in batches for episode in batch]
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == sorted(e.request.request_id for e in TRAINING_EDITS)


def test_joined_factors_keep_every_token(tiny: EditableModel) -> None:
    every = request_factors(tiny, SIX_REQUESTS, places(tiny))
    path = next(iter(every[0]))
    whole = joined(every)[path]
    assert len(whole.row) == sum(len(f[path].row) for f in every)
    assert whole.row.unique().tolist() == list(range(6))
