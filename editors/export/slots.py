"""Slots as columns of a plain model: each becomes two columns of its feed-forward.

    ramp(z) = relu(z) - relu(z - 1) ,   relu(z) ~ act(c z) / c   with the model's own activation and a large c

What a pair adds is off by at most 0.17 |d| / c (GELU) or 0.28 |d| / c (SiLU) at each of its two ends, and only within a few
1/c of them: elsewhere the two forms agree to rounding.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from editors.architectures.anatomies import anatomy_of
from editors.errors import PatchError, UnsupportedModel
from editors.export.form import Owner, PlainForm
from editors.export.neurons import folded
from editors.export.wide import Columns
from editors.model import EditableModel
from editors.patches.slots import SlotBook
from warehouse.digests import canonical_json
from warehouse.records import Record

#: What is written beside the plain model.
RECORD = "slots.json"


class SlotColumns(Record):
    """Where one subject's edits are in the plain model: columns of the feed-forward `layer`, and the requests."""

    subject: str
    layer: int
    columns: tuple[int, int]
    requests: tuple[str, ...]


def slot_columns(model: EditableModel, site: str, book: SlotBook, form: PlainForm, start: int = 0) -> Columns:
    """The slots of a site, sorted by subject, two columns each; a function of the set, whatever the order of its making.

    Args:
        start: how many columns of the site stand before these.

    Raises:
        PatchError: a ramp has no width.
        UnsupportedModel: no sharpness to write slots with, or see `folded`.
    """
    if form.sharpness is None:
        raise UnsupportedModel(f"the slots of {site} are ReLU neurons, which {model.name} has not; give a sharpness")
    keys, biases, values = _relus(site, book)
    owners = [Owner(2, book.slots[subject].states) for subject in sorted(book.slots)]
    c = form.sharpness
    return folded(model, site, keys * c, biases * c, values / c, owners, form, start)


def places_of(book: SlotBook, layer: int, first: int) -> list[SlotColumns]:
    """Where the slots of a site are in a plain model, the first of them at the column `first`."""
    return [
        SlotColumns(
            subject=subject,
            layer=layer,
            columns=(first + 2 * number, first + 2 * number + 1),
            requests=tuple(r.request_id for r in slot.requests),
        )
        for number, (subject, slot) in enumerate(sorted(book.slots.items()))
    ]


def write_places(places: tuple[SlotColumns, ...], folder: Path) -> None:
    """The record that `read_columns` reads."""
    (folder / RECORD).write_bytes(canonical_json([p.model_dump(mode="json") for p in places]))


def read_columns(folder: Path) -> tuple[SlotColumns, ...]:
    """The record that `export_plain` wrote.

    Raises:
        PatchError: it is not there or is not one.
    """
    try:
        rows = json.loads((folder / RECORD).read_bytes())
        return tuple(SlotColumns.model_validate(row, strict=False) for row in rows)
    except (OSError, ValueError) as error:
        raise PatchError(f"{folder / RECORD} cannot be read: {error}; export the model again") from error


@torch.no_grad()
def silence(plain: PreTrainedModel, place: SlotColumns) -> None:
    """Take one subject's edits out of a loaded plain model: its two columns then write nothing.

    The thresholds of the other slots stay where they are. Where they must be those of the smaller set, retract the edit
    and export again.
    """
    anatomy = anatomy_of(plain)
    module = plain.get_submodule(anatomy.mlp_out.format(layer=place.layer))
    weight = module.get_parameter("weight")
    rows = weight if anatomy.orientation == "in_out" else weight.t()
    rows[list(place.columns)] = 0


def _relus(site: str, book: SlotBook) -> tuple[Tensor, Tensor, Tensor]:
    """Each slot as two ReLU neurons, sorted by subject: keys (2 slots, d_model), biases, values."""
    gates = book.gates
    width = (gates.high - gates.low).double()
    if not bool((width > 0).all()):
        raise PatchError(f"a slot of {site} has a ramp without width; it cannot be written as two activations")
    keys = (gates.filters.double() / width[:, None]).float()
    low = -(gates.offsets.double() + gates.low.double()) / width
    biases = torch.stack([low, low - 1], dim=1).flatten().float()
    signs = torch.tensor([1.0, -1.0], device=gates.values.device)
    values = (gates.values[:, None] * signs[None, :, None]).flatten(0, 1)
    return keys.repeat_interleave(2, dim=0).cpu(), biases.cpu(), values.cpu()
