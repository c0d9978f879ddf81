"""A checkpoint as a plain Hugging Face directory: its weights with every edit that weights can hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from editors.asking.tokens import save_tokenizer
from editors.errors import UnsupportedModel
from editors.export.neurons import widened
from editors.export.slots import export_plain
from editors.model import EditableModel
from editors.patches.slots import SlotPatch
from warehouse.records import Checkpoint

NOTE = "errata.json"


def materialise(model: EditableModel, checkpoint: Checkpoint, folder: Path) -> Path:
    """Write the Hugging Face directory of a candidate, with a note of what it is made of.

    Added neurons and slots become a wider feed-forward where the architecture has room for them; `slots.json` then says
    which columns hold whose edits. Where a patch is neither (a memory, a text), or there is no such room, the weights alone do
    not show the edit; the note says so and why, and `check_whole` refuses the folder.
    """
    shutil.rmtree(folder, ignore_errors=True)
    why = ""
    try:
        if any(isinstance(p, SlotPatch) for p in model.patches):
            export_plain(model, folder)
        elif any(p.kind != "weight" for p in model.patches):
            widened(model).save_pretrained(folder, safe_serialization=True)
            save_tokenizer(model.own_tokenizer, folder)
        else:
            model.save_pretrained(folder)
    except UnsupportedModel as error:
        model.save_pretrained(folder)
        why = str(error)
    kinds = sorted({p.kind for p in model.patches})
    note = {
        "checkpoint_id": checkpoint.checkpoint_id,
        "base_digest": checkpoint.base_digest,
        "patch_digests": list(checkpoint.patch_digests),
        "patch_kinds": kinds,
        "weights_hold_every_edit": not why,
    } | ({"why_not": why} if why else {})
    (folder / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return folder


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
        raise UnsupportedModel(why)
