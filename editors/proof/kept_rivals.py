"""Largest answers of slots to each other, kept between processes: a night meets its new slots with the old ones alone."""

from __future__ import annotations

from pathlib import Path

import torch

from editors.model import EditableModel, tensor_bytes
from editors.patches.rivals import GONE, Rivals
from editors.patches.slots import Slot, SlotBook
from editors.proof.sealed import read_sealed, write_sealed
from editors.proof.states import bytes_of, name_of, names_of
from warehouse.digests import digest_of


def rivals_file(root: Path, model: EditableModel, site: str) -> Path:
    """Where they lie. They are exact, so another machine finds the same."""
    return root / f"{digest_of('rivals', model.base_digest, site)[:32]}.rivals"


def recall_rivals(path: Path, book: SlotBook) -> None:
    """Let a book whose thresholds are not made yet go on from the last set of slots; the same without such a file."""
    held = read_sealed(path)
    if held is None:
        return
    place = {name: at for at, name in enumerate(names_of(held["names"]))}
    most, by = held["most"].tolist(), held["by"].tolist()
    here = {place[name]: subject for subject, slot in book.slots.items() if (name := _slot_name(slot)) in place}
    book.rivals.take(
        {
            subject: (book.slots[subject], most[at], None if by[at] < 0 else here.get(by[at], GONE))
            for at, subject in here.items()
        }
    )


def keep_rivals(path: Path, rivals: Rivals[Slot]) -> None:
    """Write what was found of the last set of slots."""
    found = rivals.found()
    place = {subject: at for at, subject in enumerate(found)}
    write_sealed(
        path,
        {
            "names": bytes_of([_slot_name(slot) for slot, _, _ in found.values()]),
            "most": torch.tensor([most for _, most, _ in found.values()], dtype=torch.float32),
            "by": torch.tensor([-1 if by is None else place[by] for _, _, by in found.values()], dtype=torch.int32),
        },
    )


def _slot_name(slot: Slot) -> bytes:
    """Of what its answers to others, and theirs to it, depend on."""
    return name_of(slot.subject.encode(), *(tensor_bytes(t) for t in (slot.filter, slot.states, slot.mean)))
