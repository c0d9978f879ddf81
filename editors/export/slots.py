"""Export a model that wears slots as a plain Hugging Face model: each slot becomes two columns of its feed-forward.

    ramp(z) = relu(z) - relu(z - 1) ,   relu(z) ~ act(c z) / c   with the model's own activation and a large c

The loaded model needs none of our code. What a column pair adds is off by at most 0.17 |d| / c (GELU) or 0.28 |d| / c
(SiLU) at each of its two ends, and only within a few 1/c of them: elsewhere the two forms agree to rounding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from editors.architectures.anatomies import anatomy_of
from editors.asking.tokens import save_tokenizer
from editors.errors import PatchError, UnsupportedModel
from editors.export.neurons import widened
from editors.model import EditableModel
from editors.patches.neurons import NeuronPatch, count_neurons
from editors.patches.slots import SlotBook, SlotPatch, slots_name
from warehouse.digests import canonical_json
from warehouse.records import Record

#: Default of c. fp32 holds a gate's answer to about 1e-6 whatever c is; at 1e4 the activation's own error is below that of
#: most values' rounding.
SHARPNESS = 1e4
#: What is written beside the plain model.
RECORD = "slots.json"


class SlotColumns(Record):
    """Where one subject's edits are in the plain model: columns of the feed-forward `layer`, and the requests."""

    subject: str
    layer: int
    columns: tuple[int, int]
    requests: tuple[str, ...]


def export_plain(model: EditableModel, folder: Path, sharpness: float = SHARPNESS) -> tuple[SlotColumns, ...]:
    """Write weights, configuration and tokenizer for `AutoModelForCausalLM.from_pretrained`, and `slots.json`.

    `model` is as it was before. Every edit stays removable: see `silence`.

    Returns:
        The columns of every subject.

    Raises:
        UnsupportedModel: no slot is on the model, its dtype is not fp32, or see `widen.widened`.
    """
    plain, places = widened_slots(model, sharpness)
    plain.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(model.own_tokenizer, folder)
    (folder / RECORD).write_bytes(canonical_json([p.model_dump(mode="json") for p in places]))
    return places


def widened_slots(model: EditableModel, sharpness: float = SHARPNESS) -> tuple[PreTrainedModel, tuple[SlotColumns, ...]]:
    """The plain model itself, and where its slots are; see `export_plain`."""
    sites = sorted({p.site for p in model.patches if isinstance(p, SlotPatch)})
    if not sites:
        raise UnsupportedModel(f"{model.name} wears no slot; save_pretrained exports it as it is")
    if model.hf.dtype != torch.float32:
        raise UnsupportedModel(f"the gates of slots need float32, {model.name} has {model.hf.dtype}; load it in float32")
    books: dict[str, SlotBook] = {site: model.memories[slots_name(site)] for site in sites}
    made = {site: _neurons(site, book) for site, book in books.items() if book.slots}
    # Taken now: the book empties as its patches come off.
    requests = {
        site: {subject: tuple(r.request_id for r in slot.requests) for subject, slot in sorted(book.slots.items())}
        for site, book in books.items()
    }
    anatomy = model.anatomy
    inner = model.weight(anatomy.mlp_out, 0).shape[1]
    places: list[SlotColumns] = []
    with _instead_of_slots(model):
        layers = {anatomy.mlp.format(layer=i): i for i in range(anatomy.num_layers(model.hf))}
        for site, (keys, biases, values) in made.items():
            # Columns follow the neurons that other editors left at the site, in the order of the patches.
            first = inner + sum(len(p.keys) for p in model.patches if isinstance(p, NeuronPatch) and p.site == site)
            model.push(NeuronPatch(site, "relu", count_neurons(model, site, "relu"), keys, biases, values))
            for number, (subject, names) in enumerate(requests[site].items()):
                at = first + 2 * number
                places.append(SlotColumns(subject=subject, layer=layers[site], columns=(at, at + 1), requests=names))
        return widened(model, sharpness), tuple(places)


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


def _neurons(site: str, book: SlotBook) -> tuple[Tensor, Tensor, Tensor]:
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


@contextmanager
def _instead_of_slots(model: EditableModel) -> Iterator[None]:
    """The model with all its patches but the slots, for the length of a block."""
    patches = list(model.patches)
    model.rollback(0)
    try:
        for patch in patches:
            if not isinstance(patch, SlotPatch):
                model.push(patch)
        yield
    finally:
        model.rollback(0)
        for patch in patches:
            model.push(patch)
