"""MEMIT: many facts in one closed-form update, spread over several feed-forward layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

import torch
from pydantic import NonNegativeInt, PositiveFloat, field_validator
from torch import Tensor

from editors.base import NO_BENCH, Corpus, Editor, EditorCard, Prepared, Workbench
from editors.mechanics.keys_values import written_keys
from editors.mechanics.second_moment import LocatePreparation, PreparationReader, prepare_locate
from editors.mechanics.settings import LocateEditConfig
from editors.mechanics.solve import ridge_update
from editors.mechanics.spread import spread_over_layers
from editors.mechanics.values import ValueSolution, optimise_values
from editors.model import EditableModel
from editors.patches.weight import LowRank, WeightPatch
from warehouse.records import EditBatch, EditRequest


class MemitConfig(LocateEditConfig):
    """Attributes:
    layers: edited layers, ascending; the values are optimised at the last one's output.
    second_moment_weight: lambda.
    ridge: `published` takes lambda as it is; `relative` scales it at each layer by the batch's mean key energy over
        that of a generic token, so that one number serves all layers and models.
    accumulate_keys: protect the values of earlier MEMIT edits that are on the model (sequential use), except where
        this batch has the same subject. They are read from the patches, so a rollback takes them along.
    """

    layers: tuple[NonNegativeInt, ...]
    second_moment_weight: PositiveFloat = 15_000.0
    ridge: Literal["relative", "published"] = "published"
    accumulate_keys: bool = False

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if not layers or list(layers) != sorted(set(layers)):
            raise ValueError(f"layers must be given in ascending order, without repeats; found {layers}")
        return layers


@final
class Memit(Editor[MemitConfig]):
    """Mass editing by regularised least squares.

    Targets z = h + delta at the last layer's output on the weights before the batch; then for each layer upwards
    Delta = R K^T (lambda C + K K^T)^-1 with R the missing part over the layers still to come (Meng et al. 2023,
    equations 14, 19 and 20; kmeng01/memit, memit/memit_main.py).
    """

    card: ClassVar[EditorCard] = EditorCard(
        name="memit", title="MEMIT", family="direct", patch_kind="weight",
        paper="Meng et al. 2023, Mass-Editing Memory in a Transformer, arXiv:2210.07229",
        code="kmeng01/memit", needs_preparation=True, only_xy=False,
        differs="All values of a batch are optimised together on cached states; fp64 Cholesky, Woodbury; lambda may be "
        "relative to the key energy; the objective can ask that the answer ends; earlier keys may be protected.",
    )  # fmt: skip
    config_class = MemitConfig

    def __init__(self, config: MemitConfig) -> None:
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
        solution = self._values(model, requests, known)
        return self._write(model, requests, self._targets(solution, known), solution.solved, known)

    @torch.no_grad()
    def edit_each(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[WeightPatch]:
        """One independent patch for each request; the values, which cost most, are optimised in one batch."""
        if not requests:
            return []
        known = self._read(prepared, self.config.layers, model.hf.device)
        solution = self._values(model, requests, known)
        targets = self._targets(solution, known)
        return [self._write(model, [r], targets[i : i + 1], solution.solved[i : i + 1], known) for i, r in enumerate(requests)]

    def _values(self, model: EditableModel, requests: Sequence[EditRequest], known: LocatePreparation) -> ValueSolution:
        return optimise_values(model, requests, known.contexts, self.config.layers[-1], "block", self.config)

    def _targets(self, solution: ValueSolution, known: LocatePreparation) -> Tensor:
        targets = solution.targets
        if self.config.anchor_norm:
            targets = targets * (known.block_norms[self.config.layers[-1]] / targets.norm(dim=1, keepdim=True))
        return targets

    def _write(
        self, model: EditableModel, requests: Sequence[EditRequest], targets: Tensor, solved: Sequence[bool],
        known: LocatePreparation,
    ) -> WeightPatch:  # fmt: skip
        config = self.config
        earlier = _earlier_sites(model, requests) if config.accumulate_keys else []

        def solve(layer: int, residuals: Tensor, keys: Tensor, _owner: Tensor) -> LowRank:
            scale = 1.0
            if config.ridge == "relative":
                scale = float(keys.double().square().sum(0).mean()) / known.energies[layer]
            protected = None
            if earlier:
                protected = written_keys(model, earlier, known.contexts, layer, config).keys.t()
            return ridge_update(residuals, keys, known.factors[layer], config.second_moment_weight * scale, protected)

        updates = spread_over_layers(
            model, requests, known.contexts, config, targets, config.layers, solve,
            target_path=model.anatomy.block,
        )  # fmt: skip
        note = {
            "editor": "memit", "requests": [r.request_id for r in requests], "solved": list(map(bool, solved)),
            "sites": [[r.prompt, r.subject] for r in requests],
        }  # fmt: skip
        return WeightPatch(updates, note)


def _earlier_sites(model: EditableModel, requests: Sequence[EditRequest]) -> list[EditRequest]:
    """Where the MEMIT patches on the model wrote, each subject and prompt once, without the subjects of this batch."""
    taken = {r.subject for r in requests}
    sites: dict[tuple[str, str], EditRequest] = {}
    for patch in model.patches:
        note = patch.meta.get("note", {})
        if note.get("editor") != "memit":
            continue
        for prompt, subject in note["sites"]:
            if subject not in taken:
                sites[prompt, subject] = EditRequest(
                    request_id=f"earlier-{len(sites)}", prompt=prompt, subject=subject, relation="", target_new=""
                )
    return list(sites.values())
