"""Edits in a memory beside the model: prompts in scope are answered by a counterfactual model, all others by the base.

SERAC's wrapper (Mitchell et al. 2022, arXiv:2206.06520). The trained networks serve a whole stack: its first patch
carries them, later ones name their digest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from editors.asking.calls import Call, Generation, LogitBatch, Runner
from editors.asking.tokens import encode_prompts, encode_rows, said_text
from editors.base import Patch, PatchKind
from editors.model import EditableModel, Undo
from editors.nets.counterfactual import ANSWERING, PREFIX, CounterfactualModel, StatedEdit, reading_of
from editors.patches.scope_index import SCOPE, Classifier, ScopeIndex, check_network

MEMORY = "serac"
ROWS_PER_PASS = 64


@dataclass(frozen=True)
class Entry:
    """One edit in the memory; `slot` is what a newer edit replaces."""

    request_id: str
    slot: str
    statement: StatedEdit


class SeracMemory:
    """All edits of a model, and the networks that they share."""

    def __init__(self, network: str, classifier: Classifier, answerer: CounterfactualModel) -> None:
        self.network, self.answerer = network, answerer
        self.index = ScopeIndex(classifier)
        self.entries: list[Entry] = []

    def extend(self, entries: Sequence[Entry], vectors: Tensor) -> None:
        self.entries += entries
        self.index.extend(vectors, [entry.slot for entry in entries])

    def truncate(self, count: int) -> None:
        del self.entries[count:]
        self.index.truncate(count)


class SeracRunner:
    """Decides once for each prompt, from the prompt alone; a prompt of no edit passes as it is."""

    def __init__(self, inner: Runner, model: EditableModel, memory: SeracMemory) -> None:
        self._inner, self._model, self._memory = inner, model, memory

    def _route(self, prompts: Sequence[str]) -> tuple[list[int], list[tuple[int, Entry]]]:
        """Rows that pass, and rows in scope with their edit."""
        found = self._memory.index.nearest(self._model, prompts)
        passing = [row for row, edits in enumerate(found) if not edits]
        return passing, [(row, self._memory.entries[edits[0]]) for row, edits in enumerate(found) if edits]

    def logits(self, call: Call) -> Iterator[LogitBatch]:
        passing, answered = self._route(call.prompts)
        if passing:
            for batch in self._inner.logits(call.select(passing)):
                yield LogitBatch([passing[row] for row in batch.rows], batch.ids, batch.logits)
        for at in range(0, len(answered), ROWS_PER_PASS):
            yield self._answer(call, answered[at : at + ROWS_PER_PASS])

    def _answer(self, call: Call, answered: Sequence[tuple[int, Entry]]) -> LogitBatch:
        chosen = call.select([row for row, _ in answered])
        rows = encode_rows(self._model.tokenizer, chosen.prompts, chosen.continuations)
        ids = [row.ids[row.start :] for row in rows]
        reading = reading_of(
            [entry.statement for _, entry in answered], [row.ids[: row.start] for row in rows], ids, self._model.pad_id
        )
        logits = self._memory.answerer.log_probs(self._model, reading, reading.part == ANSWERING)
        return LogitBatch([row for row, _ in answered], ids, logits.to(self._model.head.weight.dtype))

    def generate(self, prompts: Sequence[str], options: Generation) -> list[str]:
        passing, answered = self._route(prompts)
        texts = [""] * len(prompts)
        if passing:
            said = self._inner.generate([prompts[row] for row in passing], options)
            for row, text in zip(passing, said, strict=True):
                texts[row] = text
        tokenizer = self._model.tokenizer
        for at in range(0, len(answered), ROWS_PER_PASS):
            part = answered[at : at + ROWS_PER_PASS]
            asked = encode_prompts(tokenizer, [prompts[row] for row, _ in part])
            # A generator of its own: sampling here must not move anybody else's random stream.
            generator = torch.Generator().manual_seed(options.seed) if options.sample else None
            written = self._memory.answerer.write(
                self._model,
                [entry.statement for _, entry in part],
                asked,
                options.max_new_tokens,
                generator,
            )
            for (row, _), head, ids in zip(part, asked, written, strict=True):
                texts[row] = said_text(tokenizer, head, ids)
        return texts


@final
class SeracPatch(Patch):
    """Edits of one batch: statements as tokens, prompts as vectors; with the networks where no patch below has them.

    Args:
        network: digest of the preparation that the networks are from.
        layers: the two layers that the classifier reads.
        networks: the trained tensors, empty in all but a stack's first patch.
    """

    kind: ClassVar[PatchKind] = "memory"

    def __init__(
        self,
        entries: Sequence[Entry],
        vectors: Tensor,
        network: str,
        layers: tuple[int, int],
        networks: Mapping[str, Tensor] | None = None,
    ) -> None:
        if len(entries) != len(vectors):
            raise ValueError(f"{len(entries)} entries with {len(vectors)} vectors")
        self.entries, self.vectors = tuple(entries), vectors.detach().float().cpu().contiguous()
        self.network, self.layers = network, layers
        self.networks = {name: t.detach().cpu().contiguous() for name, t in (networks or {}).items()}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"vectors": self.vectors, **self.networks}

    @property
    def meta(self) -> Mapping[str, Any]:
        entries = [
            {"request_id": e.request_id, "slot": e.slot, "prompt": list(e.statement.prompt), "answer": list(e.statement.answer)}
            for e in self.entries
        ]
        return {
            "form": "serac",
            "network": self.network,
            "token_layer": self.layers[0],
            "prompt_layer": self.layers[1],
            "entries": entries,
        }

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> SeracPatch:
        entries = [
            Entry(e["request_id"], e["slot"], StatedEdit(tuple(e["prompt"]), tuple(e["answer"]))) for e in meta["entries"]
        ]
        networks = {name: t for name, t in tensors.items() if name.startswith((SCOPE, PREFIX))}
        layers = (meta["token_layer"], meta["prompt_layer"])
        return cls(entries, tensors["vectors"], meta["network"], layers, networks)

    def attach(self, model: EditableModel) -> Undo:
        """Append the entries; the first patch of a stack brings the networks and wraps the model.

        Raises:
            PatchError: the networks are missing, or the patches below answer with others.
        """
        known: SeracMemory | None = model.memories.get(MEMORY)
        check_network(self, known.network if known else None, self.network, bool(self.networks))
        unwrap: Undo | None = None
        if known is None:
            classifier = Classifier.from_tensors(self.networks, self.meta)
            known = SeracMemory(self.network, classifier, CounterfactualModel.from_tensors(self.networks, model.device))
            model.memories[MEMORY] = memory = known
            unwrap = model.wrap(lambda inner: SeracRunner(inner, model, memory))
        memory, before = known, len(known.entries)
        memory.extend(self.entries, self.vectors)

        def undo() -> None:
            memory.truncate(before)
            if unwrap is not None:
                unwrap()
                model.memories.pop(MEMORY, None)

        return undo
