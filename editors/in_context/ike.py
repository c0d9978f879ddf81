"""IKE: the new fact, and demonstrations of how to use one, are read before the prompts that a retriever finds in scope."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from editors.base import NO_BENCH, Corpus, Editor, EditorCard, Prepared, TrainingEdit, Workbench
from editors.in_context.ice import StatementConfig, stated_text
from editors.model import EditableModel
from editors.nets.episodes import hold_out
from editors.nets.scope import ScopeConfig, train_scope
from editors.nets.stages import Learnt, run_stages
from editors.patches.retrieved import MEMORY, RetrievedFact, RetrievedPromptPatch
from editors.patches.scope_index import SCOPE, Classifier, slot_of
from warehouse.records import EditBatch

#: Tensor of a preparation: vectors of the demonstrations' prompts.
DEMONSTRATIONS = "demonstrations"


class IkeConfig(ScopeConfig, StatementConfig):
    """The retriever's settings and the context's.

    Attributes:
        demonstrations: shown with each fact, the nearest first; fewer where they would fill the context.
        copies, updates, retains: in what ratio demonstrations repeat the prompt, rephrase it, ask for another fact.
        fact_first: the fact stands before its demonstrations, as here, or behind them, as published.
        demonstration_edits: training edits that demonstrations are made of.
        context_share: share of the model's context that a prefix may fill.
    """

    demonstrations: NonNegativeInt = 32
    copies: NonNegativeInt = 1
    updates: NonNegativeInt = 3
    retains: NonNegativeInt = 4
    fact_first: bool = True
    demonstration_edits: NonNegativeInt = 500
    context_share: float = Field(default=0.5, gt=0, le=1)


@final
class Ike(Editor[IkeConfig]):
    """Zheng et al. 2023, section 3. No weight changes; taking an edit off deletes its text.

    Demonstrations are chosen when the edit arrives, so the context of a fact is one text for all its prompts.
    """

    card = EditorCard(
        name="ike",
        title="IKE",
        family="in_context",
        patch_kind="prompt",
        paper="arXiv:2305.12740",
        code="PKUnlpIcler/IKE",
        needs_preparation=True,
        trains=True,
        differs=(
            "A trained retriever decides once a prompt whether a fact is stated; published IKE states it before every "
            "prompt. Its embedding also takes the place of MiniLM's. The fact stands before its demonstrations. The answer "
            "can be set against the one without the statement (context-aware decoding, arXiv:2305.14739)."
        ),
    )

    def preparation_key(self) -> str:
        """See `Editor.preparation_key`."""
        c = self.config
        shown = (
            f"{c.demonstration_edits}:{c.copies}:{c.updates}:{c.retains}:{c.fact}:{c.retraction}" if c.demonstrations else ""
        )
        return f"{c.scope_key()}|{shown}"

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """Train the retriever on the corpus's training edits and index demonstrations made of them.

        Raises:
            ValueError: training edits of fewer than two subjects.
        """
        config = self.config
        learnt, _ = hold_out(corpus.edits, config.held_share, config.seed)

        def scope(stage: Workbench, _before: Mapping[str, Tensor]) -> Learnt:
            net, card = train_scope(model, corpus.edits, config, stage)
            return net.tensors(), card

        tensors, cards = run_stages(bench, {"scope": scope})
        meta: dict[str, Any] = {"token_layer": config.token_layer, "prompt_layer": config.prompt_layer, **cards}
        if config.demonstrations:
            draw = random.Random(f"demonstrations:{config.seed}")
            shown = draw.sample(learnt, min(len(learnt), config.demonstration_edits))
            tensors[DEMONSTRATIONS] = Classifier.from_tensors(tensors, meta).embed(model, [e.request.prompt for e in shown])
            meta["shown"] = [demonstrations_of(edit, config) for edit in shown]
        return Prepared({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, meta)

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> RetrievedPromptPatch:
        """See `Editor.edit`."""
        texts = [stated_text(request, self.config) for request in batch.requests]
        classifier = Classifier.from_tensors(prepared.tensors, prepared.meta)
        vectors = classifier.embed(model, [request.prompt for request in batch.requests])
        facts = [
            RetrievedFact(request.request_id, slot_of(request), self._prefix(model, text, vector, prepared))
            for request, text, vector in zip(batch.requests, texts, vectors, strict=True)
        ]
        retriever = {} if MEMORY in model.memories else {n: t for n, t in prepared.tensors.items() if n.startswith(SCOPE)}
        layers = (classifier.token_layer, classifier.prompt_layer)
        return RetrievedPromptPatch(facts, vectors, prepared.digest, layers, self.config.contrast, retriever)

    def _prefix(self, model: EditableModel, text: str, vector: Tensor, prepared: Prepared) -> str:
        """The fact with the demonstrations of the nearest training edits, as many as the context has room for."""
        config = self.config
        count = min(config.demonstrations, len(prepared.meta.get("shown", ())))
        if not count:
            return text
        nearest = torch.topk(prepared.tensors[DEMONSTRATIONS] @ vector, count).indices.tolist()
        chosen = [prepared.meta["shown"][n][kind] for n, kind in zip(nearest, kinds_of(config, count), strict=True)]
        context = int(getattr(model.hf.config, "max_position_embeddings", 0))
        while chosen and context and _length(model, [text, *chosen]) > config.context_share * context:
            chosen.pop()
        return " ".join([text, *chosen] if config.fact_first else [*reversed(chosen), text])


def kinds_of(config: IkeConfig, count: int) -> list[int]:
    """0 copy, 1 update, 2 retain: after any number of them each kind has its share, to the nearest whole."""
    shares = (config.copies, config.updates, config.retains)
    if not sum(shares):
        return [0] * count
    order: list[int] = []
    have = [0, 0, 0]
    while len(order) < count:
        behind = [share * (len(order) + 1) / sum(shares) - h for share, h in zip(shares, have, strict=True)]
        order.append(behind.index(max(behind)))
        have[order[-1]] += 1
    return order


def demonstrations_of(edit: TrainingEdit, config: StatementConfig) -> list[str]:
    """A training edit as a demonstration of each kind: copy, update, retain."""
    request = edit.request
    fact = stated_text(request, config)
    rephrased = request.rephrases[0] if request.rephrases else request.prompt
    kept_prompt, kept_answer = edit.kept[0] if edit.kept else (request.prompt, request.target_new)
    pairs = ((request.prompt, request.target_new), (rephrased, request.target_new), (kept_prompt, kept_answer))
    return [f"{fact} {prompt} {answer}." for prompt, answer in pairs]


def _length(model: EditableModel, texts: Sequence[str]) -> int:
    return len(model.tokenizer(" ".join(texts))["input_ids"])
