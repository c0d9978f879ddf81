"""Thresholds of a growing set: new slots are met with the old ones alone, and nothing shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editors.patches.rivals import Rivals
from editors.patches.slots import SlotBook, SlotGates, SlotPatch, gates_of, slots_name
from editors.proof.kept_rivals import keep_rivals, recall_rivals
from tests.awkward import fixed
from tests.machines import fixed_slot
from tests.support import tiny_model

pytestmark = pytest.mark.law
#: Some slots come from another preparation.
SLOTS = [replace(slot, mean=fixed(32, seed=5)) if i % 5 == 0 else slot for i, slot in enumerate(map(fixed_slot, range(24)))]
CPU = torch.device("cpu")


def equal(one: SlotGates, other: SlotGates) -> bool:
    return all(torch.equal(t, vars(other)[name]) for name, t in vars(one).items())


def whole(slots: list) -> SlotGates:
    """The thresholds worked out from all pairs at once, without any of the code that meets them."""
    made = gates_of(slots, 0.5, 0.5)
    ordered = sorted(slots, key=lambda s: s.subject)
    for row, slot in enumerate(ordered):
        vector = slot.filter.double()
        others = [float(((s.states - slot.mean).double() @ vector).max()) for s in ordered if s is not slot]
        foreign = min(max([slot.foreign, *others]), 0.9 * slot.own)
        assert float(made.low[row]) == pytest.approx(foreign + 0.5 * (slot.own - foreign), rel=1e-4)
    return made


def book_of(slots: list, rivals: Rivals | None = None) -> SlotBook:
    book = SlotBook(0.5, 0.5, CPU, rivals)
    for slot in slots:
        book.put(slot.subject, slot)
    return book


SETS = st.lists(st.sets(st.sampled_from(range(len(SLOTS))), min_size=1), min_size=2, max_size=5)


@settings(max_examples=25, deadline=None)
@given(SETS)
def test_thresholds_of_any_course_of_sets_are_those_of_each_set_alone(course: list[set[int]]) -> None:
    """Slots come, go and come again, in one process or with what it kept in a file."""
    rivals = Rivals()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kept"
        for chosen in course:
            slots = [SLOTS[i] for i in sorted(chosen)]
            wanted = gates_of(slots, 0.5, 0.5)
            assert equal(book_of(slots, rivals).gates, wanted)
            later = book_of([replace(s) for s in slots])  # other objects, as another process reads them
            recall_rivals(path, later)
            assert equal(later.gates, wanted)
            keep_rivals(path, later.rivals)


def test_thresholds_are_the_worst_of_all_pairs() -> None:
    whole(SLOTS)


def test_a_changed_slot_is_met_anew() -> None:
    book = book_of(SLOTS)
    assert len(book.gates.low) == len(SLOTS)
    other = replace(SLOTS[3], states=SLOTS[3].states * 3, filter=SLOTS[9].filter)
    book.put(other.subject, other)
    assert equal(book.gates, gates_of([*SLOTS[:3], other, *SLOTS[4:]], 0.5, 0.5))


def test_new_slots_are_met_with_the_others_alone(tmp_path: Path) -> None:
    rivals, n, k = Rivals(), 20, 4
    rivals.answers(SLOTS[:n])
    rivals.pairs = 0
    rivals.answers(SLOTS[: n + k])
    assert rivals.pairs <= 2 * k * n + k * k
    keep_rivals(tmp_path / "kept", rivals)
    book = book_of([replace(s) for s in SLOTS[: n + k]])
    recall_rivals(tmp_path / "kept", book)
    assert len(book.gates.low) == n + k and book.rivals.pairs == 0


def test_a_rollback_and_a_replay_meet_no_pair_again() -> None:
    model, site = tiny_model(), "transformer.h.1.mlp"
    for part in (SLOTS[:10], SLOTS[10:]):
        model.push(SlotPatch(site, SLOTS[1].mean, 0.5, 0.5, {s.subject: s for s in part}))
    first = model.memories[slots_name(site)].gates
    met = model.memories[slots_name(site)].rivals.pairs
    patches = list(model.patches)
    model.rollback(0)
    for patch in patches:
        model.push(patch)
    again = model.memories[slots_name(site)]
    assert equal(again.gates, first) and again.rivals.pairs == met > 0


def test_a_damaged_file_is_as_none(tmp_path: Path) -> None:
    rivals = Rivals()
    rivals.answers(SLOTS)
    keep_rivals(tmp_path / "kept", rivals)
    data = (tmp_path / "kept").read_bytes()
    (tmp_path / "kept").write_bytes(data[:-1])
    book = book_of(SLOTS)
    recall_rivals(tmp_path / "kept", book)
    assert not book.rivals.found() and equal(book.gates, gates_of(SLOTS, 0.5, 0.5))
