"""Neurons as columns of a plain model: a plain feed-forward (GPT-2) has room for their biases, a gated one (Llama) has not.

Without biases a neuron `act(k . h + b) d` is `act((k + b v) . h) (v . h) d` along a direction in which inputs are 1: see
`editors/export/constant.py`.
"""

from __future__ import annotations

from torch import Tensor

from editors.errors import UnsupportedModel
from editors.export.form import Owner, PlainForm
from editors.export.wide import Columns
from editors.model import EditableModel
from editors.patches.neurons import NeuronPatch, activation_of


def why_no_room(model: EditableModel) -> str:
    """Why no column of the architecture's feed-forward can have a threshold; empty where one can."""
    kind, anatomy = str(model.hf.config.model_type), model.anatomy
    if not anatomy.gated and getattr(anatomy.module(model.hf, anatomy.mlp_in[0], 0), "bias", None) is None:
        return f"this {kind!r} has a feed-forward without biases, which hold the thresholds of neurons and slots"
    if anatomy.gated and anatomy.mlp_norm is None:
        return (
            f"the gated feed-forward of {kind!r} reads the residual stream without a norm, so nothing is constant at its input "
            "and no threshold of a neuron or slot can be folded into it"
        )
    return ""


def neuron_columns(model: EditableModel, patch: NeuronPatch, form: PlainForm, start: int = 0) -> Columns:
    """The neurons of one patch, in the model's own activation: one column each, in their order.

    Args:
        start: how many columns of the site stand before these.

    Raises:
        UnsupportedModel: another activation than the model's and no sharpness to write it with, an architecture that has
            no room, or see `PlainForm.rows_of`.
    """
    own, scale = activation_of(model), 1.0
    if patch.activation != own:
        if patch.activation != "relu" or form.sharpness is None:
            raise UnsupportedModel(
                f"neurons at {patch.site} have the activation {patch.activation!r}, {model.name} has {own!r}, and only ReLU "
                "neurons can be written nearly; serve with hooks"
            )
        scale = form.sharpness
    keys, biases, values = patch.keys * scale, patch.biases * scale, patch.values / scale
    return folded(model, patch.site, keys, biases, values, _owners(patch), form, start)


def folded(
    model: EditableModel,
    site: str,
    keys: Tensor,
    biases: Tensor,
    values: Tensor,
    owners: list[Owner],
    form: PlainForm,
    start: int,
) -> Columns:
    """Columns with their thresholds where the architecture has room for them: in biases, or in the keys.

    Raises:
        UnsupportedModel: it has room for neither, or see `PlainForm.rows_of`.
    """
    anatomy = model.anatomy
    if form.of_before and anatomy.gated:
        if anatomy.biases is None:
            kind = str(model.hf.config.model_type)
            raise UnsupportedModel(f"a gated feed-forward held neurons only with biases, which {kind!r} has not")
        return Columns(keys, values, biases)
    if why := why_no_room(model):
        raise UnsupportedModel(why)
    if not anatomy.gated:
        return Columns(keys, values, biases)
    ups = form.rows_of(site, owners, form.dtype or model.hf.dtype, start)
    return Columns((keys.double() + biases.double()[:, None] * ups.double()).float(), values, ups=ups)


def _owners(patch: NeuronPatch) -> list[Owner]:
    """A neuron's own query where each has one; else all that the patch knows."""
    if len(patch.queries) == len(patch.keys):
        return [Owner(1, query[None]) for query in patch.queries]
    return [Owner(len(patch.keys), patch.queries)]
