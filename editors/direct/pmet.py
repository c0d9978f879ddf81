"""PMET: the attention's and the feed-forward's value optimised together, only the feed-forward's written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from pydantic import NonNegativeInt, PositiveFloat, field_validator
from torch import Tensor

from editors.base import NO_BENCH, Corpus, Editor, EditorCard, Prepared, Workbench
from editors.mechanics.second_moment import LocatePreparation, PreparationReader, prepare_locate
from editors.mechanics.settings import LocateEditConfig
from editors.mechanics.solve import ridge_update
from editors.mechanics.spread import spread_over_layers, square_root_share
from editors.mechanics.two_latents import optimise_two_latents
from editors.mechanics.values import ValueSolution
from editors.model import EditableModel
from editors.patches.weight import LowRank, WeightPatch
from warehouse.records import EditBatch, EditRequest


class PmetConfig(LocateEditConfig):
    """Attributes:
    layers: edited layers, ascending; the values are optimised in the last one.
    second_moment_weight: lambda.
    """

    layers: tuple[NonNegativeInt, ...]
    second_moment_weight: PositiveFloat = 6_000.0

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if not layers or list(layers) != sorted(set(layers)):
            raise ValueError(f"layers must be given in ascending order, without repeats; found {layers}")
        return layers

    @field_validator("kept_weight")
    @classmethod
    def _nothing_kept(cls, weight: float) -> float:
        if weight:
            raise ValueError("pmet has no term for kept relations; set kept_weight to 0")
        return weight


@final
class Pmet(Editor[PmetConfig]):
    """Precise model editing: what the attention's output takes up in the optimisation need not be written.

    Of the optimised pair at layer L only the feed-forward's change becomes a target; per layer upwards
    Delta = R K^T (lambda C + K K^T)^-1 with R = (v* - v) / sqrt(L - l + 1), v the feed-forward's output at L (Li et al. 2024,
    section 4; xpq-tech/PMET, pmet/pmet_main.py).
    """

    card: ClassVar[EditorCard] = EditorCard(
        name="pmet", title="PMET", family="direct", patch_kind="weight",
        paper="Li et al. 2024, PMET: Precise Model Editing in a Transformer, arXiv:2308.08742",
        code="xpq-tech/PMET", needs_preparation=True, only_xy=False,
        differs="All values of a batch are optimised together on cached states; decay and clamp bound both changes together; "
        "fp64 Cholesky, Woodbury; the objective can ask that the answer ends.",
    )  # fmt: skip
    config_class = PmetConfig

    def __init__(self, config: PmetConfig) -> None:
        super().__init__(config)
        self._read = PreparationReader()

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        return prepare_locate(model, corpus, self.config.layers, self.config)

    def preparation_key(self) -> str:
        return self.config.preparation_digest(self.config.layers)

    @torch.no_grad()
    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        known = self._read(prepared, self.config.layers, model.hf.device)
        requests = list(batch.requests)
        solution = optimise_two_latents(model, requests, known.contexts, self.config.layers[-1], self.config)
        return self._write(model, requests, self._targets(solution, known), solution.solved, known)

    @torch.no_grad()
    def edit_each(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[WeightPatch]:
        """One independent patch for each request; the values, which cost most, are optimised in one batch."""
        if not requests:
            return []
        known = self._read(prepared, self.config.layers, model.hf.device)
        solution = optimise_two_latents(model, requests, known.contexts, self.config.layers[-1], self.config)
        targets = self._targets(solution, known)
        return [self._write(model, [r], targets[i : i + 1], solution.solved[i : i + 1], known) for i, r in enumerate(requests)]

    def _targets(self, solution: ValueSolution, known: LocatePreparation) -> Tensor:
        """(edits, d_model) wanted feed-forward outputs of the last layer; the attention's half is dropped."""
        targets = solution.targets.chunk(2, dim=1)[1]
        if self.config.anchor_norm:
            targets = targets * (known.mlp_norms[self.config.layers[-1]] / targets.norm(dim=1, keepdim=True))
        return targets

    def _write(
        self, model: EditableModel, requests: Sequence[EditRequest], targets: Tensor, solved: Sequence[bool],
        known: LocatePreparation,
    ) -> WeightPatch:  # fmt: skip
        config = self.config

        def solve(layer: int, residuals: Tensor, keys: Tensor, _owner: Tensor) -> LowRank:
            return ridge_update(residuals, keys, known.factors[layer], config.second_moment_weight)

        updates = spread_over_layers(
            model, requests, known.contexts, config, targets, config.layers, solve,
            target_path=model.anatomy.mlp_out, share=square_root_share,
        )  # fmt: skip
        note = {"editor": "pmet", "requests": [r.request_id for r in requests], "solved": list(map(bool, solved))}
        return WeightPatch(updates, note)
