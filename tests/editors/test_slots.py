"""Gates are made from stored slots exactly: a set and its subset, memory and file, one place and another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from editors.errors import PatchError
from editors.patches.slots import SlotGates, SlotPatch, gates_of
from editors.patches.weight import LowRank, WeightPatch
from tests.awkward import OFFSETS, awkward, awkward_slot, fixed
from tests.machines import fixed_model, fixed_slot

pytestmark = pytest.mark.law
MEAN = fixed(32, seed=7)
SLOTS = [fixed_slot(i) for i in range(40)]


def made(slots: list) -> SlotGates:
    return gates_of(slots, gap_share=0.5, ramp_share=0.5)


def equal(one: SlotGates, other: SlotGates) -> bool:
    return all(torch.equal(t, vars(other)[name]) for name, t in vars(one).items())


@pytest.mark.parametrize("offset", OFFSETS)
def test_gates_are_equal_wherever_the_slots_lie(offset: int) -> None:
    assert equal(made([awkward_slot(s, offset) for s in SLOTS]), made(SLOTS))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 33])
def test_offsets_of_some_slots_are_those_of_all(count: int) -> None:
    """Thresholds depend on the set; what belongs to one slot alone must not."""
    few, all_of_them = made(SLOTS[:count]), made(SLOTS)
    rows = [sorted(s.subject for s in SLOTS).index(name) for name in sorted(s.subject for s in SLOTS[:count])]
    assert torch.equal(few.offsets, all_of_them.offsets[rows]) and torch.equal(few.filters, all_of_them.filters[rows])


def test_thresholds_of_a_set_are_the_worst_of_all_its_pairs() -> None:
    """So a new slot can be met with the others by itself, and nothing shows that it came later."""
    whole = made(SLOTS)
    ordered = sorted(SLOTS, key=lambda s: s.subject)
    for row, slot in enumerate(ordered):
        pairs = [made([slot, other]) for other in ordered if other is not slot]
        place = [0 if slot.subject < other.subject else 1 for other in ordered if other is not slot]
        assert float(whole.low[row]) == max(float(p.low[i]) for p, i in zip(pairs, place, strict=True))


def test_a_gates_filter_is_the_slots_own() -> None:
    """Slots of today lie on the grid already: what was measured with a filter holds of what is served."""
    assert torch.equal(made(SLOTS).filters, torch.stack([s.filter for s in sorted(SLOTS, key=lambda s: s.subject)]))


def test_patches_of_before_say_so_and_are_served_from_the_grid() -> None:
    off_grid = fixed(32, seed=3)
    slot = SLOTS[0].__class__(**{**vars(SLOTS[0]), "filter": off_grid})
    old = SlotPatch("transformer.h.1.mlp", MEAN, 0.5, 0.5, {slot.subject: slot}, grid=0)
    assert not old.rederivable and "grid" not in old.meta
    again = SlotPatch.from_parts(old.tensors, old.meta)
    assert again.digest == old.digest and not again.rederivable
    assert not torch.equal(made([slot]).filters[0], off_grid)
    torch.testing.assert_close(made([slot]).filters[0], off_grid, rtol=0, atol=float(off_grid.abs().max()) * 2.0**-18)


def test_weight_patches_of_before_say_so_and_keep_their_digest() -> None:
    update = LowRank(fixed(5, 2), fixed(4, 2))
    old = WeightPatch({"w": update}, {"made": "then"}, product="")
    again = WeightPatch.from_parts(old.tensors, old.meta)
    assert again.digest == old.digest != WeightPatch({"w": update}, {"made": "then"}).digest
    assert not again.rederivable and WeightPatch({"w": update}).rederivable


def test_a_grid_that_this_release_does_not_know_is_refused() -> None:
    patch = SlotPatch("transformer.h.1.mlp", MEAN, 0.5, 0.5, {})
    with pytest.raises(PatchError, match="grid of 24 bits, this release has 20; update errata"):
        SlotPatch.from_parts(patch.tensors, {**patch.meta, "grid": 24})


def test_a_models_weights_lie_well_wherever_they_were_read_from() -> None:
    model = fixed_model("gpt2")
    model.hf.transformer.h[0].mlp.c_fc.weight.data = awkward(model.hf.transformer.h[0].mlp.c_fc.weight.data)
    again = type(model)(model.hf, model.tokenizer)
    assert all(p.data_ptr() % 64 == 0 for p in again.hf.parameters()) and again.base_digest == model.base_digest


def test_slots_of_another_preparation_stand_beside_the_others() -> None:
    """Made anew on another machine, a preparation has other last bits; the lineage goes on all the same."""
    site, other = "transformer.h.1.mlp", MEAN + 0.125
    model = fixed_model("gpt2")
    model.push(SlotPatch(site, MEAN, 0.5, 0.5, {s.subject: s for s in SLOTS[:3]}))
    model.push(SlotPatch(site, other, 0.5, 0.5, {s.subject: replace(s, mean=other) for s in SLOTS[3:5]}))
    book = model.memories[f"slots:{site}"]
    for row, slot in enumerate(sorted(SLOTS[:5], key=lambda s: s.subject)):
        centre = other if slot in SLOTS[3:5] else MEAN
        assert float(book.gates.offsets[row]) == pytest.approx(
            float(slot.filter.double() @ centre.double()), rel=1e-5, abs=1e-6
        )
        states = torch.cat([s.states for s in SLOTS[:5] if s is not slot]) - centre
        worst = min(max(slot.foreign, float((states.double() @ slot.filter.double()).max())), 0.9 * slot.own)
        assert float(book.gates.low[row]) == pytest.approx((worst + slot.own) / 2, rel=1e-4)


def test_a_patch_keeps_the_means_of_slots_from_another_preparation() -> None:
    changed = {SLOTS[0].subject: replace(SLOTS[0], mean=MEAN + 1), SLOTS[1].subject: SLOTS[1]}
    patch = SlotPatch("transformer.h.1.mlp", MEAN, 0.5, 0.5, changed)
    again = SlotPatch.from_parts(patch.tensors, patch.meta)
    assert again.digest == patch.digest
    first, second = again.changes[SLOTS[0].subject], again.changes[SLOTS[1].subject]
    assert first is not None and second is not None
    assert torch.equal(first.mean, MEAN + 1) and torch.equal(second.mean, MEAN)


def test_slots_made_with_other_shares_are_refused() -> None:
    model = fixed_model("gpt2")
    model.push(SlotPatch("transformer.h.1.mlp", MEAN, 0.5, 0.5, {SLOTS[0].subject: SLOTS[0]}))
    with pytest.raises(PatchError, match=r"ramp_share 0\.5, the patch has 0\.5 and 0\.25"):
        model.push(SlotPatch("transformer.h.1.mlp", MEAN, 0.5, 0.25, {SLOTS[1].subject: SLOTS[1]}))


# ------------------------------------------------------------ what opens at a token


STATES = torch.cat([torch.cat([s.states for s in SLOTS[:12]]), fixed(64, 32, seed=11)])


def test_how_far_a_slot_opens_is_the_same_beside_other_slots_and_other_tokens() -> None:
    gates = made(SLOTS)
    whole = gates.opening(STATES)
    partly = (whole > 0) & (whole < 1)
    assert bool(partly.any()) and bool((whole == 1).any()) and bool((whole == 0).any())
    for rows, slots in (([3], [5]), ([0, 7, 30], [1, 2, 8, 39]), (range(20), range(0, 40, 3))):
        few = gates.only(torch.tensor(list(slots))).opening(STATES[list(rows)])
        assert torch.equal(few, whole[list(rows)][:, list(slots)])


def test_how_far_a_slot_opens_is_the_ramp_of_its_score() -> None:
    gates = made(SLOTS)
    scores = STATES.double() @ gates.filters.double().t() - gates.offsets
    wanted = ((scores - gates.low) / (gates.high.double() - gates.low)).clamp(0, 1)
    assert float((gates.opening(STATES) - wanted).abs().max()) < 1e-4


def test_what_is_added_at_a_token_is_the_sum_over_its_open_slots() -> None:
    gates = made(SLOTS)
    where, change = gates.opened(STATES).change(gates.values)
    wanted = gates.opening(STATES) @ gates.values
    full = torch.zeros_like(wanted)
    full[where] = change
    assert int((gates.opening(STATES) > 0).sum(1).max()) > 2  # several slots at one token
    torch.testing.assert_close(full, wanted, rtol=1e-4, atol=1e-5)


def test_a_state_that_is_no_number_opens_every_slot() -> None:
    """A broken model must show as broken, not as one that no slot touches."""
    assert bool(made(SLOTS).opening(torch.full((1, 32), float("nan"))).isnan().all())
