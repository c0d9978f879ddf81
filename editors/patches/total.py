"""The whole effect of a set of edits as one update from the base: it takes the place of the total below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from editors.base import Patch, PatchKind
from editors.errors import PatchError
from editors.model import EditableModel, Undo
from editors.patches.weight import EXACT, Update, WeightPatch
from warehouse.records import EditRequest

#: Names of weights never begin with this, so both kinds of tensors share one file.
DELTAS = "values"


@final
class TotalPatch(Patch):
    """Weights = base + updates, whatever an earlier total had left there.

    Attributes:
        names: every weight parameter that a total of this editor writes; those without an update become the base's.
        updates: parameter -> update from the base.
        active: subject -> its edits, by relation: the whole set, not only the newest batch.
        deltas: subject -> (d_model,) solved change of its value, from the base alone.
    """

    kind: ClassVar[PatchKind] = "weight"

    def __init__(
        self,
        names: Sequence[str],
        updates: Mapping[str, Update],
        active: Mapping[str, Sequence[EditRequest]],
        deltas: Mapping[str, Tensor],
        product: str = EXACT,
    ) -> None:
        if set(updates) - set(names):
            raise ValueError(f"updates of {sorted(set(updates) - set(names))} are not among the names {sorted(names)}")
        if set(active) != set(deltas):
            raise ValueError("every subject needs its edits and its value")
        self.names = tuple(sorted(names))
        self.active = {subject: tuple(active[subject]) for subject in sorted(active)}
        self.deltas = {subject: deltas[subject].detach().float().cpu() for subject in self.active}
        self._weights = WeightPatch(updates, product=product)

    @property
    def rederivable(self) -> bool:
        return self._weights.rederivable

    @property
    def updates(self) -> Mapping[str, Update]:
        return self._weights.updates

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:  # type: ignore[override]
        values = {DELTAS: torch.stack(list(self.deltas.values()))} if self.deltas else {}
        return {**self._weights.tensors, **values}

    @cached_property
    def meta(self) -> Mapping[str, Any]:  # type: ignore[override]
        active = [[subject, [r.model_dump(mode="json") for r in group]] for subject, group in self.active.items()]
        return {"form": "total", "names": list(self.names), "weights": dict(self._weights.meta), "active": active}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> TotalPatch:
        parts = {name: t for name, t in tensors.items() if name != DELTAS}
        active = {s: [EditRequest.model_validate(r, strict=False) for r in group] for s, group in meta["active"]}
        deltas = {subject: tensors[DELTAS][row].clone() for row, subject in enumerate(sorted(active))}
        updates = WeightPatch.from_parts(parts, meta["weights"]).updates
        return cls(meta["names"], updates, active, deltas, str(meta["weights"].get("product", "")))

    def attach(self, model: EditableModel) -> Undo:
        """Set the weights.

        Raises:
            PatchError: a patch below that is no total changed one of them; a total would silently undo it.
        """
        for patch in model.patches:
            shared = set(self.names) & set(getattr(patch, "updates", ()))
            if shared and not isinstance(patch, TotalPatch):
                raise PatchError(
                    f"a total of {sorted(shared)[0]} would undo the {type(patch).__name__} below it; "
                    "roll that back, or edit other layers"
                )
        for name in self.names:
            model.overwrite(name, model.base_parameter(name))
            if name in self.updates:
                model.add_to_weight(name, self.updates[name].dense())
        # Weights come back from the base copy, so that no rounding is left behind.
        return lambda: None


def active_total(model: EditableModel) -> TotalPatch | None:
    """The total that the model wears: the newest one."""
    return next((p for p in reversed(model.patches) if isinstance(p, TotalPatch)), None)
