"""Facts put before a prompt: nothing in the model changes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from editors.base import Patch, PatchKind
from editors.calls import Call, Generation, LogitBatch, Runner
from editors.model import EditableModel, Undo

MEMORY = "prompt-facts"


@dataclass(frozen=True)
class StatedFact:
    """One edited fact as text; `subject` decides the scope, `slot` which older fact it replaces."""

    subject: str
    slot: str
    text: str


def names(prompt: str, subject: str) -> bool:
    """Does the prompt name the subject as whole words? "Canada" does not name Ada."""
    # The plain search first: it settles nearly every pair of a prompt and a fact.
    return subject in prompt and re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt) is not None


class FactStore:
    """All stated facts of a model; scope is decided once per prompt, from the prompt alone."""

    def __init__(self) -> None:
        self.facts: list[StatedFact] = []
        self.demonstrations: tuple[str, ...] = ()
        self.limit = 1

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


class InContextRunner:
    """Prefixes prompts in scope; a prompt with no stated fact passes as it is, so locality is exact there."""

    def __init__(self, inner: Runner, store: FactStore) -> None:
        self._inner, self._store = inner, store

    def logits(self, call: Call) -> Iterator[LogitBatch]:
        prompts = tuple(self._store.prefix_for(p) + p for p in call.prompts)
        return self._inner.logits(Call(prompts, call.continuations))

    def generate(self, prompts: Sequence[str], options: Generation) -> list[str]:
        return self._inner.generate([self._store.prefix_for(p) + p for p in prompts], options)


@final
class PromptPatch(Patch):
    """Stated facts of one batch, with the demonstrations and the number of facts shown at most."""

    kind: ClassVar[PatchKind] = "prompt"

    def __init__(self, facts: Sequence[StatedFact], demonstrations: Sequence[str] = (), limit: int = 1) -> None:
        self.facts, self.demonstrations, self.limit = tuple(facts), tuple(demonstrations), limit

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {}

    @property
    def meta(self) -> Mapping[str, Any]:
        facts = [{"subject": f.subject, "slot": f.slot, "text": f.text} for f in self.facts]
        return {"facts": facts, "demonstrations": list(self.demonstrations), "limit": self.limit}

    @property
    def num_bytes(self) -> int:
        return sum(len(f.text.encode()) for f in self.facts)

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> PromptPatch:
        return cls([StatedFact(**f) for f in meta["facts"]], meta["demonstrations"], meta["limit"])

    def attach(self, model: EditableModel) -> Undo:
        undo_wrap: Undo = lambda: None  # noqa: E731
        if MEMORY not in model.memories:
            model.memories[MEMORY] = FactStore()
            undo_wrap = model.wrap(lambda inner: InContextRunner(inner, model.memories[MEMORY]))
        store: FactStore = model.memories[MEMORY]
        before = (store.demonstrations, store.limit)
        store.facts.extend(self.facts)
        store.demonstrations, store.limit = self.demonstrations, self.limit

        def undo() -> None:
            del store.facts[len(store.facts) - len(self.facts) :]
            store.demonstrations, store.limit = before
            undo_wrap()

        return undo
