"""MEMIT: many facts in one closed-form update, spread over several feed-forward layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, final

import torch
from pydantic import PositiveFloat
from torch import Tensor

from editors.base import EditorCard, Prepared
from editors.mechanics.behind import spread_site
from editors.mechanics.locating import LocatingEditor
from editors.mechanics.second_moment import LocatePreparation
from editors.mechanics.settings import AscendingLayers, LocateEditConfig
from editors.model import EditableModel
from editors.patches.weight import LowRank, Update, WeightPatch
from editors.precision import wide
from editors.solvers.solve import ridge_update
from editors.solvers.spread import spread_over_layers, write_groups
from editors.targets.keys_values import written_keys
from editors.targets.values import anchored, optimise_values
from warehouse.records import EditRequest


class MemitConfig(LocateEditConfig):
    """Attributes:
    layers: edited layers, ascending; the values are optimised at the last one's output.
    second_moment_weight: lambda.
    ridge: `published` takes lambda as it is; `relative` scales it at each layer by the batch's mean key energy over
        that of a generic token, so that one number serves all layers and models.
    accumulate_keys: protect the values of earlier MEMIT edits that are on the model (sequential use), except where
        this batch has the same subject. They are read from the patches, so a rollback takes them along.
    """

    layers: AscendingLayers
    second_moment_weight: PositiveFloat = 15_000.0
    ridge: Literal["relative", "published"] = "published"
    accumulate_keys: bool = False


@final
class Memit(LocatingEditor[MemitConfig]):
    """Mass editing by regularised least squares.

    Targets z = h + delta at the last layer's output on the weights before the batch; then for each layer upwards
    Delta = R K^T (lambda C + K K^T)^-1 with R the missing part over the layers still to come (Meng et al. 2023,
    equations 14, 19 and 20; kmeng01/memit, memit/memit_main.py).
    """

    card: ClassVar[EditorCard] = EditorCard(
        name="memit",
        title="MEMIT",
        family="direct",
        patch_kind="weight",
        paper="Meng et al. 2023, Mass-Editing Memory in a Transformer, arXiv:2210.07229",
        code="kmeng01/memit",
        needs_preparation=True,
        only_xy=False,
        differs="All values of a batch are optimised together on cached states; fp64 Cholesky, Woodbury; lambda may be "
        "relative to the key energy; the objective can ask that the answer ends; earlier keys may be protected.",
    )

    @property
    def layers(self) -> tuple[int, ...]:
        return self.config.layers

    @torch.no_grad()
    def edit_groups(
        self, model: EditableModel, groups: Sequence[Sequence[EditRequest]], prepared: Prepared
    ) -> list[WeightPatch]:
        """The values of all groups, which cost most, are optimised in one batch; see `GroupEditor.edit_groups`."""
        known, top = self.known(model, prepared), self.layers[-1]
        requests = [request for group in groups for request in group]
        solution = optimise_values(model, requests, known.contexts, top, spread_site(model), self.config)
        targets = anchored(solution.targets, known.site_norms(spread_site(model))[top], self.config)

        def write(group: Sequence[EditRequest], wanted: Tensor, note: dict[str, Any]) -> WeightPatch:
            sites = [[r.prompt, r.subject, *r.also] for r in group]
            return WeightPatch(self._spread(model, group, wanted, known), {**note, "sites": sites})

        return write_groups("memit", groups, targets, solution, write)

    def _spread(
        self, model: EditableModel, requests: Sequence[EditRequest], targets: Tensor, known: LocatePreparation
    ) -> dict[str, Update]:
        config = self.config
        earlier = _earlier_sites(model, requests) if config.accumulate_keys else []

        def solve(layer: int, residuals: Tensor, keys: Tensor, _owner: Tensor) -> LowRank:
            scale = 1.0
            if config.ridge == "relative":
                scale = float(wide(keys).square().sum(0).mean()) / known.energies[layer]
            protected = None
            if earlier:
                protected = written_keys(model, earlier, known.contexts, layer, config).keys.t()
            return ridge_update(residuals, keys, known.factors[layer], config.second_moment_weight * scale, protected)

        return spread_over_layers(model, requests, known.contexts, config, targets, config.layers, solve)


def _earlier_sites(model: EditableModel, requests: Sequence[EditRequest]) -> list[EditRequest]:
    """Where the MEMIT patches on the model wrote, in all forms of a prompt, without the subjects of this batch."""
    taken = {r.subject for r in requests}
    sites: dict[tuple[str, str], EditRequest] = {}
    for patch in model.patches:
        note = patch.meta.get("note", {})
        if note.get("editor") != "memit":
            continue
        for prompt, subject, *also in note["sites"]:
            if subject not in taken:
                name, forms = f"earlier-{len(sites)}", tuple(also)
                sites[prompt, subject] = EditRequest(
                    request_id=name, prompt=prompt, subject=subject, relation="", target_new="", also=forms
                )
    return list(sites.values())
