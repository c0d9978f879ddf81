"""PMET: the attention's and the feed-forward's value optimised together, only the feed-forward's written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from pydantic import PositiveFloat, field_validator
from torch import Tensor

from editors.base import EditorCard, Prepared
from editors.mechanics.locating import LocatingEditor
from editors.mechanics.settings import AscendingLayers, LocateEditConfig
from editors.model import EditableModel
from editors.patches.weight import LowRank, WeightPatch
from editors.solvers.solve import ridge_update
from editors.solvers.spread import spread_over_layers, square_root_share, write_groups
from editors.targets.two_latents import optimise_two_latents
from editors.targets.values import anchored
from warehouse.records import EditRequest


class PmetConfig(LocateEditConfig):
    """Attributes:
    layers: edited layers, ascending; the values are optimised in the last one.
    second_moment_weight: lambda.
    """

    layers: AscendingLayers
    second_moment_weight: PositiveFloat = 6_000.0

    @field_validator("kept_weight")
    @classmethod
    def _nothing_kept(cls, weight: float) -> float:
        if weight:
            raise ValueError("pmet has no term for kept relations; set kept_weight to 0")
        return weight


@final
class Pmet(LocatingEditor[PmetConfig]):
    """Precise model editing: what the attention's output takes up in the optimisation need not be written.

    Of the optimised pair at layer L only the feed-forward's change becomes a target; per layer upwards
    Delta = R K^T (lambda C + K K^T)^-1 with R = (v* - v) / sqrt(L - l + 1), v the feed-forward's output at L (Li et al. 2024,
    section 4; xpq-tech/PMET, pmet/pmet_main.py).
    """

    card: ClassVar[EditorCard] = EditorCard(
        name="pmet",
        title="PMET",
        family="direct",
        patch_kind="weight",
        paper="Li et al. 2024, PMET: Precise Model Editing in a Transformer, arXiv:2308.08742",
        code="xpq-tech/PMET",
        needs_preparation=True,
        only_xy=False,
        differs="All values of a batch are optimised together on cached states; decay and clamp bound both changes together; "
        "fp64 Cholesky, Woodbury; the objective can ask that the answer ends.",
        behind_norm=False,
    )

    @property
    def layers(self) -> tuple[int, ...]:
        return self.config.layers

    @torch.no_grad()
    def edit_groups(
        self, model: EditableModel, groups: Sequence[Sequence[EditRequest]], prepared: Prepared
    ) -> list[WeightPatch]:
        """The values of all groups, which cost most, are optimised in one batch; see `GroupEditor.edit_groups`."""
        config, known, top = self.config, self.known(model, prepared), self.layers[-1]
        requests = [request for group in groups for request in group]
        solution = optimise_two_latents(model, requests, known.contexts, top, config)
        # The attention's half is dropped.
        targets = anchored(solution.targets.chunk(2, dim=1)[1], known.mlp_norms[top], config)

        def solve(layer: int, residuals: Tensor, keys: Tensor, _owner: Tensor) -> LowRank:
            return ridge_update(residuals, keys, known.factors[layer], config.second_moment_weight)

        def write(group: Sequence[EditRequest], wanted: Tensor, note: dict[str, Any]) -> WeightPatch:
            updates = spread_over_layers(
                model,
                group,
                known.contexts,
                config,
                wanted,
                config.layers,
                solve,
                site="mlp",
                share=square_root_share,
            )
            return WeightPatch(updates, note)

        return write_groups("pmet", groups, targets, solution, write)
