"""Where edits changed a model: per parameter the size, share and rank of the change; per site the slots beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.model import EditableModel
from editors.patches.slots import Slot, SlotBook, slots_name
from editors.precision import wide


@dataclass(frozen=True)
class Footprint:
    """The change of one parameter since the base model.

    Attributes:
        norm_ratio: Frobenius norm of the change over that of the base weight.
        changed: share of entries that differ.
        effective_rank: exp of the entropy of the normalised singular values (Roy and Vetterli 2007); 1 for vectors.
        spectral_ratio: largest singular value of the change over that of the base weight.
    """

    parameter: str
    shape: tuple[int, ...]
    norm_ratio: float
    changed: float
    effective_rank: float
    spectral_ratio: float


def effective_rank(matrix: Tensor) -> float:
    """exp(H(p)), p the singular values over their sum: k for k equal ones, 0 for a zero matrix."""
    values = torch.linalg.svdvals(wide(matrix))
    total = values.sum()
    if not float(total):
        return 0.0
    share = values / total
    return float(torch.special.entr(share).sum().exp())


def changed_weights(model: EditableModel) -> dict[str, Tensor]:
    """A copy of every parameter that differs from the base: what `footprint` takes as its `since`."""
    return {name: model.parameter(name).clone() for name in model.changed_parameters()}


def footprint(model: EditableModel, since: Mapping[str, Tensor] | None = None) -> list[Footprint]:
    """The footprint of all patches on the model, for every parameter that they changed, in the model's order.

    Slots, memories and texts change no weight, so editors of that kind have no footprint here; for slots see
    `slot_footprint`.

    Args:
        since: parameters of another state of the same base, where they differ from it; default: the base itself.
    """
    earlier = since or {}
    names = sorted({*model.changed_parameters(), *earlier}, key=list(model.parameter_names()).index)
    found = []
    for name in names:
        base = model.base_parameter(name).float()
        change = model.parameter(name).float() - earlier.get(name, base).float()
        if not bool(change.any()):
            continue
        matrix = change if change.ndim == 2 else change.reshape(1, -1)
        found.append(
            Footprint(
                name,
                tuple(change.shape),
                float(change.norm() / base.norm().clamp_min(1e-30)),
                float((change != 0).float().mean()),
                effective_rank(matrix),
                _spectral(matrix) / max(_spectral(base.reshape(matrix.shape)), 1e-30),
            )
        )
    return found


def _spectral(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


@dataclass(frozen=True)
class SlotFootprint:
    """The slots beside one feed-forward: no weight differs for them.

    Attributes:
        slots, edits: how many there are now; a slot holds all edits of its subject.
        added, changed, removed: subjects, since the other state.
        median_norm: of what the slots add to the feed-forward's output when they are open; 0 without a slot.
    """

    site: str
    slots: int
    edits: int
    added: int
    changed: int
    removed: int
    median_norm: float


def worn_slots(model: EditableModel) -> dict[str, dict[str, Slot]]:
    """The slots of every site by subject: what `slot_footprint` takes as its `since`."""
    return {name: dict(book.slots) for name, book in model.memories.items() if isinstance(book, SlotBook)}


def slot_footprint(model: EditableModel, since: Mapping[str, Mapping[str, Slot]] | None = None) -> list[SlotFootprint]:
    """The slots that a model wears, site by site.

    Args:
        since: slots of another state of the same base; default: none, as the base has.
    """
    earlier, now = since or {}, worn_slots(model)
    found = []
    for name in sorted({*earlier, *now}):
        old, new = earlier.get(name, {}), now.get(name, {})
        norms = torch.tensor([float(slot.value.norm()) for slot in new.values()] or [0.0])
        found.append(
            SlotFootprint(
                name.removeprefix(slots_name("")),
                len(new),
                sum(len(slot.requests) for slot in new.values()),
                len(new.keys() - old.keys()),
                sum(not _same(old[s], new[s]) for s in new.keys() & old.keys()),
                len(old.keys() - new.keys()),
                float(norms.median()),
            )
        )
    return found


def _same(one: Slot, other: Slot) -> bool:
    return one.requests == other.requests and torch.equal(one.value, other.value)
