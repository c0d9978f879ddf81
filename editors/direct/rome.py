"""ROME as its public code does it, mismatched keys included, behind a guard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from pydantic import NonNegativeInt, field_validator
from torch import Tensor

from editors.base import NO_BENCH, Corpus, Editor, EditorCard, Prepared, Workbench
from editors.errors import EditRefused, UnsupportedMode
from editors.mechanics.keys_values import lookup_states
from editors.mechanics.second_moment import PreparationReader, prepare_locate
from editors.mechanics.settings import LocateEditConfig
from editors.mechanics.solve import SMALLEST_COSINE, check_norm, key_directions
from editors.mechanics.values import optimise_values
from editors.model import EditableModel
from editors.patches.weight import LowRank, WeightPatch
from warehouse.records import EditBatch, EditRequest


class RomeConfig(LocateEditConfig):
    """Attributes:
    layer: the layer whose feed-forward output is written.
    compat: as published: the direction comes from the key averaged over contexts, while the current value and the
        denominator come from the bare prompt's key. False: the averaged key everywhere, the paper's equation (R-ROME).
    """

    layer: NonNegativeInt
    compat: bool = True

    @field_validator("key_forms", check_fields=False)
    @classmethod
    def _one_key(cls, forms: str) -> str:
        if forms != "averaged":
            raise ValueError(f"rome writes at one key; set key_forms to averaged, not {forms}, or use r_rome")
        return forms


def mixed_update(residual: Tensor, key: Tensor, direction: Tensor) -> LowRank:
    """Delta = residual u^T / (u^T key): rank one, with (W + Delta) key = W key + residual for whatever direction u.

    Args:
        residual: (d_out,) wanted minus current value at `key`.
        key: (d_in,) the key of the current value, in the published form the bare prompt's.
        direction: (d_in,) C^-1 k, in the published form of another, averaged key.

    Raises:
        EditRefused: key and direction are near orthogonal or opposed, so that the denominator vanishes.
    """
    k = key.double()
    energy = direction @ k
    cosine = (energy / (direction.norm() * k.norm())).item()
    if not cosine >= SMALLEST_COSINE:
        raise EditRefused(f"the key's share of the update's direction is {cosine:.2e} (< {SMALLEST_COSINE}): no stable update")
    return LowRank((residual.double() / energy)[:, None].float(), direction[:, None].float())


@final
class Rome(Editor[RomeConfig]):
    """Rank-one model editing: W' k* = v* with the least change on generic keys (Meng et al. 2022, equation 2).

    With u = C^-1 k, k averaged over contexts, and k_0, v_0 = W k_0 at the bare prompt, the public code
    (kmeng01/rome, rome/rome_main.py and rome/compute_v.py) writes Delta = (v* - v_0) u^T / (u^T k_0): right at the bare
    prompt, and without bound where u^T k_0 vanishes ("disabling edits", Gupta et al. 2024). The guard refuses those.
    """

    card: ClassVar[EditorCard] = EditorCard(
        name="rome", title="ROME", family="direct", patch_kind="weight",
        paper="Meng et al. 2022, Locating and Editing Factual Associations in GPT, arXiv:2202.05262",
        code="kmeng01/rome", max_batch=1, needs_preparation=True, only_xy=False,
        modes=("single", "sequential"), why_not="a rank-one update holds one fact; use 'sequential', or memit",
        survey="The table grants ROME no mode; it edits single facts, and one after the other until it falls apart. It needs "
        "the subject's place in the prompt, which is more than (x, y).",
        differs="The published mix of averaged and bare keys is kept as `compat`; edits whose denominator vanishes or whose "
        "update is large are refused instead of written. Values of many edits are optimised in one batch; an edit may stop "
        "by margin; the objective can ask that the answer ends.",
    )  # fmt: skip

    def __init__(self, config: RomeConfig) -> None:
        super().__init__(config)
        self._read = PreparationReader()

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        return prepare_locate(model, corpus, (self.config.layer,), self.config)

    def preparation_key(self) -> str:
        return self.config.preparation_digest((self.config.layer,))

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        if len(batch.requests) != 1:
            raise UnsupportedMode(f"rome edits one request at once, not {len(batch.requests)}; use mode 'sequential'")
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
        targets = solution.targets
        if config.anchor_norm:
            targets = targets * (known.mlp_norms[layer] / targets.norm(dim=1, keepdim=True))
        states = lookup_states(model, requests, known.contexts, path, layer)
        averaged, average_value = states.averaged(known.contexts.weights(config.key_average))
        directions = key_directions(averaged, known.factors[layer])
        # The first context is the bare prompt.
        keys, current = (states.inputs[:, 0], states.outputs[:, 0]) if config.compat else (averaged, average_value)
        weight, name = model.weight(path, layer), path.format(layer=layer) + ".weight"
        patches = []
        for i, request in enumerate(requests):
            try:
                update = mixed_update(targets[i] - current[i], keys[i], directions[i])
            except EditRefused as refusal:
                hint = "; it would disable the model: edit it with r_rome, or set compat to false" if config.compat else ""
                raise EditRefused(f"request {request.request_id}: {refusal}{hint}") from refusal
            check_norm(update, weight, config.max_relative_norm, [request.request_id])
            note = {"editor": "rome", "requests": [request.request_id], "steps": solution.steps[i],
                    "solved": solution.solved[i], "compat": config.compat}  # fmt: skip
            patches.append(WeightPatch({name: update}, note))
        return patches
