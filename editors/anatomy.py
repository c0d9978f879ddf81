"""Where things are in each architecture: the only place that knows module paths and weight orientation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from editors.errors import UnsupportedModel


@dataclass(frozen=True)
class Anatomy:
    """Module paths of one architecture; `{layer}` is the layer number.

    `mlp_in` lists every projection into the feed-forward space (two for gated ones); `mlp_out` is the projection back,
    whose input is the *key* of Geva et al. (2021) and whose output is the *value*. `orientation` says how its weight is
    stored: `in_out` for GPT-2's Conv1D, `out_in` for `nn.Linear`.
    """

    name: str
    block: str
    mlp: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    attention: str
    attention_out: str
    mlp_norm: str
    final_norm: str
    embedding: str
    orientation: Literal["in_out", "out_in"]
    width: str
    depth: str

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


GPT2 = Anatomy(
    name="gpt2",
    block="transformer.h.{layer}",
    mlp="transformer.h.{layer}.mlp",
    mlp_in=("transformer.h.{layer}.mlp.c_fc",),
    mlp_out="transformer.h.{layer}.mlp.c_proj",
    attention="transformer.h.{layer}.attn",
    attention_out="transformer.h.{layer}.attn.c_proj",
    mlp_norm="transformer.h.{layer}.ln_2",
    final_norm="transformer.ln_f",
    embedding="transformer.wte",
    orientation="in_out",
    width="n_embd",
    depth="n_layer",
)
LLAMA = Anatomy(
    name="llama",
    block="model.layers.{layer}",
    mlp="model.layers.{layer}.mlp",
    mlp_in=("model.layers.{layer}.mlp.gate_proj", "model.layers.{layer}.mlp.up_proj"),
    mlp_out="model.layers.{layer}.mlp.down_proj",
    attention="model.layers.{layer}.self_attn",
    attention_out="model.layers.{layer}.self_attn.o_proj",
    mlp_norm="model.layers.{layer}.post_attention_layernorm",
    final_norm="model.norm",
    embedding="model.embed_tokens",
    orientation="out_in",
    width="hidden_size",
    depth="num_hidden_layers",
)

#: `config.model_type` to anatomy. Mistral and Qwen keep Llama's names.
ANATOMIES = {"gpt2": GPT2, "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA}


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """The anatomy of a loaded model.

    Raises:
        UnsupportedModel: its `model_type` has no table.
    """
    kind = str(model.config.model_type)
    if kind not in ANATOMIES:
        raise UnsupportedModel(f"model type {kind!r} has no anatomy; editors/anatomy.py knows {', '.join(ANATOMIES)}")
    return ANATOMIES[kind]
