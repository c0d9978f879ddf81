"""Stated facts whose scope a trained retriever decides, once for each prompt; nothing in the model changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from editors.base import Patch, PatchKind
from editors.model import EditableModel, Undo
from editors.patches.in_context import InContextRunner
from editors.patches.scope_index import SCOPE, Classifier, ScopeIndex, check_network

MEMORY = "retrieved-facts"


@dataclass(frozen=True)
class RetrievedFact:
    """One edit; `prefix` is the fact with its demonstrations as text, the same for every prompt in its scope."""

    request_id: str
    slot: str
    prefix: str


class RetrievedFacts:
    """All stated facts of a model, oldest first; the newest of each slot is in force."""

    def __init__(self, model: EditableModel, network: str, classifier: Classifier) -> None:
        self._model, self.network = model, network
        self.index = ScopeIndex(classifier)
        self.facts: list[RetrievedFact] = []
        self.contrast = 0.0

    def extend(self, facts: Sequence[RetrievedFact], vectors: Tensor) -> None:
        self.facts += facts
        self.index.extend(vectors, [fact.slot for fact in facts])

    def truncate(self, count: int) -> None:
        del self.facts[count:]
        self.index.truncate(count)

    def prefixes(self, prompts: Sequence[str]) -> list[str]:
        """The text to put before each prompt: that of the likest edit, empty where none is alike enough."""
        found = self.index.nearest(self._model, prompts)
        return [self.facts[edits[0]].prefix + " " if edits else "" for edits in found]


@final
class RetrievedPromptPatch(Patch):
    """Facts of one batch with their prompts' vectors; a stack's first patch carries the retriever.

    Args:
        network: digest of the preparation that the retriever is from.
        layers: the two layers that it reads.
        contrast: weight of what the model says without the statement.
    """

    kind: ClassVar[PatchKind] = "prompt"

    def __init__(
        self,
        facts: Sequence[RetrievedFact],
        vectors: Tensor,
        network: str,
        layers: tuple[int, int],
        contrast: float,
        retriever: Mapping[str, Tensor] | None = None,
    ) -> None:
        if len(facts) != len(vectors):
            raise ValueError(f"{len(facts)} facts with {len(vectors)} vectors")
        self.facts, self.vectors = tuple(facts), vectors.detach().float().cpu().contiguous()
        self.network, self.layers, self.contrast = network, layers, contrast
        self.retriever = {name: t.detach().cpu().contiguous() for name, t in (retriever or {}).items()}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"vectors": self.vectors, **self.retriever}

    @property
    def meta(self) -> Mapping[str, Any]:
        return {
            "form": "retrieved",
            "network": self.network,
            "token_layer": self.layers[0],
            "prompt_layer": self.layers[1],
            "contrast": self.contrast,
            "facts": [asdict(fact) for fact in self.facts],
        }

    @property
    def num_bytes(self) -> int:
        return super().num_bytes + sum(len(fact.prefix.encode()) for fact in self.facts)

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> RetrievedPromptPatch:
        retriever = {name: t for name, t in tensors.items() if name.startswith(SCOPE)}
        return cls(
            [RetrievedFact(**fact) for fact in meta["facts"]],
            tensors["vectors"],
            meta["network"],
            (meta["token_layer"], meta["prompt_layer"]),
            meta["contrast"],
            retriever,
        )

    def attach(self, model: EditableModel) -> Undo:
        """Append the facts; the first patch of a stack brings the retriever and wraps the model.

        Raises:
            PatchError: the retriever is missing, or the patches below use another.
        """
        known: RetrievedFacts | None = model.memories.get(MEMORY)
        check_network(self, known.network if known else None, self.network, bool(self.retriever))
        unwrap: Undo | None = None
        if known is None:
            known = fresh = RetrievedFacts(model, self.network, Classifier.from_tensors(self.retriever, self.meta))
            model.memories[MEMORY] = fresh
            unwrap = model.wrap(lambda inner: InContextRunner(inner, model, fresh))
        store, before, contrast = known, len(known.facts), known.contrast
        store.extend(self.facts, self.vectors)
        store.contrast = self.contrast

        def undo() -> None:
            store.truncate(before)
            store.contrast = contrast
            if unwrap is not None:
                unwrap()
                model.memories.pop(MEMORY, None)

        return undo
