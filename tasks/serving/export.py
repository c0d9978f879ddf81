"""Write any checkpoint where other programs read it: a Hugging Face directory, a GGUF file, or a LoRA adapter for the base."""

from __future__ import annotations

import json
import logging
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from editors.export.adapter import write_adapter
from editors.export.formats import ExportFormat, GgufType
from editors.export.gguf.write import write_gguf
from editors.export.plain import NOTE, check_whole, materialise
from editors.gguf_files import SUFFIX
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
    where edits stand in columns; `modules`: of an adapter; `type`: of a GGUF's matrices, and `wider`: how many of them stayed
    float16, because no whole blocks make up their rows.
    """

    out: str
    checkpoint_id: str
    form: Literal["model", "gguf", "adapter"]
    patches: int
    whole: bool = True
    room: str = ""
    type: GgufType | None = None
    wider: int = 0
    modules: tuple[ExportedModule, ...] = ()


def export(
    settings: Settings,
    name: str,
    out: Path,
    *,
    form: ExportFormat = "hf",
    kind: GgufType | None = None,
    max_rank: int | None = None,
    anyway: bool = False,
) -> Exported:
    """Write a checkpoint into a new or empty folder, or a new file; it is there whole or not at all.

    Args:
        name: as in `find_checkpoint`; also a rejected candidate or `base`.
        form: a whole model as a folder or as one `.gguf`, or a LoRA adapter for the base.
        kind: numbers of a GGUF's matrices; None is F32.
        max_rank: see `write_adapter`.
        anyway: write a whole model that does not show every edit too.

    Raises:
        NotFound: no such checkpoint.
        Conflict: the folder holds something, or the file is there.
        UnsupportedModel: the form that was asked for cannot hold the checkpoint's edits, or the model.
        UsageError: `max_rank` or `kind` with another form, or a GGUF that is not called so.
    """
    if max_rank is not None and form != "peft":
        raise UsageError("--max-rank is about the adapter of --format peft; a whole model is exact")
    if kind is not None and form != "gguf":
        raise UsageError("--type is about the numbers of --format gguf; a folder keeps those of the model")
    if form == "gguf" and out.suffix != SUFFIX:
        raise UsageError(f"--format gguf writes one file, and {out} does not end in {SUFFIX}; give --out NAME{SUFFIX}")
    if out.exists() and (form == "gguf" or not out.is_dir() or any(out.iterdir())):
        raise Conflict(f"{out} {'is there' if form == 'gguf' else 'holds something'} already; give a new name or empty folder")
    found = find_checkpoint(settings, name)
    model = at_checkpoint(settings, store_of(settings), found)
    checkpoint = found or _base(settings, model)
    if form == "gguf":
        exported = _gguf(settings, model, checkpoint, out, kind or "F32", anyway)
    else:
        with writing(out), whole_folder(out) as fresh:
            if form == "peft":
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


def _gguf(
    settings: Settings, model: EditableModel, checkpoint: Checkpoint, path: Path, kind: GgufType, anyway: bool
) -> Exported:
    """One file by way of the plain folder, which holds what other forms hold and is refused where it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the file: there is room for a model where one is to be written.
    with writing(path.parent), tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.", suffix=".new") as beside:
        exported = _model(settings, model, checkpoint, Path(beside, "model"), anyway)
        written = write_gguf(Path(beside, "model"), path, kind, source=f"Errata checkpoint {checkpoint.checkpoint_id}")
    return exported.model_copy(update={"form": "gguf", "type": kind, "wider": len(written.wider)})


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
