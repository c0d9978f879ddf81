"""Where edits changed the weights: per parameter its size, its share of entries, its effective rank."""

from __future__ import annotations

from collections.abc import Mapping
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


def changed_weights(model: EditableModel) -> dict[str, Tensor]:
    """A copy of every parameter that differs from the base: what `footprint` takes as its `since`."""
    return {name: model.parameter(name).clone() for name in model.changed_parameters()}


def footprint(model: EditableModel, since: Mapping[str, Tensor] | None = None) -> list[Footprint]:
    """The footprint of all patches on the model, for every parameter that they changed, in the model's order.

    Memories and texts change no weight, so an editor of that kind has no footprint here.

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
        found.append(Footprint(
            name, tuple(change.shape), float(change.norm() / base.norm().clamp_min(1e-30)),
            float((change != 0).float().mean()), effective_rank(matrix),
            _spectral(matrix) / max(_spectral(base.reshape(matrix.shape)), 1e-30),
        ))  # fmt: skip
    return found


def _spectral(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))
