"""A checkpoint as a plain Hugging Face directory: its weights with every edit that weights can hold.

The loaded model needs none of our code. Its tensors have the base's names, and its configuration the base's entries; only the
width of the feed-forward is another where edits stand beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from editors.asking.tokens import save_tokenizer
from editors.errors import UnsupportedModel
from editors.export.companions import write_companions
from editors.export.form import OF_BEFORE, PlainForm, Room
from editors.export.neurons import neuron_columns
from editors.export.slots import SlotColumns, places_of, slot_columns, write_places
from editors.export.wide import Columns, joined, wide_model
from editors.model import EditableModel
from editors.patches.neurons import NeuronPatch
from editors.patches.slots import SlotBook, SlotPatch, slots_name
from warehouse.records import Checkpoint

NOTE = "errata.json"


@dataclass(frozen=True)
class Plain:
    """A plain model with all edits in it.

    Attributes:
        places: where each subject's slot is.
        room: the width of its feed-forward layers.
        columns: by site, how many columns hold something.
    """

    hf: PreTrainedModel
    places: tuple[SlotColumns, ...]
    room: Room
    columns: Mapping[str, int]


@dataclass(frozen=True)
class Materialised:
    """What `materialise` wrote. `why_not`: what kept the weights from holding every edit; `room`: None where none is wider."""

    folder: Path
    why_not: str = ""
    room: Room | None = None

    @property
    def whole(self) -> bool:
        """Do the weights hold every edit?"""
        return not self.why_not


def sites_beside(model: EditableModel) -> tuple[str, ...]:
    """Feed-forwards that edits of the model stand beside, in the order of their layers.

    Raises:
        UnsupportedModel: neurons or slots elsewhere.
    """
    found = {p.site for p in model.patches if isinstance(p, (NeuronPatch, SlotPatch))}
    sites = tuple(model.anatomy.mlp.format(layer=i) for i in range(model.anatomy.num_layers(model.hf)))
    if strange := sorted(found - set(sites)):
        raise UnsupportedModel(f"neurons at {strange[0]} stand beside no feed-forward; only those become columns")
    return tuple(site for site in sites if site in found)


def columns_of(model: EditableModel, form: PlainForm) -> tuple[Mapping[int, Columns], tuple[SlotColumns, ...]]:
    """By layer, the columns that hold the neurons and slots of the model, and where each subject's slot is among them.

    Columns of a site: neurons in the order of their patches, then slots by subject.

    Raises:
        UnsupportedModel: an architecture that has no room for them, or a direction that they need is not constant.
    """
    own = model.weight(model.anatomy.mlp_out, 0).shape[1]
    layers = {model.anatomy.mlp.format(layer=i): i for i in range(model.anatomy.num_layers(model.hf))}
    columns: dict[int, Columns] = {}
    places: list[SlotColumns] = []
    for site in sites_beside(model):
        parts: list[Columns] = []
        for patch in model.patches:
            if isinstance(patch, NeuronPatch) and patch.site == site:
                parts.append(neuron_columns(model, patch, form, sum(map(len, parts))))
        book: SlotBook | None = model.memories.get(slots_name(site))
        if book is not None and book.slots:
            start = sum(map(len, parts))
            parts.append(slot_columns(model, site, book, form, start))
            places += places_of(book, layers[site], own + start)
        if parts:
            columns[layers[site]] = joined(parts)
    return columns, tuple(places)


def plain_model(model: EditableModel, form: PlainForm | None = None) -> Plain:
    """A new plain model with the weights as they are now, neurons and slots built in; `model` stays as it is.

    Raises:
        UnsupportedModel: a patch that no plain model can hold, or see `columns_of`.
    """
    form = form or PlainForm()
    other = [p.kind for p in model.patches if not (p.kind == "weight" or isinstance(p, (NeuronPatch, SlotPatch)))]
    if other:
        raise UnsupportedModel(f"{model.name} wears a patch of kind {other[0]!r}, which no plain model can hold")
    columns, places = columns_of(model, form)
    hf, room = wide_model(model, columns, form)
    sites = {model.anatomy.mlp.format(layer=layer): len(own) for layer, own in columns.items()}
    return Plain(hf, places, room, sites)


def export_plain(model: EditableModel, folder: Path, form: PlainForm | None = None) -> Plain:
    """Write weights, configuration and what travels with them for `AutoModelForCausalLM.from_pretrained`, and `slots.json`.

    `model` is as it was before. Every slot stays removable: see `editors.export.slots.silence`.

    Raises:
        UnsupportedModel: see `plain_model`.
    """
    form = form or PlainForm()
    plain = plain_model(model, form)
    plain.hf.save_pretrained(folder, safe_serialization=True)
    if form.of_before:
        save_tokenizer(model.own_tokenizer, folder)
    else:
        write_companions(model, folder)
    if any(isinstance(p, SlotPatch) for p in model.patches):
        write_places(plain.places, folder)
    return plain


def materialise(model: EditableModel, checkpoint: Checkpoint, folder: Path, form: PlainForm | None = None) -> Materialised:
    """Write the Hugging Face directory of a candidate, with a note of what it is made of and how.

    Added neurons and slots become a wider feed-forward where the architecture has room for them; `slots.json` then says
    which columns hold whose edits. Where a patch is neither (a memory, a text), or there is no such room, the weights alone do
    not show the edit; the note says so and why, and `check_whole` refuses the folder.
    """
    form = form or PlainForm()
    shutil.rmtree(folder, ignore_errors=True)
    why_not, plain = "", None
    has_slots = any(isinstance(p, SlotPatch) for p in model.patches)
    if form.of_before and not has_slots:
        # Neurons alone were written equal or not at all.
        form = replace(form, sharpness=None)
    try:
        if any(p.kind != "weight" for p in model.patches):
            plain = export_plain(model, folder, form)
        else:
            _write_weights(model, folder, form)
    except UnsupportedModel as error:
        _write_weights(model, folder, form)
        why_not = str(error)
    note = {
        "checkpoint_id": checkpoint.checkpoint_id,
        "base_digest": checkpoint.base_digest,
        "patch_digests": list(checkpoint.patch_digests),
        "patch_kinds": sorted({p.kind for p in model.patches}),
        "weights_hold_every_edit": not why_not,
        **({"why_not": why_not} if why_not else {}),
        **({} if form.of_before else {"form": _described(model, form, plain)}),
    }
    (folder / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return Materialised(folder, why_not, plain and plain.room)


def why_not_plain(folder: Path) -> str:
    """Why a folder of `materialise` answers as if some of its edits had never been; empty where it holds them all."""
    note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    if note["weights_hold_every_edit"]:
        return ""
    # Checkpoints of before do not say why.
    why = note.get("why_not", f"plain weights do not show its patches ({', '.join(note['patch_kinds'])})")
    return (
        f"checkpoint {note['checkpoint_id'][:12]} is no plain model: {why}; its edits work where Errata serves them "
        "(`errata ask`), and an editor that changes weights makes checkpoints that work anywhere"
    )


def check_whole(folder: Path) -> None:
    """Refuse a folder of `materialise` that does not hold every edit.

    Raises:
        UnsupportedModel: with what its weights could not hold.
    """
    if why := why_not_plain(folder):
        raise UnsupportedModel(f"{why}; --anyway takes the weights without these edits")


def second_rows(tensors: Mapping[str, Tensor], model: EditableModel, site: str, columns: int) -> Tensor:
    """(columns, d_model) rows of a gated feed-forward's second projection in the columns beside the base's own.

    Args:
        tensors: of a plain model, by name.
        model: of that architecture.

    Raises:
        ValueError: it has no such tensor.
    """
    anatomy = model.anatomy
    layer = next(i for i in range(anatomy.num_layers(model.hf)) if anatomy.mlp.format(layer=i) == site)
    name = anatomy.mlp_in[-1].format(layer=layer) + ".weight"
    if name not in tensors:
        raise ValueError(f"there is no tensor {name} in what was written")
    own = model.weight(anatomy.mlp_out, layer).shape[1]
    # One matrix may hold both projections, the second one last.
    return tensors[name].chunk(3 - len(anatomy.mlp_in))[-1][own : own + columns].float()


def form_of_note(note: Mapping[str, Any]) -> PlainForm:
    """The form that a checkpoint was written in, but for the rows of its second projections.

    Raises:
        ValueError: the note says something that this release does not know.
    """
    said = note.get("form")
    if said is None:
        return OF_BEFORE
    try:
        dtype = getattr(torch, said["dtype"])
        return PlainForm(dtype=dtype, sharpness=float(said["sharpness"]), reserve=int(said["reserve"]))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{NOTE} describes the plain model in words of another release ({error}); update errata") from error


def _write_weights(model: EditableModel, folder: Path, form: PlainForm) -> None:
    model.save_pretrained(folder, None if form.dtype in (None, model.hf.dtype) else form.dtype)
    if not form.of_before:
        write_companions(model, folder)


def _described(model: EditableModel, form: PlainForm, plain: Plain | None) -> dict[str, Any]:
    return {
        "class": type(model.hf).__name__,
        "dtype": str(form.dtype or model.hf.dtype).removeprefix("torch."),
        "sharpness": form.sharpness,
        "reserve": form.reserve,
        "width": None if plain is None else plain.room.width,
        "room": None if plain is None else plain.room.sentence,
        "columns": {} if plain is None else dict(plain.columns),
    }
