"""Where things are in one architecture: module paths, and what a block does otherwise than GPT-2's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from editors.errors import UnsupportedModel


class Head:
    """The language-model head: final hidden states to logits, bounded where the architecture bounds them."""

    def __init__(self, linear: nn.Linear, cap: float | None) -> None:
        self.linear, self.cap = linear, cap

    @property
    def weight(self) -> Tensor:
        """(vocab, d_model), for its shape and dtype: `EditableModel.head_weight` has its numbers wherever they lie."""
        return self.linear.weight

    def __call__(self, hidden: Tensor) -> Tensor:
        """(..., vocab) of states behind the final norm (..., d_model)."""
        logits = self.linear(hidden)
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Module paths of one architecture; `{layer}` is the layer number.

    `mlp_in` lists every projection into the feed-forward space (two for gated ones, unless one matrix holds both);
    `mlp_out` is the projection back, whose input is the *key* of Geva et al. (2021) and whose output is the *value*.
    `orientation` says how its weight is stored: `in_out` for GPT-2's Conv1D, `out_in` for `nn.Linear`.

    Attributes:
        mlp_norm: the norm that the feed-forward reads through; None where it reads the residual stream as it is.
        mlp_post_norm: a norm between the feed-forward's output and the residual stream (Gemma, OLMo 2). A change of that
            output is then not the same change of the block's; `mechanics/behind.py` says what it becomes.
        attention_post_norm: the same behind the attention.
        parallel: attention and feed-forward both read the block's input, so neither sees a change of the other.
        gated: the feed-forward is `act(gate) * up`; else `act(up)`.
        cache: the block's argument that keys and values are handed in by.
        trunk: the module that runs the blocks in every call; None: the base model. OPT's head goes past its base model.
        inner: the width of the feed-forward, by its name in the configuration.
        biases: a configuration entry that gives a gated feed-forward biases, where there is one.
        softcap: a configuration entry that bounds the logits: `cap * tanh(logits / cap)`.
    """

    name: str
    block: str
    mlp: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    attention: str
    attention_out: str
    mlp_norm: str | None
    final_norm: str
    embedding: str
    orientation: Literal["in_out", "out_in"]
    width: str
    depth: str
    inner: str
    mlp_post_norm: str | None = None
    attention_post_norm: str | None = None
    parallel: bool = False
    gated: bool = False
    cache: str = "past_key_values"
    trunk: str | None = None
    biases: str | None = None
    softcap: str | None = None

    def num_layers(self, model: PreTrainedModel) -> int:
        return int(getattr(model.config, self.depth))

    def d_model(self, model: PreTrainedModel) -> int:
        return int(getattr(model.config, self.width))

    def blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        return [model.get_submodule(self.block.format(layer=i)) for i in range(self.num_layers(model))]

    def module(self, model: PreTrainedModel, path: str, layer: int) -> nn.Module:
        """The module at `path` in `layer`.

        Raises:
            UnsupportedModel: the layer does not exist.
        """
        if not 0 <= layer < self.num_layers(model):
            raise UnsupportedModel(f"layer {layer} of a model with {self.num_layers(model)} layers; choose a lower one")
        return model.get_submodule(path.format(layer=layer))

    def head(self, model: PreTrainedModel) -> Head:
        """The language-model head, with the bound that the configuration gives."""
        found = model.get_output_embeddings()
        assert isinstance(found, nn.Linear), f"{self.name} has no linear language-model head"
        return Head(found, None if self.softcap is None else getattr(model.config, self.softcap))
