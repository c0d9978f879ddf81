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

#: - `block_step`: the step of each coordinate of the feed-forward's output that moves the block's by its norm.
#: - `block_over_mlp`: the length of such a change over the feed-forward's output, for bounds that are counted in the latter.
#:   The size of the stream decides what a change does: over layers and models the feed-forward's varies several times as much.
#: - `key_step`: the step of each weight of the feed-forward's output matrix that makes such a change.
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
    """Medians over lookup tokens.

    Attributes:
        block, mlp, key: norms of the block's output, the feed-forward's output and its key; `key_sum`: sum of |key|.
        added: norm of what the feed-forward adds to the stream: its output, behind the norm there where one stands.
    """

    block: float
    mlp: float
    added: float
    key: float
    key_sum: float

    @property
    def moving(self) -> float:
        """Length of a change of the feed-forward's output that moves the block's by its own norm.

        To first order: a norm between the two (OLMo 2, Gemma) scales a small change as it scales the output itself, and what
        comes out of it is never longer than its weights make it.
        """
        return self.block * (self.mlp / self.added)


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
            return at.moving / sqrt(self.d_model)
        if name == "block_over_mlp":
            return at.moving / at.mlp
        if name == "key_step":
            return at.moving / (at.key_sum * sqrt(self.d_model))
        if name == "factor_step":
            # A random first factor (uniform, of variance 1 / (3 d_mlp)) turns a key into sqrt(rank / (3 d_mlp)) of its norm;
            # the merged update is alpha / rank of the factors' product, and a step adds its size times sqrt(rank).
            return at.moving / (ALPHA * sqrt(self.d_model / (3 * self.d_mlp)) * at.key)
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
    adds = [(anatomy.mlp_post_norm or anatomy.mlp_out).format(layer=i) for i in range(depth)]
    places = tuple(dict.fromkeys((*mlps, *adds, *blocks)))
    rows = encode_lookups(model, prompts, subjects, [""] * len(prompts))
    found: list[list[torch.Tensor]] = [[] for _ in range(depth)]
    d_mlp = 0
    for chosen in length_groups([row.lookup + 1 for row in rows], TOKENS_PER_PASS):
        ids, mask = pad_right([rows[i].ids[: rows[i].lookup + 1] for i in chosen], model.pad_id)
        seen = trace(model, ids, mask, inputs=mlps, outputs=places, stop_after=blocks[-1])
        last = torch.tensor([rows[i].lookup for i in chosen], device=seen.outputs[blocks[0]].device)
        every = torch.arange(len(chosen), device=last.device)
        for layer in range(depth):
            states = (*(seen.outputs[path[layer]] for path in (blocks, mlps, adds)), seen.inputs[mlps[layer]])
            block, mlp, added, key = (s[every, last].float() for s in states)
            d_mlp = key.shape[1]
            norms = [state.norm(dim=1) for state in (block, mlp, added, key)]
            found[layer].append(torch.stack([*norms, key.abs().sum(1)], dim=1).cpu())
    layers = tuple(LayerScales(*torch.cat(own).median(0).values.tolist()) for own in found)
    return Scales(layers, anatomy.d_model(model.hf), d_mlp)
