"""Blocks that no hook fits as transformers writes them, made to fit when a model is loaded; weights and names stay.

OPT's layer has no feed-forward module to hook, and its projections see all rows as one. Falcon's adds the attention into
the very tensor that its feed-forward gave out, and so into what was kept of it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.models.falcon.modeling_falcon import FalconMLP
from transformers.models.opt.modeling_opt import OPTDecoderLayer


class _OptFeedForward(nn.Module):
    """`fc2(act(fc1(h)))` of an OPT layer, which goes on owning the weights."""

    def __init__(self, layer: OPTDecoderLayer) -> None:
        super().__init__()
        # Past nn.Module's own: as a child it would list the layer's weights a second time.
        self.__dict__["layer"] = layer

    def forward(self, hidden: Tensor) -> Tensor:
        layer = self.__dict__["layer"]
        return layer.fc2(layer.activation_fn(layer.fc1(hidden)))


class _OptLayer(OPTDecoderLayer):
    """An OPT layer with its norms before attention and feed-forward, tokens of a row together; see transformers 5.23."""

    mlp: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        attended, _ = self.self_attn(
            hidden_states=self.self_attn_layer_norm(hidden_states),
            past_key_values=past_key_values,
            position_ids=position_ids,
            attention_mask=attention_mask,
            **kwargs,
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.final_layer_norm(hidden_states))


class _FalconMlp(FalconMLP):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Behind all hooks, so that the block adds into a tensor that nobody holds.
        return super().__call__(*args, **kwargs).clone()


def fit_blocks(model: PreTrainedModel) -> PreTrainedModel:
    """Fit the blocks of a model in place; one that fits stays as it is."""
    for module in list(model.modules()):
        if type(module) is OPTDecoderLayer and module.do_layer_norm_before:
            module.__class__ = _OptLayer
            module.add_module("mlp", _OptFeedForward(module))
        elif type(module) is FalconMLP:
            module.__class__ = _FalconMlp
    return model
