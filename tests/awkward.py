"""Tensors that lie in memory as badly as a file may lay them: what must be equal is then never equal by luck."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from editors.patches.slots import Slot

#: In entries. 1 to 3 are no multiple of a vector's width, 17 passes a cache line.
OFFSETS = (1, 2, 3, 17)


def awkward(tensor: Tensor, offset: int = 1) -> Tensor:
    """Equal entries and shape, beginning `offset` entries into their storage."""
    room = torch.empty(offset + tensor.numel(), dtype=tensor.dtype)
    room[offset:] = tensor.flatten()
    return room[offset:].view(tensor.shape)


def strided(tensor: Tensor, step: int = 3) -> Tensor:
    """Equal entries and shape, `step` entries apart along the last axis."""
    room = torch.empty(*tensor.shape, step, dtype=tensor.dtype)
    room[..., 0] = tensor
    return room[..., 0]


def layouts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor in every bad place."""
    yield from (awkward(tensor, offset) for offset in OFFSETS)
    yield strided(tensor)


def awkward_slot(slot: Slot, offset: int = 1) -> Slot:
    """A slot whose tensors all lie at odd places."""
    return replace(
        slot,
        states=awkward(slot.states, offset),
        filter=awkward(slot.filter, offset + 1),
        value=awkward(slot.value, offset + 2),
        mean=awkward(slot.mean, offset + 3),
    )


def fixed(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers that are the same on every machine: torch's generators differ between instruction sets."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
