"""Knowledge neurons: find the few feed-forward neurons that an answer comes from, and rewrite what they say."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, final

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from editors.base import NO_BENCH, Corpus, Editor, EditorCard, EditorConfig, Prepared, Workbench
from editors.mechanics.answers import check_request
from editors.mechanics.attribution import answer_ids, current_answer, neuron_attributions
from editors.mechanics.paraphrases import paraphrases_of, relation_templates
from editors.model import EditableModel
from editors.patches.weight import LowRank, WeightPatch
from warehouse.digests import digest_of
from warehouse.records import EditBatch, EditRequest

log = logging.getLogger(__name__)

#: (layer, index in the feed-forward)
Neuron = tuple[int, int]
#: A slot counts with its own norm, up to so many times its layer's median. Slots that nobody edited stay below (the reference
#: model's, and a random model's); edits that meet at one neuron would otherwise multiply it until nothing is finite.
LARGEST_SLOT = 2.0
#: By how much the share of prompts moves when too many or too few neurons are left.
SHARE_STEP = 0.05


class KnowledgeNeuronsConfig(EditorConfig):
    """Attributes:
    points: m, steps of the integral.
    threshold: t: a prompt's coarse set holds the neurons above this share of its largest attribution.
    share: p: a neuron is kept if it is in the coarse sets of this share of the prompts; moved by steps of .05 until
        between `fewest` and `most` neurons are left.
    paraphrases: other wordings of the fact to attribute on, from the training edits of its relation.
    old_weight, new_weight: lambda1 and lambda2: how much of the old answer's direction leaves a value slot and how much of
        the new one's enters it, in norms of the slot (see `LARGEST_SLOT`).
    """

    points: PositiveInt = 20
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.2
    share: Annotated[float, Field(gt=0, le=1)] = 0.7
    fewest: PositiveInt = 2
    most: PositiveInt = 5
    paraphrases: NonNegativeInt = 8
    old_weight: NonNegativeFloat = 1.0
    new_weight: PositiveFloat = 8.0


@final
class KnowledgeNeurons(Editor[KnowledgeNeuronsConfig]):
    """Attribution by integrated gradients, then value slots rewritten (Dai et al. 2022, sections 3 and 4.3).

    The neurons are those of the *old* answer: `target_true`, or what the model says now. A request to erase sets their
    value slots to zero; every other one takes the old answer's output embedding out of them and puts the new one's in.
    """

    card: ClassVar[EditorCard] = EditorCard(
        name="knowledge_neurons",
        title="Knowledge neurons",
        family="direct",
        patch_kind="weight",
        paper="Dai et al. 2022, Knowledge Neurons in Pretrained Transformers, arXiv:2104.08696",
        code="EleutherAI/knowledge-neurons",
        max_batch=1,
        modes=("single", "sequential"),
        needs_preparation=True,
        only_xy=False,
        why_not="neurons are chosen and rewritten for one fact at a time",
        differs="All points are one batch on cached states. Several answer tokens: attributions are summed, and directions "
        "are means of the tokens' embeddings at unit length, in norms of the slot (up to twice the layer's median). Wordings "
        "come from training edits of the relation. A single value direction cannot spell an answer of several tokens in "
        "order, and a neuron serves other facts too: an attribution tool first, an editor that often fails.",
    )

    def preparation_key(self) -> str:
        return digest_of("knowledge_neurons")

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """The wordings of each relation; nothing is trained."""
        return Prepared({}, {"templates": relation_templates(corpus.edits)})

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        (request,) = batch.requests
        check_request(request)
        old = (request.target_true or "").strip() or current_answer(model, request.prompt)
        found, prompts = self._neurons(model, request, old, prepared)
        with torch.no_grad():
            updates = self._rewritten(model, request, old, list(found))
        note = {
            "editor": "knowledge_neurons",
            "requests": [request.request_id],
            "old_answer": old,
            "prompts": prompts,
            "neurons": [[layer, index, value] for (layer, index), value in found.items()],
        }
        return WeightPatch(updates, note)

    def _neurons(
        self, model: EditableModel, request: EditRequest, old: str, prepared: Prepared
    ) -> tuple[dict[Neuron, float], int]:
        """The refined set with mean attributions, and how many prompts it was taken over."""
        config = self.config
        # A model that says nothing at all (an end of text) is asked about the new answer: what holds it back is there too.
        answer = old or request.target_new
        others = paraphrases_of(request, prepared.meta["templates"], config.paraphrases)
        prompts = [request.prompt, *others]
        attributions = neuron_attributions(model, prompts, [answer_ids(model, p, answer) for p in prompts], config.points)
        coarse = [coarse_set(a, config.threshold) for a in attributions]
        mean = attributions.mean(0)
        chosen = refined_set(coarse, mean, config.share, config.fewest, config.most)
        log.info("%s: %d neurons from %d prompts", request.request_id, len(chosen), len(prompts))
        return {neuron: float(mean[neuron]) for neuron in chosen}, len(prompts)

    def _rewritten(self, model: EditableModel, request: EditRequest, old: str, neurons: Sequence[Neuron]) -> dict[str, LowRank]:
        config, path = self.config, model.anatomy.mlp_out
        direction = config.new_weight * _embedding(model, request, request.target_new)
        if old:
            direction = direction - config.old_weight * _embedding(model, request, old)
        updates: dict[str, LowRank] = {}
        for layer in sorted({layer for layer, _ in neurons}):
            weight = model.weight(path, layer).float()
            index = torch.tensor(sorted(i for at, i in neurons if at == layer), device=weight.device)
            norms = weight.norm(dim=0)
            sizes = norms[index].clamp(max=LARGEST_SLOT * float(norms.median()))
            left = -weight[:, index] if request.kind == "erase" else direction[:, None] * sizes
            right = torch.zeros(weight.shape[1], len(index), device=weight.device)
            right[index, torch.arange(len(index), device=weight.device)] = 1.0
            updates[path.format(layer=layer) + ".weight"] = LowRank(left.contiguous().cpu(), right.cpu())
        return updates


def coarse_set(attributions: Tensor, threshold: float) -> dict[Neuron, float]:
    """Neurons of (layers, d_mlp) above that share of the largest attribution; none where none is positive."""
    largest = float(attributions.max())
    if largest <= 0:
        return {}
    places = (attributions > threshold * largest).nonzero().tolist()
    return {(layer, index): float(attributions[layer, index]) for layer, index in places}


def refined_set(coarse: Sequence[Mapping[Neuron, float]], mean: Tensor, share: float, fewest: int, most: int) -> list[Neuron]:
    """Neurons that are in the coarse sets of that share of the prompts.

    The share moves until `fewest` to `most` are left. Where no share leaves so few, those of the largest mean attribution
    are taken; where none leaves enough, as many as there are, and at least the largest one.
    """
    counts: dict[Neuron, int] = {}
    for found in coarse:
        for neuron in found:
            counts[neuron] = counts.get(neuron, 0) + 1

    def left(at: float) -> list[Neuron]:
        # Products of .05 are not exact: a hundredth of a prompt decides nothing.
        return [neuron for neuron, count in counts.items() if count >= at * len(coarse) - 0.01]

    steps, smallest = round(share / SHARE_STEP), 1
    while len(left(steps * SHARE_STEP)) > most and (steps + 1) * SHARE_STEP <= 1 + 1e-9:
        steps += 1
    while len(left(steps * SHARE_STEP)) < fewest and steps > smallest:
        steps -= 1
    chosen = left(steps * SHARE_STEP)
    if not chosen:
        layer, index = divmod(int(mean.argmax()), mean.shape[1])
        chosen = [(layer, index)]
    return sorted(sorted(chosen, key=lambda neuron: -float(mean[neuron]))[:most])


def _embedding(model: EditableModel, request: EditRequest, answer: str) -> Tensor:
    """(d_model,) mean output embedding of an answer's tokens at unit length, fp32."""
    ids = answer_ids(model, request.prompt, answer)
    mean = model.head_weight[ids].float().mean(0)
    return mean / mean.norm()
