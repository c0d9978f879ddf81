"""SERAC: edits live in a memory; a scope classifier sends prompts about them to a counterfactual model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from editors.architectural.scoped import prepare_scoped
from editors.base import NO_BENCH, Corpus, Editor, EditorCard, Prepared, TrainingEdit, Workbench
from editors.mechanics.answers import answer_labels, answer_rows, at_positions
from editors.mechanics.trace import trace
from editors.model import EditableModel
from editors.nets.counterfactual import CounterfactualConfig, StatedEdit, end_id, train_counterfactual
from editors.nets.scope import ScopeConfig
from editors.nets.stages import Learnt
from editors.patches.scope_index import Classifier, slot_of
from editors.patches.serac import MEMORY, Entry, SeracPatch
from warehouse.records import EditBatch, EditRequest


class SeracConfig(ScopeConfig, CounterfactualConfig):
    """Both networks' settings; the seed serves both."""


@final
class Serac(Editor[SeracConfig]):
    """Mitchell et al. 2022. The base model is never touched; taking an edit off deletes its entry.

    The newest edit of a subject's relation is the one in force; older ones stay below it and come back by rollback.
    """

    card = EditorCard(
        name="serac",
        title="SERAC",
        family="architectural",
        patch_kind="memory",
        paper="arXiv:2206.06520",
        code="eric-mitchell/serac algs/serac.py",
        needs_preparation=True,
        trains=True,
        preserves_architecture=False,
        differs=(
            "No pretrained encoder: the classifier is a small net on the base model's states, the counterfactual model "
            "a small transformer on the base's embeddings with a pointer into the edit. The classifier embeds prompts "
            "alone, likeness is a cosine with a learnt scale, and an edit's vector is computed once. The decision is "
            "taken once a prompt and holds for the whole generation."
        ),
    )

    def preparation_key(self) -> str:
        """See `Editor.preparation_key`."""
        return f"{self.config.scope_key()}|{self.config.answer_key()}"

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """Train both networks on the corpus's training edits; the card tells how the router does on held-out subjects.

        Raises:
            ValueError: training edits of fewer than two subjects.
        """

        def behind(learnt: Sequence[TrainingEdit], tried: Sequence[TrainingEdit], stage: Workbench) -> Learnt:
            net, card = train_counterfactual(model, learnt, tried, self.config, stage)
            return net.tensors(), card

        return prepare_scoped(model, corpus, self.config, bench, editor="serac", stage="counterfactual", behind=behind)

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> SeracPatch:
        """See `Editor.edit`."""
        classifier = Classifier.from_tensors(prepared.tensors, prepared.meta)
        entries = [
            Entry(r.request_id, slot_of(r), s) for r, s in zip(batch.requests, statements(model, batch.requests), strict=True)
        ]
        vectors = classifier.embed(model, [r.prompt for r in batch.requests])
        networks = {} if MEMORY in model.memories else prepared.tensors
        return SeracPatch(entries, vectors, prepared.digest, (classifier.token_layer, classifier.prompt_layer), networks)


def statements(model: EditableModel, requests: Sequence[EditRequest]) -> list[StatedEdit]:
    """Edits as tokens; behind each target the stop that the model as it stands prefers, and the end of text.

    Raises:
        InvalidRequest: a request that cannot be applied.
    """
    rows = answer_rows(model, requests)
    with at_positions(model, rows.positions()):
        seen = trace(model, rows.ids, rows.mask)
    assert seen.final is not None
    labels = answer_labels(model, rows, seen.final)
    stops: dict[int, int] = dict(zip(labels.row[labels.is_stop].tolist(), labels.token[labels.is_stop].tolist(), strict=True))
    made = []
    for i, (ids, last, target) in enumerate(zip(rows.ids.tolist(), rows.last_prompt.tolist(), rows.targets, strict=True)):
        stop = [stops[i]] if i in stops else []
        made.append(StatedEdit(tuple(ids[: last + 1]), (*target, *(s for s in stop if s != end_id(model)), end_id(model))))
    return made
