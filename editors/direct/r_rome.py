"""R-ROME: one rank-one update of one feed-forward layer for each fact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from pydantic import NonNegativeInt

from editors.base import NO_BENCH, Corpus, Editor, EditorCard, Prepared, Workbench
from editors.errors import EditRefused, UnsupportedMode
from editors.mechanics.keys_values import written_keys
from editors.mechanics.second_moment import PreparationReader, prepare_locate
from editors.mechanics.settings import LocateEditConfig
from editors.mechanics.solve import check_norm, key_directions, rank_one
from editors.mechanics.values import optimise_values
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from warehouse.records import EditBatch, EditRequest


class RRomeConfig(LocateEditConfig):
    """Attributes:
    layer: the layer whose feed-forward output is written.
    average_value: take the base value over the contexts as well (p-ROME), not at the bare prompt.
    """

    layer: NonNegativeInt
    average_value: bool = False


@final
class RRome(Editor[RRomeConfig]):
    """Rank-one editing with one averaged key in every place.

    With C = E[k k^T], k the key averaged over contexts and v* the optimised value at the MLP's output:
    Delta = (v* - W k) (C^-1 k)^T / (k^T C^-1 k). Meng et al. 2022, equation 2; Gupta, Baskaran and Anumanchipalli 2024
    showed that ROME's public code (kmeng01/rome, rome/compute_v.py) mixes the averaged key and the bare prompt's,
    which makes the denominator vanish for some facts ("disabling edits").
    """

    card: ClassVar[EditorCard] = EditorCard(
        name="r_rome", title="R-ROME", family="direct", patch_kind="weight",
        paper="Gupta et al. 2024, Rebuilding ROME, arXiv:2403.07175; Meng et al. 2022, arXiv:2202.05262",
        code="scalable-model-editing/rebuilding-rome", max_batch=1, needs_preparation=True, only_xy=False,
        modes=("single", "sequential"), why_not="a rank-one update holds one fact; use 'sequential', or memit",
        differs="Values of many edits are optimised in one batch on cached states above the layer; an edit may stop by "
        "margin; the objective can ask that the answer ends. C is factored in fp64 with a relative ridge.",
    )  # fmt: skip
    config_class = RRomeConfig

    def __init__(self, config: RRomeConfig) -> None:
        super().__init__(config)
        self._read = PreparationReader()

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        return prepare_locate(model, corpus, (self.config.layer,), self.config)

    def preparation_key(self) -> str:
        return self.config.preparation_digest((self.config.layer,))

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        if len(batch.requests) != 1:
            raise UnsupportedMode(f"r_rome edits one request at once, not {len(batch.requests)}; use mode 'sequential'")
        return self.edit_each(model, batch.requests, prepared)[0]

    @torch.no_grad()
    def edit_each(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[WeightPatch]:
        """One independent patch for each request; values and keys are taken in one batch.

        Raises:
            InvalidRequest: as `edit`.
            EditRefused: as `edit`; names the first request that is refused.
        """
        if not requests:
            return []
        config = self.config
        path, layer = model.anatomy.mlp_out, config.layer
        known = self._read(prepared, (layer,), model.hf.device)
        solution = optimise_values(model, requests, known.contexts, layer, "mlp", config)
        written = written_keys(model, requests, known.contexts, layer, config)
        current = written.values
        targets = solution.deltas + (current if config.average_value else solution.base_values)
        if config.anchor_norm:
            targets = targets * (known.mlp_norms[layer] / targets.norm(dim=1, keepdim=True))
        weight, name = model.weight(path, layer), path.format(layer=layer) + ".weight"
        directions = key_directions(written.keys, known.factors[layer])
        patches = []
        for i, request in enumerate(requests):
            try:
                update = rank_one(targets[i] - current[i], written.of(i), directions[written.owner == i])
            except EditRefused as refusal:
                raise EditRefused(f"request {request.request_id}: {refusal}") from refusal
            check_norm(update, weight, config.max_relative_norm, [request.request_id])
            note = {"editor": "r_rome", "requests": [request.request_id], "steps": solution.steps[i],
                    "solved": solution.solved[i]}  # fmt: skip
            patches.append(WeightPatch({name: update}, note))
        return patches
