"""What ROME and R-ROME share: one guarded rank-one update of one layer for each request."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from editors.base import Prepared
from editors.errors import EditRefused, UnsupportedMode
from editors.mechanics.locating import LocatingEditor
from editors.mechanics.second_moment import LocatePreparation
from editors.mechanics.settings import LocateEditConfig
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from editors.solvers.solve import check_norm, rank_one
from editors.targets.values import ValueSolution
from warehouse.records import EditRequest


class RankOneConfig(LocateEditConfig):
    """`layer`: the layer whose feed-forward output is written."""

    layer: NonNegativeInt


RankOneT = TypeVar("RankOneT", bound=RankOneConfig)


@dataclass(frozen=True)
class RankOneUpdates:
    """The updates of some requests, row by row: residual direction^T.

    Attributes:
        residuals: (edits, d_out), over the key's energy where the direction is not.
        keys: (edits, d_in) keys that must have a share in their direction.
        directions: (edits, d_in), fp64.
        note: what a patch says beside what all say.
        hint: what to do about an update whose denominator vanishes.
    """

    solution: ValueSolution
    residuals: Tensor
    keys: Tensor
    directions: Tensor
    note: Mapping[str, Any] = field(default_factory=dict)
    hint: str = ""


class RankOneEditor(LocatingEditor[RankOneT]):
    """Writes one fact at once into one layer."""

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.config.layer,)

    @abstractmethod
    def updates(self, model: EditableModel, requests: Sequence[EditRequest], known: LocatePreparation) -> RankOneUpdates:
        """The method's own values, keys and directions; taken in one batch."""

    @torch.no_grad()
    def edit_groups(
        self, model: EditableModel, groups: Sequence[Sequence[EditRequest]], prepared: Prepared
    ) -> list[WeightPatch]:
        """See `GroupEditor.edit_groups`.

        Raises:
            UnsupportedMode: a group of more than one request.
            EditRefused: the first request whose denominator vanishes or whose update is large, by name.
        """
        name, config = self.card.name, self.config
        if any(len(group) != 1 for group in groups):
            most = max(len(group) for group in groups)
            raise UnsupportedMode(f"{name} edits one request at once, not {most}; use mode 'sequential'")
        requests = [request for group in groups for request in group]
        found = self.updates(model, requests, self.known(model, prepared))
        path = model.anatomy.mlp_out
        weight, place = model.weight(path, config.layer), path.format(layer=config.layer) + ".weight"
        patches = []
        for i, request in enumerate(requests):
            try:
                update = rank_one(found.residuals[i], found.keys[i], found.directions[i])
            except EditRefused as refusal:
                raise EditRefused(f"request {request.request_id}: {refusal}{found.hint}") from refusal
            check_norm(update, weight, config.max_relative_norm, [request.request_id])
            note = {"editor": name, "requests": [request.request_id], "steps": found.solution.steps[i]}
            note |= {"solved": found.solution.solved[i], **found.note}
            patches.append(WeightPatch({place: update}, note))
        return patches
