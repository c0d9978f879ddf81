"""Make production's files again from the base and its patches, on this machine, and compare."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from editors.asking.tokens import FROM_ENVIRONMENT, TOKENIZER_CONFIG
from editors.errors import EditorError
from editors.export.companions import is_licence
from editors.export.form import PlainForm
from editors.export.plain import NOTE, columns_of, form_of_note, materialise, second_rows
from editors.model import EditableModel
from editors.stored_tensors import StoredTensors
from tasks.proving.engine import CARD
from tasks.serving.form import constants_of
from tasks.serving.models import at_checkpoint
from tasks.settings import Settings
from warehouse.checkpoints.manifests import read_manifest, read_pointer
from warehouse.checkpoints.object_store import ObjectStore, checkpoint_key
from warehouse.digests import sha256_file
from warehouse.errors import UsageError, WarehouseError
from warehouse.lineages.audit import Break

#: How far an entry written on another machine by the rules of before may be off: relative to itself, and to the smaller of
#: the largest entries in its row and column (a slot's key is large, the weight beside it in the same row is not).
OWN_SHARE, ROW_SHARE = 1e-4, 1e-5
MAX_CONFIG_BYTES = 4 << 20
#: How far a row along a constant direction may lie from the one that this machine finds, over that one's norm: by rounding
#: alone; from another preparation, as after a release that changed the corpus. Further off it was changed.
SAME_ROW, NEAR_ROW = 0.01, 0.25


@dataclass(frozen=True)
class Rederived:
    """`breaks`: what does not come out; `notes`: what comes out, but not to the bit, and why that is no break."""

    breaks: tuple[Break, ...] = ()
    notes: tuple[str, ...] = ()


def rederived(settings: Settings, store: ObjectStore) -> Rederived:
    """Production's files made again: bit for bit, whatever processor wrote them.

    Checkpoints whose newest patch is of a release before `editors.exact` have the last bits of the machine that wrote them;
    what differs there is held to a tolerance instead, with a note.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            found = read_pointer(store, settings.channel_name)
            if found is None:
                return Rederived()
            manifest = read_manifest(store, found[0].checkpoint_id)
            # An empty home: what this machine keeps of patches is no witness.
            model = at_checkpoint(settings.model_copy(update={"home": folder}), store, manifest.checkpoint)
        except (WarehouseError, EditorError, UsageError) as error:
            return Rederived((Break(what=f"channel {settings.channel_name}", found=str(error)),))
        # Loading may have remembered the digest (`tasks/serving/base_digests.py`); here the weights themselves are asked.
        read = model.read_base_digest()
        if read != manifest.checkpoint.base_digest:
            found_here = (
                f"its weights have digest {read[:12]}, not {manifest.checkpoint.base_digest[:12]} as the checkpoint says"
            )
            return Rederived((Break(what=f"base {settings.model.name}", found=found_here),))
        try:
            prefix = checkpoint_key(manifest.checkpoint.checkpoint_id, "x").removesuffix("x")
            # Its note names the patches, and its card says what the manifest does.
            own = {k.removeprefix(prefix): d for k, d in manifest.files.items() if k.startswith(prefix)}
            files = {name: digest for name, digest in own.items() if name not in (NOTE, CARD)}
            try:
                form, notes = _form(settings, store, model, prefix, files, folder)
                materialise(model, manifest.checkpoint, folder / "model", form)
            except (ValueError, WarehouseError, EditorError, SafetensorError) as error:
                return Rederived((Break(what=prefix, found=str(error)),))
            found = _compared(store, model, folder, prefix, files)
            return Rederived(found.breaks, (*notes, *found.notes))
        finally:
            model.rollback(0)


def _form(
    settings: Settings, store: ObjectStore, model: EditableModel, prefix: str, files: Mapping[str, str], scratch: Path
) -> tuple[PlainForm, tuple[str, ...]]:
    """How the checkpoint was written, with the rows along constant directions that it has, and what is to be said of these.

    They come of a pass over texts, whose last bits are those of the machine that made it: so they are taken as they stand,
    once they are what this machine finds, and everything else follows from them to the bit.

    Raises:
        ValueError: rows are not what they should be.
    """
    note = json.loads(store.read(prefix + NOTE, MAX_CONFIG_BYTES))
    form = form_of_note(note)
    columns: dict[str, int] = note["form"]["columns"] if "form" in note else {}
    if form.of_before or not model.anatomy.gated or not columns:
        return form, ()
    stored = scratch / "written"
    for name in (n for n in files if n.endswith(".safetensors")):
        (stored / name).parent.mkdir(parents=True, exist_ok=True)
        store.read_to(prefix + name, stored / name)
    kept = StoredTensors(stored)
    dtype = form.dtype or model.hf.dtype
    held, _ = columns_of(model, replace(form, constants=constants_of(settings, model, list(columns))))
    found = {model.anatomy.mlp.format(layer=layer): own.ups for layer, own in held.items()}
    given, notes = {}, []
    for site, count in columns.items():
        given[site] = second_rows(kept, model, site, count)
        rows = found.get(site)
        ours = torch.zeros(0) if rows is None else rows.to(dtype).float()
        if len(given[site]) != len(ours) or not len(ours):
            raise ValueError(f"{site} has {len(given[site])} columns, the patches give {len(ours)}")
        off = ((given[site].double() - ours.double()).norm(dim=1) / ours.double().norm(dim=1)).max()
        if not bool(off <= NEAR_ROW):
            raise ValueError(f"rows of {site} are no direction in which its inputs are constant: {float(off):.2f} from it")
        if bool(off > SAME_ROW):
            notes.append(
                f"{site}: its constant direction was read from another preparation than this home's, {float(off):.2f} off"
            )
    return replace(form, given=given), tuple(notes)


def _compared(store: ObjectStore, model: EditableModel, folder: Path, prefix: str, files: dict[str, str]) -> Rederived:
    breaks, notes = [], []
    of_before = bool(model.patches) and not model.patches[-1].rederivable
    for name, digest in files.items():
        made, key = folder / "model" / name, prefix + name
        if made.is_file() and sha256_file(made) == digest:
            continue
        if of_before and made.is_file() and name == TOKENIZER_CONFIG and _loaded_alike(store, key, made):
            notes.append(f"{key}: written by a release that noted how it had loaded the tokenizer; all else is the same")
        elif of_before and made.is_file() and name.endswith(".safetensors") and _nearly(store, key, made, folder / "stored"):
            notes.append(
                f"{key}: written by a release whose last bits depended on the machine; it is what the base and the patches "
                f"give, to {OWN_SHARE:g} of each weight"
            )
        elif is_licence(name) and not made.is_file():
            notes.append(f"{key}: the base as it lies here has no such file; it says nothing of the weights")
        else:
            breaks.append(Break(what=key, found="the base and the patches do not give this file"))
    return Rederived(tuple(breaks), tuple(notes))


def _loaded_alike(store: ObjectStore, key: str, made: Path) -> bool:
    try:
        stored, ours = json.loads(store.read(key, MAX_CONFIG_BYTES)), json.loads(made.read_bytes())
    except (WarehouseError, ValueError):
        return False
    return isinstance(stored, dict) and {**stored, FROM_ENVIRONMENT: None} == {**ours, FROM_ENVIRONMENT: None}


def _nearly(store: ObjectStore, key: str, made: Path, scratch: Path) -> bool:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        store.read_to(key, scratch / made.name)
        stored, ours = load_file(scratch / made.name), load_file(made)
    except (WarehouseError, OSError, SafetensorError):
        return False
    return stored.keys() == ours.keys() and all(nearly_equal(stored[name], ours[name]) for name in ours)


def nearly_equal(stored: Tensor, ours: Tensor) -> bool:
    """Equal shapes and dtypes, and no entry further off than a machine's last bits explain; see `OWN_SHARE`."""
    if stored.shape != ours.shape or stored.dtype != ours.dtype:
        return False
    if not ours.is_floating_point() or not ours.numel():
        return torch.equal(stored, ours)
    wide = ours.double().reshape(len(ours), -1) if ours.dim() else ours.double().reshape(1, 1)
    size = wide.abs()
    around = torch.minimum(size.amax(1, keepdim=True), size.amax(0, keepdim=True))
    off = (stored.double().reshape(wide.shape) - wide).abs()
    # Not finite is never near: comparisons with it are false.
    return bool((off <= OWN_SHARE * size + ROW_SHARE * around).all())
