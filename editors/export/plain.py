"""A checkpoint as a plain Hugging Face directory: its weights with every edit that weights can hold."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from editors.asking.tokens import save_tokenizer
from editors.errors import UnsupportedModel
from editors.export.neurons import widened
from editors.export.slots import export_plain
from editors.model import EditableModel
from editors.patches.slots import SlotPatch
from warehouse.records import Checkpoint

log = logging.getLogger(__name__)
NOTE = "errata.json"


def materialise(model: EditableModel, checkpoint: Checkpoint, folder: Path) -> Path:
    """Write the Hugging Face directory of a candidate, with a note of what it is made of.

    Added neurons and slots become a wider feed-forward where the architecture has room for them; `slots.json` then says
    which columns hold whose edits. Where a patch is neither (a memory, a text), the weights alone do not show the edit;
    the note says so.
    """
    shutil.rmtree(folder, ignore_errors=True)
    whole = True
    try:
        if any(isinstance(p, SlotPatch) for p in model.patches):
            export_plain(model, folder)
        elif any(p.kind != "weight" for p in model.patches):
            widened(model).save_pretrained(folder, safe_serialization=True)
            save_tokenizer(model.own_tokenizer, folder)
        else:
            model.save_pretrained(folder)
    except UnsupportedModel as error:
        log.warning("the exported weights do not show every edit: %s", error)
        model.save_pretrained(folder)
        whole = False
    kinds = sorted({p.kind for p in model.patches})
    note = {
        "checkpoint_id": checkpoint.checkpoint_id,
        "base_digest": checkpoint.base_digest,
        "patch_digests": list(checkpoint.patch_digests),
        "patch_kinds": kinds,
        "weights_hold_every_edit": whole,
    }
    (folder / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return folder
