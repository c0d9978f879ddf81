"""Updates of weights in low-rank, sparse or dense form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from editors.base import Patch, PatchKind
from editors.exact import exact_dense
from editors.model import EditableModel, Undo


@dataclass(frozen=True)
class LowRank:
    """`Delta = left @ right.T`: left (d_out, rank), right (d_in, rank), fp32."""

    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        """The update itself, the same bits on every machine: it becomes part of a checkpoint."""
        return exact_dense(self.left, self.right)


@dataclass(frozen=True)
class Sparse:
    """A (d_out, d_in) update with few entries: flat `index` (int64) and `value` (fp32)."""

    index: Tensor
    value: Tensor
    shape: tuple[int, int]

    def dense(self) -> Tensor:
        flat = torch.zeros(self.shape[0] * self.shape[1], dtype=self.value.dtype)
        flat[self.index] = self.value
        return flat.view(self.shape)


@dataclass(frozen=True)
class Dense:
    """A full update of a parameter: (d_out, d_in) for a projection, (d,) for a vector."""

    value: Tensor

    def dense(self) -> Tensor:
        return self.value


Update = LowRank | Sparse | Dense


#: How a patch says that its low-rank updates are multiplied by `editors.exact`.
EXACT = "exact"


@final
class WeightPatch(Patch):
    """Updates by parameter name; each is added in fp32 to the weight below it.

    Args:
        product: how the maker multiplied low-rank updates: `exact`, or empty for patches of before, whose checkpoints have
            the last bits of the machine that wrote them.
    """

    kind: ClassVar[PatchKind] = "weight"

    def __init__(self, updates: Mapping[str, Update], note: Mapping[str, Any] | None = None, product: str = EXACT) -> None:
        self.updates = dict(updates)
        self._note = dict(note or {})
        self._product = product

    @property
    def rederivable(self) -> bool:
        return self._product == EXACT

    def dense(self, name: str) -> Tensor:
        """The update of a parameter as (d_out, d_in)."""
        return self.updates[name].dense()

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:  # type: ignore[override]
        out: dict[str, Tensor] = {}
        for name, update in self.updates.items():
            match update:
                case LowRank(left, right):
                    out |= {f"{name}|left": left, f"{name}|right": right}
                case Sparse(index, value, _):
                    out |= {f"{name}|index": index, f"{name}|value": value}
                case Dense(value):
                    out[f"{name}|dense"] = value
        return {name: t.detach().cpu().contiguous() for name, t in out.items()}

    @cached_property
    def meta(self) -> Mapping[str, Any]:  # type: ignore[override]
        shapes = {name: list(u.shape) for name, u in self.updates.items() if isinstance(u, Sparse)}
        made = {"product": self._product} if self._product else {}
        return {"sparse_shapes": shapes, "note": self._note, **made}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> WeightPatch:
        updates: dict[str, Update] = {}
        for name in sorted({key.rsplit("|", 1)[0] for key in tensors}):
            if f"{name}|left" in tensors:
                updates[name] = LowRank(tensors[f"{name}|left"], tensors[f"{name}|right"])
            elif f"{name}|index" in tensors:
                rows, columns = meta["sparse_shapes"][name]
                updates[name] = Sparse(tensors[f"{name}|index"], tensors[f"{name}|value"], (rows, columns))
            else:
                updates[name] = Dense(tensors[f"{name}|dense"])
        return cls(updates, meta["note"], str(meta.get("product", "")))

    def attach(self, model: EditableModel) -> Undo:
        for name in sorted(self.updates):
            model.add_to_weight(name, self.updates[name].dense())
        # Weights come back from the base copy, so that no rounding is left behind.
        return lambda: None
