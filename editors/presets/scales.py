"""How large a model's states are where edits are written, and the units that editors' numbers are given in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch

from editors.asking.tokens import pad_right
from editors.mechanics.contexts import encode_lookups
from editors.mechanics.passes import length_groups
from editors.mechanics.trace import trace
from editors.model import EditableModel

#: - `block_step`: the step of each coordinate that moves a state by the block's output norm.
#: - `block_over_mlp`: the block's output norm over the feed-forward's, for bounds that are counted in the latter. A change
#:   of either output is the same change of the stream, whose size decides what a change does: over layers and models the
#:   feed-forward's norm varies several times as much.
#: - `key_step`: the step of each weight of the feed-forward's output matrix that moves its output by the block's norm.
#: - `factor_step`: the same for the second factor of a new adapter of alpha 32, whose first one is random.
#: - `key_width`: weights of a second moment C. k^T C^-1 k of a generic token is the width of a key on average, whatever
#:   its scale, and a weight far below it leaves the moment without effect.
Unit = Literal["block_step", "block_over_mlp", "key_step", "factor_step", "key_width"]
#: Alpha that `factor_step` is for.
ALPHA = 32
#: Padded tokens in one pass; the states of all layers are kept for it.
TOKENS_PER_PASS = 2048


@dataclass(frozen=True)
class LayerScales:
    """Medians over lookup tokens: norms of the block's output, the feed-forward's output and its key, and sum of |key|."""

    block: float
    mlp: float
    key: float
    key_sum: float


@dataclass(frozen=True)
class Scales:
    """Attributes:
    layers: of every layer, the first first.
    d_model, d_mlp: widths of states and keys.
    """

    layers: tuple[LayerScales, ...]
    d_model: int
    d_mlp: int

    def unit(self, name: str, layer: int) -> float:
        """How much 1 of a `Unit` is at a layer."""
        at = self.layers[layer]
        if name == "block_step":
            return at.block / sqrt(self.d_model)
        if name == "block_over_mlp":
            return at.block / at.mlp
        if name == "key_step":
            return at.block / (at.key_sum * sqrt(self.d_model))
        if name == "factor_step":
            # A random first factor (uniform, of variance 1 / (3 d_mlp)) turns a key into sqrt(rank / (3 d_mlp)) of its norm;
            # the merged update is alpha / rank of the factors' product, and a step adds its size times sqrt(rank).
            return at.block / (ALPHA * sqrt(self.d_model / (3 * self.d_mlp)) * at.key)
        return float(self.d_mlp)


@torch.no_grad()
def measure_scales(model: EditableModel, prompts: Sequence[str], subjects: Sequence[str]) -> Scales:
    """The scales at the subjects' last tokens in these prompts; one pass for all layers, the model as it stands.

    Raises:
        InvalidRequest: a subject is not in its prompt.
    """
    anatomy = model.anatomy
    depth = anatomy.num_layers(model.hf)
    mlps = [anatomy.mlp_out.format(layer=i) for i in range(depth)]
    blocks = [anatomy.block.format(layer=i) for i in range(depth)]
    rows = encode_lookups(model, prompts, subjects, [""] * len(prompts))
    found: list[list[torch.Tensor]] = [[] for _ in range(depth)]
    d_mlp = 0
    for chosen in length_groups([row.lookup + 1 for row in rows], TOKENS_PER_PASS):
        ids, mask = pad_right([rows[i].ids[: rows[i].lookup + 1] for i in chosen], model.pad_id)
        seen = trace(model, ids, mask, inputs=mlps, outputs=(*mlps, *blocks), stop_after=blocks[-1])
        last = torch.tensor([rows[i].lookup for i in chosen], device=seen.outputs[blocks[0]].device)
        every = torch.arange(len(chosen), device=last.device)
        for layer in range(depth):
            block, mlp, key = (
                states[every, last].float()
                for states in (seen.outputs[blocks[layer]], seen.outputs[mlps[layer]], seen.inputs[mlps[layer]])
            )
            d_mlp = key.shape[1]
            found[layer].append(
                torch.stack([block.norm(dim=1), mlp.norm(dim=1), key.norm(dim=1), key.abs().sum(1)], dim=1).cpu()
            )
    layers = tuple(LayerScales(*torch.cat(own).median(0).values.tolist()) for own in found)
    return Scales(layers, anatomy.d_model(model.hf), d_mlp)
