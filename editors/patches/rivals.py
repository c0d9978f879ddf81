"""Each slot's largest answer to another slot's states: where a slot comes or goes, its own pairs alone are met.

An answer is exact (`editors.exact`), so the largest of some and the largest of the rest are the largest of all, to the bit:
what is brought up to date pair by pair equals what is computed from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from editors.exact import grid_product, on_grid

#: Slots whose filters and states are met at once.
FILTERS_AT_ONCE, STATES_AT_ONCE = 256, 512
#: Stands for a rival that is no longer there.
GONE = "\0"


class Met(Protocol):
    """What is needed of a slot: its filter answers to states around its mean."""

    @property
    def subject(self) -> str: ...
    @property
    def states(self) -> Tensor: ...
    @property
    def filter(self) -> Tensor: ...
    @property
    def mean(self) -> Tensor: ...


SlotT = TypeVar("SlotT", bound=Met)


class Rivals(Generic[SlotT]):
    """The largest answers of a set of slots, and whose state each is to.

    Attributes:
        pairs: of a filter and another slot's states that were met so far.
    """

    def __init__(self) -> None:
        self._slots: dict[str, SlotT] = {}
        self._most: dict[str, float] = {}
        self._by: dict[str, str] = {}
        self.pairs = 0

    def answers(self, slots: Sequence[SlotT]) -> Tensor:
        """(slots,) the largest answer of each slot's filter to the states of any other of them; -inf where there is no other.

        What was there before and is the same object now is met with what is new alone; where the slot that gave the largest
        answer is gone, with all.
        """
        known = {s.subject for s in slots if self._slots.get(s.subject) is s}
        fresh = [s for s in slots if s.subject not in known]
        lost = [s for s in slots if s.subject in known and s.subject in self._by and self._by[s.subject] not in known]
        anew = {s.subject for s in (*fresh, *lost)}
        for slot in (*fresh, *lost):
            self._most[slot.subject] = float("-inf")
            self._by.pop(slot.subject, None)
        self._meet([s for s in slots if s.subject not in anew], fresh)
        self._meet([*fresh, *lost], slots)
        self._slots = {s.subject: s for s in slots}
        self._most = {s.subject: self._most[s.subject] for s in slots}
        self._by = {subject: by for subject, by in self._by.items() if subject in self._slots}
        return torch.tensor([self._most[s.subject] for s in slots], dtype=torch.float32)

    def found(self) -> Mapping[str, tuple[SlotT, float, str | None]]:
        """By subject: the slot, its largest answer, and the subject of the slot that this is to."""
        return {subject: (slot, self._most[subject], self._by.get(subject)) for subject, slot in self._slots.items()}

    def take(self, found: Mapping[str, tuple[SlotT, float, str | None]]) -> None:
        """Go on from what was `found` of these very slots before; a rival that is none of them is `GONE`."""
        self._slots = {subject: slot for subject, (slot, _, _) in found.items()}
        self._most = {subject: most for subject, (_, most, _) in found.items()}
        self._by = {subject: by for subject, (_, _, by) in found.items() if by is not None}

    def _meet(self, rows: Sequence[SlotT], others: Sequence[SlotT]) -> None:
        if not rows or not others:
            return
        places = {other.subject: at for at, other in enumerate(others)}
        for centre, members in by_mean(rows):
            for start in range(0, len(others), STATES_AT_ONCE):
                some = others[start : start + STATES_AT_ONCE]
                around = on_grid(torch.cat([s.states for s in some]) - centre)
                lengths = torch.tensor([len(s.states) for s in some])
                owner = torch.arange(len(some)).repeat_interleave(lengths) + start
                for part in members.split(FILTERS_AT_ONCE):
                    slots = [rows[i] for i in part.tolist()]
                    own = torch.tensor([places.get(s.subject, -1) for s in slots])
                    self._note(slots, own, others, owner, grid_product(on_grid(torch.stack([s.filter for s in slots])), around))

    def _note(self, slots: Sequence[SlotT], own: Tensor, others: Sequence[SlotT], owner: Tensor, answers: Tensor) -> None:
        answers[owner[None, :] == own[:, None]] = float("-inf")
        self.pairs += len(slots) * len(owner.unique())
        best, at = answers.max(1)
        for slot, answer, to in zip(slots, best.float().tolist(), owner[at].tolist(), strict=True):
            if answer > self._most[slot.subject]:
                self._most[slot.subject], self._by[slot.subject] = answer, others[to].subject


def by_mean(slots: Sequence[Met]) -> list[tuple[Tensor, Tensor]]:
    """(mean, rows of its slots): one pair for each preparation that slots come from, nearly always one in all."""
    groups: dict[bytes, tuple[Tensor, list[int]]] = {}
    for row, slot in enumerate(slots):
        groups.setdefault(slot.mean.contiguous().numpy().tobytes(), (slot.mean, []))[1].append(row)
    return [(mean, torch.tensor(rows)) for mean, rows in groups.values()]
