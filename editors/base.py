"""The editor contract: prepare, edit, attach."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from editors.exact import aligned
from editors.model import EditableModel, Patch, PatchKind, tensor_bytes
from warehouse.digests import canonical_json, digest_of, digest_of_parts
from warehouse.records import EditBatch, EditRequest
from warehouse.whole_files import whole_file

Family = Literal["regularization", "meta_learning", "direct", "architectural", "adapters", "in_context"]
Mode = Literal["single", "batch", "sequential", "sequential-batch"]
MODES: tuple[Mode, ...] = ("single", "batch", "sequential", "sequential-batch")


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
        experimental: modes that the method does not grant but that run; `run_edits` warns.
        retracts: single edits can be taken out again, exactly: its class is a `RetractingEditor`.
        trains: it trains an auxiliary model, in the survey's sense; `needs_preparation` also covers a pass over texts.
        only_xy: it needs no more than the pairs (x_e, y_e), in the survey's sense.
        survey: where this card differs from the survey's Table 3, the reason.
        differs: what ours changes against the paper or its public code, and why.
        behind_norm: it edits models that norm the feed-forward's output before it is added (OLMo 2, Gemma); others are refused
            by `load_editor`, before anything is prepared.
    """

    name: str
    title: str
    family: Family
    patch_kind: PatchKind
    paper: str
    max_batch: int | None = None
    modes: tuple[Mode, ...] = MODES
    experimental: tuple[Mode, ...] = ()
    needs_preparation: bool = False
    retracts: bool = False
    trains: bool = False
    preserves_architecture: bool = True
    only_xy: bool = True
    scales: bool = True
    code: str = ""
    survey: str = ""
    differs: str = ""
    why_not: str = ""
    behind_norm: bool = True


@dataclass(frozen=True)
class TrainingEdit:
    """An edit to learn editing from; its subject is never evaluated.

    Attributes:
        request: a fact of a calibration subject, changed; its rephrases are what a learnt editor must generalise to.
        kept: prompts with their true answers that the edit must not touch: first the same subject's other relations
            (as many as it has), then the same relation of other subjects, then anything else.
    """

    request: EditRequest
    kept: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Corpus:
    """What preparation may read; `digest` names it in cache keys.

    Attributes:
        texts: plain texts (second moments, locality banks).
        edits: training edits (hypernetworks, scope classifiers, counterfactual models).
    """

    texts: tuple[str, ...]
    edits: tuple[TrainingEdit, ...] = ()

    @cached_property
    def digest(self) -> str:
        edits = [(e.request.model_dump(mode="json"), list(map(list, e.kept))) for e in self.edits]
        return digest_of(list(self.texts), edits) if edits else digest_of(list(self.texts))


#: File of a workbench's last saved state.
STATE = "state.safetensors"


class Workbench:
    """What a long preparation works with: progress for people, and saved states to go on from after a kill.

    `save` replaces the last state in one rename; without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None = None, report: Callable[[int, int, str], None] | None = None) -> None:
        self._folder, self._report = folder, report

    def progress(self, step: int, total: int, note: str = "") -> None:
        if self._report is not None:
            self._report(step, total, note)

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
        """Keep the state after `step` steps; `facts` are plain JSON (loss curves, generator positions)."""
        if self._folder is None:
            return
        # The step and the facts travel in the file's header: one file, one rename, no half state.
        header = {"step": str(step), "facts": json.dumps(dict(facts or {}))}
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with whole_file(self._folder / STATE) as fresh:
            save_file(state, fresh, metadata=header)

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The last saved (step, tensors, facts), or None."""
        path = self._folder / STATE if self._folder is not None else None
        if path is None or not path.exists():
            return None
        with safe_open(path, "pt") as handle:
            header = handle.metadata()
        tensors = {name: aligned(t) for name, t in load_file(path).items()}
        return int(header["step"]), tensors, json.loads(header["facts"])


#: For preparations that nobody watches and that start anew.
NO_BENCH = Workbench()


@dataclass(frozen=True)
class Prepared:
    """What an editor learnt before any edit: named tensors and plain facts about them.

    Read from a file it works as it did when it was made, to the last bit: its tensors lie in memory alike.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", {name: aligned(t) for name, t in self.tensors.items()})

    @cached_property
    def digest(self) -> str:
        parts = [(name, tensor_bytes(t)) for name, t in self.tensors.items()]
        return digest_of_parts([*parts, ("meta", canonical_json(dict(self.meta)))])


#: For editors with nothing to learn.
NOTHING = Prepared()


ConfigT = TypeVar("ConfigT", bound=EditorConfig)


def _is_editor(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Editor)


class Editor(ABC, Generic[ConfigT]):
    """One editing algorithm with one fixed configuration.

    `class Rome(Editor[RomeConfig])` says both what `config` holds and what presets are read into (`config_class`).
    """

    card: ClassVar[EditorCard]
    #: The configuration in the brackets; a class that is still open, as `Shared(Editor[ConfigT])`, has none.
    config_class: ClassVar[type[EditorConfig]]
    #: Sections as in `presets/NAME.yaml`, for editors that live outside this package.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: Settings that mean nothing on another model: they come from the model's own section or from whoever configures.
    per_model: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Read the configuration's class from the brackets.

        Raises:
            TypeError: there is none, or `config_class` names another.
        """
        super().__init_subclass__(**kwargs)
        bases = [base for base in vars(cls).get("__orig_bases__", ()) if _is_editor(get_origin(base))]
        given = [argument for base in bases for argument in get_args(base)]
        if any(isinstance(argument, TypeVar) for argument in given):
            return
        # Without brackets of its own, a class has what it names or inherits.
        config = given[0] if given else getattr(cls, "config_class", None)
        if not isinstance(config, type) or not issubclass(config, EditorConfig):
            raise TypeError(f"{cls.__name__} has no configuration ({config!r}): write Editor[{cls.__name__}Config]")
        named = vars(cls).get("config_class", config)
        if named is not config:
            raise TypeError(f"{cls.__name__} is an editor with {config.__name__}, but its config_class is {named!r}")
        cls.config_class = config

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
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


class RetractingEditor(Editor[ConfigT]):
    """An editor that can take single edits out again, as if they had never been; its card says `retracts`."""

    @abstractmethod
    def retract(self, model: EditableModel, request_ids: Sequence[str], prepared: Prepared) -> Patch:
        """The patch after which the model is as if these edits had never been.

        Raises:
            ValueError: an edit is not active on the model.
        """

    @abstractmethod
    def remember(self, model: EditableModel, patch: Patch, prepared: Prepared) -> None:
        """Take what a patch of this configuration and base solved as known: a subset of its edits needs no new solve."""


def retracting(editor: Editor) -> RetractingEditor | None:
    """The editor as one that retracts, where its card says so."""
    return editor if editor.card.retracts and isinstance(editor, RetractingEditor) else None
