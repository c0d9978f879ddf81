"""A GPT-2 forward pass with the subject mask, over the parameters of a plain `GPT2LMHeadModel`.

Early layers may not read a subject from later positions at all, late ones only its last token, so that the model
learns to gather a subject's facts at its last token, as large models do on their own (Meng et al. 2022, figure 1).
The saved model is plain and is used without a mask. With no subject the pass equals transformers' own (tested).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel

#: First layer that may read the last subject token from later positions.
FIRST_LATE_LAYER = 3


def hidden_states(model: GPT2LMHeadModel, ids: Tensor, early_mask: Tensor, late_mask: Tensor) -> Tensor:
    """Final hidden states (rows, tokens, d_model) under the two additive masks (rows, 1, tokens, tokens)."""
    core: Any = model.transformer
    config = model.config
    rows, tokens = ids.shape
    heads, width = config.n_head, config.n_embd // config.n_head
    h = core.wte(ids) + core.wpe.weight[:tokens]
    for index, block in enumerate(core.h):
        x = block.ln_1(h)
        qkv = block.attn.c_attn(x).view(rows, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(-1, -2) / math.sqrt(width)
        scores = scores + (early_mask if index < FIRST_LATE_LAYER else late_mask)
        mixed = (torch.softmax(scores, dim=-1) @ qkv[2]).transpose(1, 2).reshape(rows, tokens, -1)
        h = h + block.attn.c_proj(mixed)
        x = block.ln_2(h)
        h = h + block.mlp.c_proj(F.gelu(block.mlp.c_fc(x), approximate="tanh"))
    return core.ln_f(h)
