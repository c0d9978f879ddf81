"""Export a model that wears neurons as a plain Hugging Face model whose feed-forward layers are wider.

The loaded model needs none of our code. A plain feed-forward (GPT-2) keeps every neuron as one more column: its width
grows, and layers with fewer neurons are padded with zeros, which add nothing since act(0) = 0. A gated feed-forward (Llama)
keeps it as `act(k.h + b) * 1`: the gate's row is the key, the other projection is 0 with bias 1, so its projections need
biases.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from editors.errors import UnsupportedModel
from editors.model import EditableModel
from editors.patches.neurons import NeuronPatch, activation_of


@dataclass(frozen=True)
class Columns:
    """Neurons of one layer: keys (n, d_model), biases (n,), values (n, d_model)."""

    keys: Tensor
    biases: Tensor
    values: Tensor


def why_no_room(model: EditableModel) -> str:
    """Why the architecture's feed-forward takes no further column with a bias of its own; empty where it does."""
    kind, anatomy = str(model.hf.config.model_type), model.anatomy
    if anatomy.gated and anatomy.biases is None:
        return f"a gated feed-forward holds neurons and slots only with biases, which {kind!r} has not"
    if not anatomy.gated and getattr(anatomy.module(model.hf, anatomy.mlp_in[0], 0), "bias", None) is None:
        return f"this {kind!r} has a feed-forward without biases, which neurons and slots need"
    return ""


def widened(model: EditableModel, sharpness: float | None = None) -> PreTrainedModel:
    """A new plain model with the weights as they are now and the neurons built in; `model` stays as it is.

    Args:
        sharpness: writes a ReLU neuron as `act(c z) / c` with this `c` where the model's activation is smooth. The error
            of a neuron is then at most 0.17 |v| / c for GELU and 0.28 |v| / c for SiLU. None asks for exact equality.

    Raises:
        UnsupportedModel: a patch that is neither weights nor neurons, neurons elsewhere than beside a feed-forward, another
            activation than the model's, or neurons on an architecture that has no room for their biases.
    """
    anatomy = model.anatomy
    other = [p.kind for p in model.patches if not (p.kind == "weight" or isinstance(p, NeuronPatch))]
    if other:
        raise UnsupportedModel(f"{model.name} wears a patch of kind {other[0]!r}, which no plain model can hold")
    columns = {layer: _columns(model, layer, sharpness) for layer in range(anatomy.num_layers(model.hf))}
    extra = max(len(c.keys) for c in columns.values())
    if extra and (why := why_no_room(model)):
        raise UnsupportedModel(why)
    config = copy.deepcopy(model.hf.config)
    inner = model.weight(anatomy.mlp_out, 0).shape[1]
    setattr(config, anatomy.inner, inner + extra)
    if anatomy.biases is not None and extra:
        setattr(config, anatomy.biases, True)
    state = dict(model.hf.state_dict())
    for layer, own in columns.items():
        state |= _wide_layer(model, layer, own, extra) if extra else {}
    with torch.random.fork_rng(devices=[]):
        wide = AutoModelForCausalLM.from_config(config, dtype=model.hf.dtype, attn_implementation="eager")
    wide.load_state_dict(state)
    wide.tie_weights()
    return wide.eval().requires_grad_(False)


def _columns(model: EditableModel, layer: int, sharpness: float | None) -> Columns:
    """All neurons of a layer, in the model's own activation."""
    site, own = model.anatomy.mlp.format(layer=layer), activation_of(model)
    d_model = model.anatomy.d_model(model.hf)
    none = torch.zeros(0, d_model)
    keys, biases, values = [none], [torch.zeros(0)], [none]
    sites = {model.anatomy.mlp.format(layer=i) for i in range(model.anatomy.num_layers(model.hf))}
    for patch in model.patches:
        if not isinstance(patch, NeuronPatch):
            continue
        if patch.site not in sites:
            raise UnsupportedModel(f"neurons at {patch.site} stand beside no feed-forward; only those become columns")
        if patch.site != site:
            continue
        scale = 1.0
        if patch.activation != own:
            if patch.activation != "relu" or sharpness is None:
                raise UnsupportedModel(
                    f"neurons at {site} have the activation {patch.activation!r}, {model.name} has {own!r}; "
                    "give `sharpness` to write ReLU neurons nearly, or serve with hooks"
                )
            scale = sharpness
        keys.append(patch.keys * scale)
        biases.append(patch.biases * scale)
        values.append(patch.values / scale)
    return Columns(torch.cat(keys), torch.cat(biases), torch.cat(values))


def _wide_layer(model: EditableModel, layer: int, own: Columns, extra: int) -> Mapping[str, Tensor]:
    """State of one feed-forward with `extra` more hidden units, `own` first, then zeros."""
    missing = extra - len(own.keys)
    keys, values = (torch.nn.functional.pad(t, (0, 0, 0, missing)) for t in (own.keys, own.values))
    biases = torch.nn.functional.pad(own.biases, (0, missing))
    names = [path.format(layer=layer) for path in model.anatomy.mlp_in]
    out = model.anatomy.mlp_out.format(layer=layer)
    state: dict[str, Tensor] = {}
    # The first projection into the hidden space is the one that passes the activation; the second, of gated ones, is 1.
    for path, name, rows, bias in zip(
        model.anatomy.mlp_in, names, (keys, torch.zeros_like(keys)), (biases, torch.ones_like(biases)), strict=False
    ):
        wide = torch.cat([model.weight(path, layer), rows.to(model.hf.device, model.hf.dtype)])
        state[name + ".weight"] = _stored(model, path, layer, wide)
        old = dict(model.hf.get_submodule(name).named_parameters()).get("bias")
        before = torch.zeros(len(wide) - extra) if old is None else old.detach()
        state[name + ".bias"] = torch.cat([before.to(model.hf.device), bias.to(model.hf.device, model.hf.dtype)])
    narrow = model.weight(model.anatomy.mlp_out, layer)
    wide_out = torch.cat([narrow, values.t().to(narrow)], dim=1)
    state[out + ".weight"] = _stored(model, model.anatomy.mlp_out, layer, wide_out)
    if "bias" not in dict(model.hf.get_submodule(out).named_parameters()) and len(names) > 1:
        state[out + ".bias"] = torch.zeros(len(narrow), device=narrow.device, dtype=narrow.dtype)
    return state


def _stored(model: EditableModel, path: str, layer: int, weight: Tensor) -> Tensor:
    """(d_out, d_in) in the architecture's own order."""
    return (weight.t() if model.anatomy.orientation == "in_out" else weight).contiguous()
