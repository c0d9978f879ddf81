"""A plain model whose feed-forward layers are wider: columns beside the base's own, then zeros, one width for all layers.

A gated feed-forward computes `act(k . h) (u . h) d` in each column, another one `act(k . h + b) d`. Padding adds nothing:
its `d` is 0.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, PreTrainedModel

from editors.errors import UnsupportedModel
from editors.export.form import PlainForm, Room, room_for
from editors.model import EditableModel

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float


@dataclass(frozen=True)
class Columns:
    """Columns of one layer beside its own.

    Attributes:
        keys: `k`.
        values: `d`.
        biases: `b`; None where the thresholds are in the keys.
        ups: `u` of a gated feed-forward; None: 1, which takes biases.
    """

    keys: Float[Tensor, "columns d_model"]
    values: Float[Tensor, "columns d_model"]
    biases: Float[Tensor, " columns"] | None = None
    ups: Float[Tensor, "columns d_model"] | None = None

    def __len__(self) -> int:
        return len(self.keys)


def joined(parts: Sequence[Columns]) -> Columns:
    """Columns of one layer, all of one kind, one after another; at least one part."""
    biases = [p.biases for p in parts if p.biases is not None]
    ups = [p.ups for p in parts if p.ups is not None]
    return Columns(
        torch.cat([p.keys for p in parts]),
        torch.cat([p.values for p in parts]),
        torch.cat(biases) if biases else None,
        torch.cat(ups) if ups else None,
    )


def wide_model(model: EditableModel, columns: Mapping[int, Columns], form: PlainForm) -> tuple[PreTrainedModel, Room]:
    """A new plain model with the weights as they are now and the columns built in; `model` stays as it is.

    Args:
        columns: by layer, all of one kind; layers that are not there have none.

    Raises:
        UnsupportedModel: a column is not finite in the form's dtype.
    """
    anatomy, dtype = model.anatomy, form.dtype or model.hf.dtype
    num_layers, d_model = anatomy.num_layers(model.hf), anatomy.d_model(model.hf)
    own = model.weight(anatomy.mlp_out, 0).shape[1]
    parts = sum(len(model.weight(path, 0)) for path in anatomy.mlp_in) // own
    used = max((len(c) for c in columns.values()), default=0)
    room = room_for(
        own,
        used,
        reserve=form.reserve,
        parameters=(parts + 1) * d_model + sum(len(b) for b in _biases(model, 0).values()) // own,
        layers=num_layers,
        of_before=form.of_before,
    )
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in model.state().items()}
    empty = torch.zeros(0, d_model)
    # With biases in one layer there are biases in all: a configuration has one entry for them.
    none = Columns(empty, empty, torch.zeros(0) if form.of_before else None)
    for layer in range(num_layers) if room.width > own else ():
        state |= _wide_layer(model, layer, columns.get(layer, none), room.width - own, dtype)
    config = copy.deepcopy(model.hf.config)
    setattr(config, anatomy.inner, room.width)
    if form.of_before and anatomy.gated and anatomy.biases is not None and used:
        setattr(config, anatomy.biases, True)
    with torch.random.fork_rng(devices=[]):
        wide = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    wide.load_state_dict(state)
    wide.tie_weights()
    return wide.eval().requires_grad_(False), room


def _biases(model: EditableModel, layer: int) -> dict[str, Tensor]:
    """Biases of the projections into the hidden space, by path; none where the base has none."""
    names = {path: f"{path.format(layer=layer)}.bias" for path in model.anatomy.mlp_in}
    return {path: model.parameter(name) for path, name in names.items() if name in model.parameter_names()}


def _wide_layer(model: EditableModel, layer: int, own: Columns, extra: int, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """State of one feed-forward with `extra` more hidden units, `own` first, then zeros."""
    anatomy, missing = model.anatomy, extra - len(own)

    def rows(part: Tensor) -> Tensor:
        found = pad(part, (0, 0, 0, missing) if part.dim() == 2 else (0, missing)).to(model.device, dtype)
        if not bool(found.isfinite().all()):
            kind = str(dtype).removeprefix("torch.")
            raise UnsupportedModel(
                f"columns of layer {layer} are not finite in {kind}; set serving.dtype to bfloat16 or float32"
            )
        return found

    keys, values = rows(own.keys), rows(own.values)
    ups = torch.zeros_like(keys) if own.ups is None else rows(own.ups)
    biases = torch.zeros(len(keys)).to(keys) if own.biases is None else rows(own.biases)
    # Gated without rows of its own for the second projection: that is 1, which is a bias.
    ones = torch.ones_like(biases) if own.ups is None and own.biases is not None else torch.zeros_like(biases)
    # The first projection into the hidden space is the one that passes the activation; one matrix may hold both.
    adds = [(keys, biases), (ups, ones)] if anatomy.gated else [(keys, biases)]
    has, state = _biases(model, layer), {}
    each = len(adds) // len(anatomy.mlp_in)
    for number, path in enumerate(anatomy.mlp_in):
        name, more = path.format(layer=layer), adds[number * each : (number + 1) * each]
        weights = model.weight(path, layer).to(dtype).chunk(each)
        wide = torch.cat([part for w, (k, _) in zip(weights, more, strict=True) for part in (w, k)])
        state[name + ".weight"] = _stored(model, path, wide)
        if path in has or own.biases is not None:
            before = has.get(path, torch.zeros(sum(map(len, weights)), device=wide.device)).to(dtype).chunk(each)
            state[name + ".bias"] = torch.cat([part for b, (_, a) in zip(before, more, strict=True) for part in (b, a)])
    out = anatomy.mlp_out.format(layer=layer)
    narrow = model.weight(anatomy.mlp_out, layer).to(dtype)
    state[out + ".weight"] = _stored(model, anatomy.mlp_out, torch.cat([narrow, values.t()], dim=1))
    if own.biases is not None and anatomy.gated and "bias" not in dict(model.hf.get_submodule(out).named_parameters()):
        state[out + ".bias"] = torch.zeros(len(narrow), device=narrow.device, dtype=dtype)
    return state


def _stored(model: EditableModel, path: str, weight: Tensor) -> Tensor:
    """(d_out, d_in) in the architecture's own order."""
    return (weight.t() if model.anatomy.orientation == "in_out" else weight).contiguous()
