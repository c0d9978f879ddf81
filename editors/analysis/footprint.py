"""Where edits changed the weights: per parameter its size, its share of entries, its effective rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from editors.model import EditableModel


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
    values = torch.linalg.svdvals(matrix.double())
    total = values.sum()
    if not float(total):
        return 0.0
    share = values / total
    return float(torch.special.entr(share).sum().exp())


def footprint(model: EditableModel) -> list[Footprint]:
    """The footprint of all patches on the model, for every parameter that differs from the base, in the model's order.

    Memories and texts change no weight, so an editor of that kind has no footprint here.
    """
    found = []
    for name in model.changed_parameters():
        base = model.base_parameter(name).float()
        change = model.parameter(name).float() - base
        matrix = change if change.ndim == 2 else change.reshape(1, -1)
        found.append(Footprint(
            name, tuple(change.shape), float(change.norm() / base.norm().clamp_min(1e-30)),
            float((change != 0).float().mean()), effective_rank(matrix),
            float(torch.linalg.matrix_norm(matrix, 2) / torch.linalg.matrix_norm(base.reshape(matrix.shape), 2).clamp_min(1e-30)),
        ))  # fmt: skip
    return found
