"""peft adapters in the model's own blocks for the length of one edit, and what they have learnt as low-rank factors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editors.architectures.anatomy import Anatomy
from editors.model import EditableModel
from editors.patches.weight import LowRank

#: Projections of a block: into the feed-forward, back from it, into the attention (queries, keys, values), back from it.
Site = Literal["mlp_in", "mlp_out", "attention_in", "attention_out"]
ADAPTER = "default"


def target_paths(model: EditableModel, layers: Sequence[int], sites: Sequence[Site]) -> list[str]:
    """Module paths of the projections at the sites of each layer.

    Raises:
        UnsupportedModel: a layer that the model does not have.
    """
    anatomy, found = model.anatomy, []
    for layer in layers:
        anatomy.module(model.hf, anatomy.block, layer)
        for site in sites:
            found += _at(model, anatomy, site, layer)
    return found


def _at(model: EditableModel, anatomy: Anatomy, site: Site, layer: int) -> list[str]:
    if site == "mlp_in":
        return [path.format(layer=layer) for path in anatomy.mlp_in]
    if site == "mlp_out":
        return [anatomy.mlp_out.format(layer=layer)]
    out, attention = anatomy.attention_out.format(layer=layer), anatomy.attention.format(layer=layer)
    if site == "attention_out":
        return [out]
    inside = model.hf.get_submodule(attention).named_modules(prefix=attention)
    return [path for path, module in inside if isinstance(module, (nn.Linear, Conv1D)) and path != out]


@contextmanager
def injected(model: EditableModel, paths: Sequence[str], tuner: Any, config: Any) -> Iterator[Any]:
    """A peft tuner over the whole model with adapters at `paths`; every module and flag is put back at the end.

    Factors are fp32 whatever the model's dtype: in half precision Adam's second moment vanishes and its step is NaN. peft
    casts what they read to their dtype, and what they add to the projection's.

    Args:
        tuner: `LoraModel` or `AdaLoraModel`.
        config: its configuration; `target_modules` and `fan_in_fan_out` are set here.
    """
    for path in paths:
        model.take_into_memory(path)
    originals = {path: model.hf.get_submodule(path) for path in paths}
    # peft puts a factor where the projection's weight lies, which may not be where the projection is computed.
    where = {path: model.runs_on(path) for path in paths}
    config.target_modules = "|".join(re.escape(path) for path in paths)
    config.fan_in_fan_out = any(isinstance(m, Conv1D) for m in originals.values())
    had_config = hasattr(model.hf, "peft_config")
    try:
        injection = tuner(model.hf, config, ADAPTER)
        for path in paths:
            for name, part in model.hf.get_submodule(path).named_children():
                if name != "base_layer":
                    part.to(where[path])
        for factor in adapter_weights(model, paths):
            factor.data = factor.data.float()
        yield injection
    finally:
        for path, module in originals.items():
            parent, _, name = path.rpartition(".")
            setattr(model.hf.get_submodule(parent), name, module)
        if not had_config and hasattr(model.hf, "peft_config"):
            del model.hf.peft_config
        model.hf.requires_grad_(False)


def adapter_weights(model: EditableModel, paths: Sequence[str]) -> list[Tensor]:
    """The trainable leaves of the adapters at `paths`."""
    return [p for path in paths for p in model.hf.get_submodule(path).parameters() if p.requires_grad]


def factors(model: EditableModel, path: str) -> LowRank:
    """What the adapter at `path` adds to its projection: `(alpha / r) B A`, for AdaLoRA `(alpha / r) B diag(E) A`.

    Pruned triplets (E = 0) leave no factor.
    """
    layer: Any = model.hf.get_submodule(path)
    with torch.no_grad():
        if hasattr(layer, "lora_E"):
            singular = layer.lora_E[ADAPTER][:, 0]
            kept = singular != 0
            scale = layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER] + 1e-5)  # peft's own guard of an empty adapter
            left, right = layer.lora_B[ADAPTER][:, kept] * scale, layer.lora_A[ADAPTER][kept] * singular[kept, None]
        else:
            left = layer.lora_B[ADAPTER].weight * layer.scaling[ADAPTER]
            right = layer.lora_A[ADAPTER].weight
        return LowRank(left.float().cpu().contiguous(), right.t().float().cpu().contiguous())
