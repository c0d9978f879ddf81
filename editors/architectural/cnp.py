"""CNP: the frozen model is conditioned on codes of the edits that a prompt is about, by FiLM of its upper blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from pydantic import PositiveInt

from editors.architectural.scoped import prepare_scoped
from editors.base import NO_BENCH, Corpus, Editor, EditorCard, Prepared, TrainingEdit, Workbench
from editors.mechanics.answers import answer_rows
from editors.model import EditableModel
from editors.nets.conditioning import ConditioningConfig, ConditionNet, coded_requests, train_conditioning
from editors.nets.scope import ScopeConfig
from editors.nets.stages import Learnt
from editors.patches.conditioning import MEMORY, ConditioningPatch
from editors.patches.scope_index import Classifier, slot_of
from warehouse.errors import UsageError
from warehouse.records import EditBatch


class CnpConfig(ScopeConfig, ConditioningConfig):
    """Both networks' settings; `most`: edits shown to one prompt, at most."""

    most: PositiveInt = 2


@final
class Cnp(Editor[CnpConfig]):
    """Garnelo et al. 2018 in its attentive form (Kim et al. 2019), as a conditioning of a language model.

    An edit's code depends on the base model and the edit alone, so edits may come in any order and any batches.
    """

    card = EditorCard(
        name="cnp",
        title="CNP",
        family="architectural",
        patch_kind="memory",
        paper="arXiv:1807.01613",
        code="google-deepmind/neural-processes",
        needs_preparation=True,
        trains=True,
        preserves_architecture=False,
        differs=(
            "A retriever picks the edits that a prompt is about before anything is aggregated; a mean over all of them washes "
            "out. A prompt of no edit is not conditioned at all. Points are the tokens of an edit's answer with the states "
            "that predict them. The variance head is left out: the softmax is a distribution already."
        ),
    )

    def preparation_key(self) -> str:
        """See `Editor.preparation_key`."""
        return f"{self.config.scope_key()}|{self.config.film_key()}"

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """Train the retriever and the conditioning on the corpus's training edits.

        Raises:
            ValueError: training edits of fewer than two subjects, or settings that do not fit the model.
        """
        config = self.config
        if max(config.token_layer, config.prompt_layer) > min(config.film_layers):
            raise UsageError(
                f"scope layers {config.token_layer} and {config.prompt_layer} lie above the first of film_layers "
                f"{config.film_layers}; whether a prompt is modulated must be known by then"
            )

        def behind(learnt: Sequence[TrainingEdit], tried: Sequence[TrainingEdit], stage: Workbench) -> Learnt:
            net, card = train_conditioning(model, learnt, tried, config, stage)
            return net.tensors(), card

        return prepare_scoped(model, corpus, config, bench, editor="cnp", stage="film", behind=behind)

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> ConditioningPatch:
        """See `Editor.edit`."""
        rows = answer_rows(model, batch.requests)
        edits = coded_requests(model, ConditionNet.from_tensors(prepared.tensors, model.device), rows)
        classifier = Classifier.from_tensors(prepared.tensors, prepared.meta)
        vectors = classifier.embed(model, [r.prompt for r in batch.requests])
        return ConditioningPatch(
            edits,
            vectors,
            [slot_of(r) for r in batch.requests],
            [r.request_id for r in batch.requests],
            prepared.digest,
            (classifier.token_layer, classifier.prompt_layer),
            self.config.most,
            {} if MEMORY in model.memories else prepared.tensors,
        )
