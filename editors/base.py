"""The editor contract: prepare, edit, attach."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from editors.model import EditableModel, Undo, tensor_bytes
from warehouse.digests import canonical_json, digest_of, digest_of_parts
from warehouse.records import EditBatch, EditRequest

Family = Literal["regularization", "meta_learning", "direct", "architectural", "adapters", "in_context"]
Mode = Literal["single", "batch", "sequential", "sequential-batch"]
MODES: tuple[Mode, ...] = ("single", "batch", "sequential", "sequential-batch")
PatchKind = Literal["weight", "module", "memory", "prompt"]


class EditorConfig(BaseModel):
    """Numbers of one editor; they live in `presets/`. Frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0

    @property
    def digest(self) -> str:
        return digest_of(type(self).__name__, self)


@dataclass(frozen=True)
class EditorCard:
    """What an editor is and may be asked to do; the row of the survey's Table 3 and more.

    Attributes:
        max_batch: most requests in one `edit`; None: any number.
        modes: modes that the method grants; others are refused with `why_not`.
        only_xy: it needs no more than the pairs (x_e, y_e), in the survey's sense.
        differs: what ours changes against the paper or its public code, and why.
    """

    name: str
    title: str
    family: Family
    patch_kind: PatchKind
    paper: str
    max_batch: int | None = None
    modes: tuple[Mode, ...] = MODES
    needs_preparation: bool = False
    preserves_architecture: bool = True
    only_xy: bool = True
    scales: bool = True
    code: str = ""
    differs: str = ""
    why_not: str = ""


@dataclass(frozen=True)
class Corpus:
    """Plain texts for preparation (second moments, locality banks); `digest` names them in cache keys."""

    texts: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        return digest_of(list(self.texts))


@dataclass(frozen=True)
class Prepared:
    """What an editor learnt before any edit: named tensors and plain facts about them."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        parts = [(name, tensor_bytes(t)) for name, t in self.tensors.items()]
        return digest_of_parts([*parts, ("meta", canonical_json(dict(self.meta)))])


#: For editors with nothing to learn.
NOTHING = Prepared()


class Patch(ABC):
    """What one edit leaves behind: saved, signed, promoted, taken off again.

    `tensors` and `meta` hold all of it; a patch of this kind built from equal ones is an equal patch.
    """

    kind: ClassVar[PatchKind]

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]: ...

    @property
    @abstractmethod
    def meta(self) -> Mapping[str, Any]: ...

    @classmethod
    @abstractmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Patch: ...

    @abstractmethod
    def attach(self, model: EditableModel) -> Undo:
        """Make the model show this edit. Weights need no undo: the model restores them from its base copy."""

    @cached_property
    def digest(self) -> str:
        """sha256 over kind, metadata and tensors (names, dtypes, shapes, bytes)."""
        parts = [(f"{name}:{t.dtype}:{tuple(t.shape)}", tensor_bytes(t)) for name, t in self.tensors.items()]
        return digest_of_parts([*parts, ("kind", self.kind.encode()), ("meta", canonical_json(dict(self.meta)))])

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


ConfigT = TypeVar("ConfigT", bound=EditorConfig)


class Editor(ABC, Generic[ConfigT]):
    """One editing algorithm with one fixed configuration."""

    card: ClassVar[EditorCard]
    config_class: ClassVar[type[EditorConfig]]

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def prepare(self, model: EditableModel, corpus: Corpus) -> Prepared:
        """Slow, offline, cached by (base model, configuration, corpus). The model is left as it was."""
        return NOTHING

    def preparation_key(self) -> str:
        """Digest of the settings that the preparation depends on; narrower than the whole configuration if it can be."""
        return self.config.digest

    @abstractmethod
    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> Patch:
        """Compute the patch for one batch on the model as it stands; the model is left bit for bit as it was.

        Raises:
            InvalidRequest: a request that cannot be applied (subject missing from its prompt, empty target).
            EditRefused: a guard stopped an update that would have destroyed the model.
        """

    def edit_each(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[Patch]:
        """One independent patch for each request, all on the model as it stands. Editors that can batch override it."""
        return [self.edit(model, EditBatch(batch_id=r.request_id, requests=(r,)), prepared) for r in requests]
