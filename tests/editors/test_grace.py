"""GRACE: the codebook's rules, their exact undo, and where its values show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from editors.architectural.grace import Grace, GraceConfig
from editors.base import Corpus, Prepared
from editors.errors import EditRefused, PatchError
from editors.model import EditableModel
from editors.patches.memory import RETIRED, Codebook, MemoryPatch, RadiusChange, codebook_name
from editors.preparation import prepared_for
from editors.session import batch_of, run_edits
from tests.stand_ins import Ask
from tests.support import CORPUS, SIX_REQUESTS, prepared_once, request, tiny_model
from warehouse.records import EditRequest

#: One token, so that a random model can be brought to say it.
A = request(1, "Ada Lovelace", "is")
B = request(2, "Grace Hopper", "was")


def grace(**values: Any) -> Grace:
    # A random model tells prompts apart far less than a trained one: a small radius keeps A and B apart.
    return Grace(GraceConfig(**{"layer": 1, "num_steps": 40, "radius_share": 0.1, **values}))


def wide(model: EditableModel) -> tuple[Grace, Prepared]:
    """Radii so large that A and B are near each other."""
    editor = grace(radius_share=2.0)
    return editor, prepared_once(editor, model)


def edit(editor: Grace, model: EditableModel, asked: EditRequest, prepared: Prepared) -> MemoryPatch:
    return editor.edit(model, batch_of([asked]), prepared)


def book_of(model: EditableModel, layer: int = 1) -> Codebook:
    return model.memories[codebook_name(model.anatomy.block.format(layer=layer))]


def says(model: EditableModel, asked: EditRequest) -> bool:
    """Is the new answer's first token what comes next?"""
    return model.score([Ask(asked.prompt, asked.target_new)])[0].token_accuracy == 1.0


@pytest.mark.parametrize("site", ["mlp", "block"])
def test_an_edited_prompt_gives_its_answer_at_either_site(site: Any, tiny: EditableModel) -> None:
    editor = grace(site=site)
    tiny.push(edit(editor, tiny, A, prepared_once(editor, tiny)))
    assert says(tiny, A)


def test_prompts_far_from_every_key_are_untouched_to_the_bit(tiny: EditableModel) -> None:
    others = [r.prompt for r in SIX_REQUESTS[3:]]
    before = tiny.next_token_log_probs(others)
    editor = grace()
    tiny.push(edit(editor, tiny, A, prepared_once(editor, tiny)))
    assert (tiny.next_token_log_probs(others) == before).all()


def test_a_cold_start_is_random_and_seeded(tiny: EditableModel) -> None:
    prepared = grace().prepare(tiny, CORPUS)
    digests = [edit(grace(start="cold", seed=seed, num_steps=2), tiny, A, prepared).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


# ------------------------------------------------------------ rules


def test_a_far_prompt_makes_a_new_entry_with_the_first_radius(tiny: EditableModel) -> None:
    editor = grace()
    prepared = prepared_once(editor, tiny)
    for _ in run_edits(editor, tiny, SIX_REQUESTS[:4], prepared, mode="sequential"):
        pass
    assert len(book_of(tiny)) == 4
    assert book_of(tiny).radii.tolist() == pytest.approx([0.1 * prepared.meta["distance"]] * 4)


def test_a_near_prompt_with_another_answer_shares_the_way_and_rollback_restores_the_radius(tiny: EditableModel) -> None:
    editor, prepared = wide(tiny)
    tiny.push(edit(editor, tiny, A, prepared))
    old = float(book_of(tiny).radii[0])
    tiny.push(edit(editor, tiny, B, prepared))
    book = book_of(tiny)
    half = float(torch.dist(book.keys[0], book.keys[1])) / 2
    assert book.radii.tolist() == pytest.approx([half, half], rel=1e-4)
    assert book.radii[0] < book.radii[1]
    assert says(tiny, A) and says(tiny, B)
    tiny.rollback(1)
    assert book_of(tiny).radii.tolist() == [old]


def test_a_split_never_widens_an_older_radius(tiny: EditableModel) -> None:
    editor, prepared = wide(tiny)
    for asked in (A, B):
        tiny.push(edit(editor, tiny, asked, prepared))
    before = book_of(tiny).radii.clone()
    tiny.push(edit(editor, tiny, request(3, "Alan Turing", "in"), prepared))
    assert (book_of(tiny).radii[:2] <= before).all()


def test_the_same_answer_widens_the_radius_if_the_value_serves(tiny: EditableModel) -> None:
    editor = grace(radius_share=3.0, site="block", layer=3)
    prepared = prepared_once(editor, tiny)
    # At the last layer a value alone decides the next token, so it serves any prompt; the stop is not asked for.
    tiny._stops = torch.zeros_like(tiny.stops)
    tiny.push(edit(editor, tiny, A, prepared))
    book_of(tiny, 3).radii[0] = 1e-3
    second = edit(editor, tiny, request(9, "Grace Hopper", A.target_new), prepared)
    assert len(second.keys) == 0
    assert [(c.index, c.old) for c in second.changes] == [(0, pytest.approx(1e-3))]
    tiny.push(second)
    assert len(book_of(tiny, 3)) == 1
    assert book_of(tiny, 3).radii[0] > 1e-3
    assert says(tiny, request(9, "Grace Hopper", A.target_new))


def test_the_same_answer_makes_a_new_entry_where_the_old_value_fails(tiny: EditableModel) -> None:
    editor, prepared = wide(tiny)
    tiny.push(edit(editor, tiny, A, prepared))
    with torch.no_grad():
        book_of(tiny).values[0] = -book_of(tiny).values[0]
    patch = edit(editor, tiny, request(9, "Grace Hopper", A.target_new), prepared)
    assert len(patch.keys) == 1
    assert not patch.changes


def test_the_same_prompt_met_again_retires_its_old_entry(tiny: EditableModel) -> None:
    editor = grace()
    prepared = prepared_once(editor, tiny)
    tiny.push(edit(editor, tiny, A, prepared))
    newer = request(5, "Ada Lovelace", "was")
    tiny.push(edit(editor, tiny, newer, prepared))
    assert book_of(tiny).radii[0] == RETIRED
    assert says(tiny, newer) and not says(tiny, A)
    tiny.rollback(1)
    assert says(tiny, A) and not says(tiny, newer)


def test_independent_edits_are_planned_against_the_codebook_as_it_stands(tiny: EditableModel) -> None:
    editor = grace()
    prepared = prepared_once(editor, tiny)
    tiny.push(edit(editor, tiny, A, prepared))
    patches = editor.edit_each(tiny, [B, request(5, "Ada Lovelace", "was"), A], prepared)
    assert [p.start for p in patches] == [1, 1, 1]
    assert [len(p.keys) for p in patches[:2]] == [1, 1]
    assert patches[0].changes == ()
    assert [c.new for c in patches[1].changes] == [RETIRED]


# ------------------------------------------------------------ codebook and patch


def test_a_decision_does_not_depend_on_how_many_prompts_are_asked_at_once() -> None:
    book, generator = Codebook(64, 4, torch.device("cpu")), torch.Generator().manual_seed(0)
    keys = 100 + torch.randn(300, 64, generator=generator)
    for i in range(300):
        book.append(keys[i : i + 1], torch.zeros(1, 4), torch.ones(1), [(i,)], [str(i)])
    index, distance = book.nearest(keys)
    assert len(book) == 300
    assert index.tolist() == list(range(300))
    assert float(distance.max()) < 1e-4
    assert book.labels[299] == (299,)


def test_retired_entries_are_never_nearest() -> None:
    book = Codebook(2, 2, torch.device("cpu"))
    book.append(
        torch.tensor([[0.0, 0.0], [5.0, 0.0]]),
        torch.zeros(2, 2),
        torch.tensor([RETIRED, 1.0]),
        [(1,), (2,)],
        ["a", "b"],
    )
    index, _ = book.nearest(torch.tensor([[0.1, 0.0]]))
    assert index.tolist() == [1]


def test_a_patch_fits_only_the_codebook_it_was_made_on(tiny: EditableModel) -> None:
    editor = grace()
    prepared = prepared_once(editor, tiny)
    first = edit(editor, tiny, A, prepared)
    tiny.push(first)
    second = edit(editor, tiny, B, prepared)
    state = tiny.state_digest()
    with pytest.raises(PatchError, match="0 entries, the model has 1"):
        tiny.push(first)
    assert tiny.state_digest() == state
    assert says(tiny, A)
    tiny.rollback(0)
    with pytest.raises(PatchError, match="1 entries, the model has 0"):
        tiny.push(second)


def test_a_patch_that_expects_another_radius_is_refused(tiny: EditableModel) -> None:
    editor = grace()
    prepared = prepared_once(editor, tiny)
    tiny.push(edit(editor, tiny, A, prepared))
    none = torch.empty(0, 32)
    site = tiny.anatomy.block.format(layer=1)
    with pytest.raises(PatchError, match="radius"):
        tiny.push(MemoryPatch(site, 1, none, none, torch.empty(0), [], [], [RadiusChange(0, 123.0, 1.0)]))


def test_parts_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 keys"):
        MemoryPatch("x", 0, torch.zeros(2, 3), torch.zeros(1, 3), torch.zeros(2), [[1], [2]], ["a", "b"])


def test_a_patch_carries_only_its_own_entry(tiny: EditableModel) -> None:
    editor = grace()
    prepared = prepared_once(editor, tiny)
    patches = [s.patch for s in run_edits(editor, tiny, SIX_REQUESTS, prepared, mode="sequential")]
    assert {p.num_bytes for p in patches} == {(32 + 32 + 1) * 4}


def test_text_without_a_prompt_is_read_as_by_the_base(tiny: EditableModel) -> None:
    before = tiny.log_likelihoods([A.prompt + " is."])
    editor = grace()
    tiny.push(edit(editor, tiny, A, prepared_once(editor, tiny)))
    assert tiny.log_likelihoods([A.prompt + " is."]) == before


# ------------------------------------------------------------ preparation and refusals


def test_preparation_survives_the_disk(tiny: EditableModel, tmp_path: Path) -> None:
    made = prepared_for(grace(), tiny, CORPUS, tmp_path)
    assert prepared_for(grace(), tiny, CORPUS, tmp_path).digest == made.digest
    assert made.meta["distance"] > 0 and made.meta["output_size"] > 0


def test_preparation_does_not_depend_on_the_optimiser() -> None:
    assert grace(learning_rate=0.1).preparation_key() == grace(num_steps=7, radius_share=2.0).preparation_key()
    assert grace(site="mlp").preparation_key() != grace(site="block").preparation_key()


@pytest.mark.parametrize("texts", [(), ("one",), ("a", "a")])
def test_too_few_texts_are_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="texts"):
        grace().prepare(tiny_model(), Corpus(texts))


@pytest.mark.parametrize("share", [0.1, 2.0], ids=["apart", "near"])
def test_a_batch_leaves_the_entries_and_radii_of_the_same_edits_in_sequence(tiny: EditableModel, share: float) -> None:
    editor = grace(radius_share=share)
    prepared = prepared_once(editor, tiny)
    earlier = edit(editor, tiny, SIX_REQUESTS[3], prepared)
    tiny.push(earlier)
    together = editor.edit(tiny, batch_of([A, B, SIX_REQUESTS[4]]), prepared)
    tiny.push(together)
    at_once = book_of(tiny).copy()
    tiny.rollback(1)
    for asked in (A, B, SIX_REQUESTS[4]):
        tiny.push(edit(editor, tiny, asked, prepared))
    one_by_one = book_of(tiny)
    assert at_once.request_ids == one_by_one.request_ids
    torch.testing.assert_close(at_once.keys, one_by_one.keys)
    torch.testing.assert_close(at_once.radii, one_by_one.radii)


def test_a_batch_comes_off_exactly(tiny: EditableModel) -> None:
    editor, prepared = wide(tiny)
    tiny.push(edit(editor, tiny, A, prepared))
    keys, radii = book_of(tiny).keys.clone(), book_of(tiny).radii.clone()
    tiny.push(editor.edit(tiny, batch_of([B, SIX_REQUESTS[4]]), prepared))
    tiny.rollback(1)
    assert torch.equal(book_of(tiny).keys, keys) and torch.equal(book_of(tiny).radii, radii)


def test_a_value_that_runs_away_is_refused() -> None:
    # GPT-2 only: Llama's norm sends an infinite state to zero.
    with pytest.raises(EditRefused, match="r1"):
        edit(grace(learning_rate=1e36), tiny_model("gpt2"), A, Prepared(meta={"distance": 1.0, "output_size": 1.0}))
