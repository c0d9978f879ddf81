"""Facts put before a prompt: nothing in the model changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from editors.asking.subjects import subject_places
from editors.base import Patch, PatchKind
from editors.model import EditableModel, Undo
from editors.patches.in_context import InContextRunner

MEMORY = "prompt-facts"


@dataclass(frozen=True)
class StatedFact:
    """One edited fact as text; `subject` decides the scope, `slot` which older fact it replaces."""

    subject: str
    slot: str
    text: str


def names(prompt: str, subject: str) -> bool:
    """Does the prompt name the subject as whole words? "Canada" does not name Ada."""
    return bool(subject_places(prompt, subject))


class FactStore:
    """All stated facts of a model; scope is decided once per prompt, from the prompt alone."""

    def __init__(self) -> None:
        self.facts: list[StatedFact] = []
        self.demonstrations: tuple[str, ...] = ()
        self.limit = 1
        self.contrast = 0.0

    def prefixes(self, prompts: Sequence[str]) -> list[str]:
        """See `Statements`."""
        return [self.prefix_for(prompt) for prompt in prompts]

    def prefix_for(self, prompt: str) -> str:
        """The text to put before a prompt: facts whose subject it names, the newest of each slot, oldest first."""
        newest: dict[str, StatedFact] = {}
        for fact in self.facts:
            if names(prompt, fact.subject):
                newest.pop(fact.slot, None)
                newest[fact.slot] = fact
        # A longer subject that holds a shorter one ("New York", "York") is what the prompt means.
        chosen = [
            f for f in newest.values() if not any(f.subject != g.subject and f.subject in g.subject for g in newest.values())
        ][-self.limit :]
        if not chosen:
            return ""
        return " ".join([*self.demonstrations, *(f.text for f in chosen)]) + " "


@final
class PromptPatch(Patch):
    """Stated facts of one batch, with the demonstrations, the number of facts shown at most and the contrast's weight."""

    kind: ClassVar[PatchKind] = "prompt"

    def __init__(
        self, facts: Sequence[StatedFact], demonstrations: Sequence[str] = (), limit: int = 1, contrast: float = 0.0
    ) -> None:
        self.facts, self.demonstrations, self.limit, self.contrast = tuple(facts), tuple(demonstrations), limit, contrast

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {}

    @property
    def meta(self) -> Mapping[str, Any]:
        facts = [{"subject": f.subject, "slot": f.slot, "text": f.text} for f in self.facts]
        # Named only where there is one: patches of before the contrast keep their digest.
        contrast = {"contrast": self.contrast} if self.contrast else {}
        return {"facts": facts, "demonstrations": list(self.demonstrations), "limit": self.limit, **contrast}

    @property
    def num_bytes(self) -> int:
        return sum(len(f.text.encode()) for f in self.facts)

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> PromptPatch:
        return cls([StatedFact(**f) for f in meta["facts"]], meta["demonstrations"], meta["limit"], meta.get("contrast", 0.0))

    def attach(self, model: EditableModel) -> Undo:
        undo_wrap: Undo = lambda: None  # noqa: E731
        if MEMORY not in model.memories:
            model.memories[MEMORY] = FactStore()
            undo_wrap = model.wrap(lambda inner: InContextRunner(inner, model, model.memories[MEMORY]))
        store: FactStore = model.memories[MEMORY]
        before = (store.demonstrations, store.limit, store.contrast)
        store.facts.extend(self.facts)
        store.demonstrations, store.limit, store.contrast = self.demonstrations, self.limit, self.contrast

        def undo() -> None:
            del store.facts[len(store.facts) - len(self.facts) :]
            store.demonstrations, store.limit, store.contrast = before
            undo_wrap()

        return undo
