"""The candidate of a night or a revert: what was edited on what, kept as a file so that a broken run goes on from it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tasks.serving.models import has_patch
from tasks.settings import Settings
from tasks.workspace import night_folder
from warehouse.digests import canonical_json
from warehouse.records import Checkpoint, Prediction, Record, checkpoint_id
from warehouse.whole_files import write_whole


class TakenOut(Record):
    """What a revert did beside editing; empty of a night.

    Attributes:
        reverted: ids of the edits that were taken out.
        remade: ids of the edits whose patch was made again without those.
        measured: requests in force that are probed beside the edited ones.
        reason: why somebody asked for it.
    """

    reverted: tuple[str, ...] = ()
    remade: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    reason: str = ""


class Candidate(Record):
    """What the edit step of a night, or of a revert, did; kept as `edited.json`.

    Its JSON is flat: the fields of `revert` stand among the others, as homes of earlier releases have them.

    Attributes:
        joined: requests of edits that an earlier night held back and a person released.
    """

    night: str
    editor: str
    config_digest: str
    parent: str | None
    base_digest: str
    parent_patches: tuple[str, ...]
    new_patches: tuple[str, ...]
    edited: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    right_after: tuple[Prediction, ...]
    edit_seconds: float
    patch_bytes: int
    joined: tuple[str, ...] = ()
    revert: TakenOut = Field(default_factory=TakenOut)

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "revert" in value:
            return value
        rest = dict(value)
        return {"revert": {name: rest.pop(name) for name in TakenOut.model_fields if name in rest}, **rest}

    @model_serializer(mode="wrap")
    def _flat(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        rest = plain(self)
        revert = rest.pop("revert")
        return {**rest, **revert}

    @property
    def patch_digests(self) -> tuple[str, ...]:
        return (*self.parent_patches, *self.new_patches)

    @property
    def checkpoint_id(self) -> str:
        return checkpoint_id(self.base_digest, self.patch_digests)

    @property
    def before(self) -> str:
        """The checkpoint that the candidate replaces: the head, or the base model as a checkpoint of its own."""
        return self.parent or checkpoint_id(self.base_digest)

    def checkpoint(self, settings: Settings, revision: str, created_at: datetime) -> Checkpoint:
        """The candidate as a checkpoint of its lineage."""
        return Checkpoint(
            checkpoint_id=self.checkpoint_id,
            parent=self.before,
            base_model=settings.model.name if settings.model.revision else "local",
            base_revision=revision,
            base_digest=self.base_digest,
            patch_digests=self.patch_digests,
            created_at=created_at,
        )


def edited_before(settings: Settings, night: str) -> Candidate | None:
    """What an earlier run of this night's edit step left, if all of it is there and sound."""
    record = night_folder(settings, night) / "edited.json"
    if not record.exists():
        return None
    done = Candidate.model_validate_json(record.read_bytes())
    return done if all(has_patch(settings, d) for d in done.new_patches) else None


def keep_edited(settings: Settings, done: Candidate) -> None:
    """Write `edited.json` in one rename."""
    write_whole(night_folder(settings, done.night) / "edited.json", canonical_json(done))


def describe(done: Candidate) -> str:
    """One line for logs and people."""
    reasons: dict[str, int] = {}
    for _, reason in done.skipped:
        reasons[reason] = reasons.get(reason, 0) + 1
    return f"{len(done.edited)} edited by {done.editor} in {done.edit_seconds:.1f} s, skipped {json.dumps(reasons)}"
