"""The plain folder of a candidate: written once a night, proved by its digests before it is used again."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import ValidationError

from editors.errors import UnsupportedModel
from editors.export.plain import materialise
from editors.model import EditableModel
from editors.writing import writing
from tasks.candidate import Candidate
from tasks.proving.engine import CARD
from tasks.serving.form import plain_form
from tasks.serving.models import base_revision, beside
from tasks.settings import Settings
from tasks.workspace import night_folder
from warehouse.digests import canonical_json, digest_of, sha256_file
from warehouse.records import Record
from warehouse.whole_files import whole_folder, write_whole

log = logging.getLogger(__name__)
FOLDER, RECORD = "plain", "plain.json"


class _Written(Record):
    """What is known of the folder beside it. `key`: what it was made of and how; `files`: sha256 by name."""

    key: str
    why_not: str
    room: str
    files: dict[str, str]


@dataclass(frozen=True)
class PlainFolder:
    """What a promotion publishes.

    Attributes:
        dtype: in which it is served.
        why_not: what kept the weights from holding every edit, which are then served by Errata with its hooks.
        room: how wide its layers are; empty where none is wider.
    """

    path: Path
    dtype: torch.dtype
    why_not: str
    room: str = ""

    def load(self, model: EditableModel) -> EditableModel:
        """As a server does, plain and in the dtype that is served, beside the hooked `model`.

        Raises:
            UnsupportedModel: it does not load, or gives no finite number in that dtype.
        """
        return EditableModel.from_pretrained(str(self.path), dtype=self.dtype, **beside(model))


def plain_folder(settings: Settings, model: EditableModel, done: Candidate) -> PlainFolder:
    """Write the plain folder of a candidate, or give the one that this night has written, if every file of it is as it was.

    Safe to kill at any instant: the folder appears whole, and what is noted of it is written behind it.

    Args:
        model: wears the candidate's patches; it stays as it is.

    Raises:
        NotWritten: the disk is full, or the night's folder may not be written to.
    """
    form = plain_form(settings, model)
    path = night_folder(settings, done.night) / FOLDER
    releases = {name: version(name) for name in ("transformers", "safetensors", "errata")}
    key = digest_of("plain", done.checkpoint_id, form.digest(model.hf.dtype), releases)
    kept = _kept(path, key)
    if kept is None:
        with writing(path):
            with whole_folder(path, over=True) as fresh:
                made = materialise(
                    model, done.checkpoint(settings, base_revision(settings, model), datetime.now(UTC)), fresh, form
                )
                room = made.room.sentence if made.room else ""
                kept = _Written(key=key, why_not=made.why_not, room=room, files=_digests(fresh))
            write_whole(path.with_name(RECORD), canonical_json(kept))
    return PlainFolder(path, form.dtype or model.hf.dtype, kept.why_not, kept.room)


def drop_plain_folder(settings: Settings, night: str) -> None:
    """Remove what `plain_folder` has written for a night."""
    folder = night_folder(settings, night)
    (folder / RECORD).unlink(missing_ok=True)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def answering(model: EditableModel, plain: PlainFolder) -> EditableModel:
    """What answers where a checkpoint is served: its plain model, or the hooked one where that is what can be served.

    Args:
        model: wears the patches of the checkpoint.
    """
    if plain.why_not:
        return model
    try:
        return plain.load(model)
    except UnsupportedModel as error:
        log.warning("what is served cannot be loaded here: %s", error)
        return model


def base_as_served(settings: Settings, model: EditableModel, dtype: torch.dtype) -> EditableModel:
    """The base model in the dtype that is served, beside `model`, which is it in another one."""
    return EditableModel.from_pretrained(
        settings.model.name,
        revision=settings.model.revision,
        dtype=dtype,
        trust_remote_code=settings.model.trust_remote_code,
        **beside(model),
    )


def _kept(path: Path, key: str) -> _Written | None:
    """What is known of a whole folder of this key; None where there is none, or a file is not as it was written."""
    try:
        found = _Written.model_validate_json(path.with_name(RECORD).read_bytes())
        if found.key == key and found.files == _digests(path):
            return found
    except (OSError, ValidationError) as error:
        log.debug("%s: %s", path, error)
    return None


def _digests(folder: Path) -> dict[str, str]:
    """Of every file but the card, which a promotion writes into the folder and always anew."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: sha256_file(path) for name, path in sorted(files.items()) if name != CARD}
