"""Contrastive knowledge assessment (CKA): does a model hold a fact, beyond liking its object after any relation?

Dong et al. 2022 (arXiv:2210.03329), eq. 1: `CKA(s, r, o) = P(o | s, r) / (E_{r-} P(o | s, r-) + a)`; below 1 the fact counts
as false knowledge. Reference: dqxiu/CaliNet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp

from editors.mechanics.paraphrases import other_relations, paraphrases_of
from editors.model import EditableModel
from warehouse.questions import Question
from warehouse.records import EditRequest


@dataclass(frozen=True)
class Assessment:
    """How a model stands to one fact.

    Attributes:
        holds: mean probability of the object over the relation's wordings.
        contrast: mean probability of the same object over wordings of other relations.
        score: `holds / (contrast + a)`.
    """

    request_id: str
    holds: float
    contrast: float
    score: float

    @property
    def is_false(self) -> bool:
        """Is the object no likelier under its own relation than under others?"""
        return self.score < 1


def assess(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Mapping[str, Sequence[str]],
    *,
    wordings: int = 3,
    contrasts: int = 3,
    smoothing: float = 1e-2,
) -> list[Assessment]:
    """CKA of `(subject, relation, target_new)` of each request, in their order.

    P is the probability of all tokens of the object, in one teacher-forced pass; the means are over prompts. Ours takes the
    relations for the contrast from `templates`, where the paper wrote them by hand.

    Args:
        templates: relation -> wordings with `{}` for the subject. A request always counts with its own prompt too.
        smoothing: a of eq. 1; it keeps an object that is unlikely everywhere from counting as known.
    """
    asked: list[Question] = []
    parts: list[tuple[int, int]] = []
    for request in requests:
        own = [request.prompt, *paraphrases_of(request, templates, wordings - 1)]
        other = other_relations(request, templates, contrasts)
        parts.append((len(own), len(other)))
        asked += [Question(prompt, request.target_new) for prompt in (*own, *other)]
    probabilities = [exp(answer.log_prob) for answer in model.score(asked)]
    found, at = [], 0
    for request, (own, other) in zip(requests, parts, strict=True):
        holds = sum(probabilities[at : at + own]) / own
        contrast = sum(probabilities[at + own : at + own + other]) / other if other else 0.0
        found.append(Assessment(request.request_id, holds, contrast, holds / (contrast + smoothing)))
        at += own + other
    return found
