"""Write any checkpoint where other programs read it: a Hugging Face directory, or a LoRA adapter for the base."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from editors.export.adapter import write_adapter
from editors.export.plain import NOTE, check_whole, materialise
from editors.model import EditableModel
from editors.writing import writing
from tasks.serving.checkpoints import find_checkpoint
from tasks.serving.form import plain_form
from tasks.serving.models import at_checkpoint, base_revision
from tasks.settings import Settings
from tasks.workspace import store_of
from warehouse.errors import Conflict, UsageError
from warehouse.records import Checkpoint, Record, checkpoint_id
from warehouse.whole_files import whole_folder

log = logging.getLogger(__name__)


class ExportedModule(Record):
    """See `editors.export.adapter.AdaptedModule`."""

    module: str
    rank: int
    relative_error: float


class Exported(Record):
    """What `errata export` wrote.

    `whole`: the files show every edit of the checkpoint, as all do but what was taken anyway; `room`: how wide its layers are,
    where edits stand in columns; `modules`: of an adapter.
    """

    out: str
    checkpoint_id: str
    form: Literal["model", "adapter"]
    patches: int
    whole: bool = True
    room: str = ""
    modules: tuple[ExportedModule, ...] = ()


def export(
    settings: Settings, name: str, out: Path, *, peft: bool = False, max_rank: int | None = None, anyway: bool = False
) -> Exported:
    """Write a checkpoint into a new or empty folder; the folder is there whole or not at all.

    Args:
        name: as in `find_checkpoint`; also a rejected candidate or `base`.
        peft: a LoRA adapter for the base model instead of a whole model.
        max_rank: see `write_adapter`.
        anyway: write a whole model that does not show every edit too.

    Raises:
        NotFound: no such checkpoint.
        Conflict: the folder holds something.
        UnsupportedModel: neither an adapter nor plain weights, whichever was asked for, can hold the checkpoint's edits.
        UsageError: `max_rank` without `peft`.
    """
    if max_rank is not None and not peft:
        raise UsageError("--max-rank is about the adapter of --peft; a whole model is exact")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Conflict(f"{out} holds something already; give a new or empty folder")
    found = find_checkpoint(settings, name)
    model = at_checkpoint(settings, store_of(settings), found)
    checkpoint = found or _base(settings, model)
    with writing(out), whole_folder(out) as fresh:
        if peft:
            exported = _adapter(settings, model, checkpoint, fresh, max_rank)
        else:
            exported = _model(settings, model, checkpoint, fresh, anyway)
    log.info("%s: %s of checkpoint %s", out, exported.form, checkpoint.checkpoint_id[:12])
    return exported.model_copy(update={"out": str(out)})


def _base(settings: Settings, model: EditableModel) -> Checkpoint:
    return Checkpoint(
        checkpoint_id=checkpoint_id(model.base_digest),
        parent=None,
        patch_digests=(),
        created_at=datetime.now(UTC),
        base_model=settings.model.name if settings.model.revision else "local",
        base_revision=base_revision(settings, model),
        base_digest=model.base_digest,
    )


def _model(settings: Settings, model: EditableModel, checkpoint: Checkpoint, folder: Path, anyway: bool) -> Exported:
    folder.parent.mkdir(parents=True, exist_ok=True)
    written = materialise(model, checkpoint, folder, plain_form(settings, model))
    if not anyway:
        check_whole(folder)
    return Exported(
        out=str(folder),
        checkpoint_id=checkpoint.checkpoint_id,
        form="model",
        patches=len(model.patches),
        whole=written.whole,
        room=written.room.sentence if written.room else "",
    )


def _adapter(settings: Settings, model: EditableModel, checkpoint: Checkpoint, folder: Path, rank: int | None) -> Exported:
    modules = tuple(ExportedModule(**vars(m)) for m in write_adapter(model, folder, base=settings.model.name, max_rank=rank))
    note = {
        "checkpoint_id": checkpoint.checkpoint_id,
        "base_digest": checkpoint.base_digest,
        "base_revision": checkpoint.base_revision,
        "patch_digests": list(checkpoint.patch_digests),
        "modules": [m.model_dump() for m in modules],
    }
    (folder / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return Exported(
        out=str(folder),
        checkpoint_id=checkpoint.checkpoint_id,
        form="adapter",
        patches=len(model.patches),
        modules=modules,
    )
