"""The facts that a search edits: requests about what the model knows, and neighbours that it answers rightly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from checks.predictor import Question
from editors.base import Corpus
from editors.model import EditableModel
from tasks.quality.requests import base_world, benchmark_requests
from tasks.serving.corpus import calibration
from tasks.serving.known import ask_known
from tasks.settings import Settings
from warehouse.digests import digest_of
from warehouse.records import EditRequest, ProbeKind
from warehouse.world.probes import PER_REQUEST, build_edit_probes

#: Edits of one trial: an edit costs seconds, and a share of eight tells .5 from 1.
FACTS = 8
#: Neighbours asked after each edit.
NEIGHBOURS = 4
#: Slots of each relation that the model is asked beforehand, so that there are neighbours that it knows.
KNOWN_EACH = 20


@dataclass(frozen=True)
class TuningSet:
    """Facts of development subjects; nothing of them is ever reported.

    Attributes:
        requests: prompts in the form that the model is asked in; `wordings` may be learnt from, `rephrases` are held out.
        neighbours: request id -> questions about other subjects, which the bare base answers rightly.
        corpus: what preparations read.
    """

    requests: tuple[EditRequest, ...]
    neighbours: Mapping[str, tuple[Question, ...]]
    corpus: Corpus

    @cached_property
    def digest(self) -> str:
        asked = {r: [(q.prompt, q.answer) for q in questions] for r, questions in sorted(self.neighbours.items())}
        return digest_of(list(self.requests), asked, self.corpus.digest)


def tuning_set(settings: Settings, model: EditableModel, count: int = FACTS) -> TuningSet:
    """Facts of the development split that the model knows, to be changed; in the forms that it is asked in.

    Raises:
        NotEnoughFacts: the model knows fewer.
    """
    asker = ask_known(settings, each=KNOWN_EACH)
    with base_world(settings) as world:
        requests = tuple(
            benchmark_requests(world, model, "modification", count, split="development", seed=settings.seed, asker=asker)
        )
        learnt = calibration(world, asker=asker)
        # Twice as many as are asked, since the model may not know them all.
        counts: dict[ProbeKind, int] = {k: 2 * NEIGHBOURS if k == "neighbourhood" else 0 for k in PER_REQUEST}
        probes = build_edit_probes(
            world, requests, excluded_subjects=learnt.subjects, per_request=counts, seed=settings.seed, asker=asker
        ).probes
    asked = [(p.request_id or "", Question(p.prompt, target)) for p in probes for target in p.targets]
    answers = model.score([question for _, question in asked])
    known: dict[str, dict[str, Question]] = {r.request_id: {} for r in requests}
    for (request_id, question), answer in zip(asked, answers, strict=True):
        if answer.exact and len(known[request_id]) < NEIGHBOURS:
            known[request_id].setdefault(question.prompt, question)
    return TuningSet(requests, {r: tuple(own.values()) for r, own in known.items()}, learnt.corpus)
