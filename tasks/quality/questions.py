"""What a run of the benchmark asks: requests, probes, texts and items chosen once, and what `f_0` answered to all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from checks.ability.items import ability_items, answered
from checks.evaluation import predict, probe_questions
from checks.metrics.forms import REWORDED, not_counted, unanswered
from checks.metrics.published import Duel, duel_questions, duels_of, won
from checks.predictor import AskedTogether, Question
from editors.base import Corpus
from editors.model import EditableModel
from tasks.quality.requests import Split, Task, benchmark_requests
from tasks.serving.corpus import calibration
from warehouse.database.connection import Warehouse
from warehouse.records import EditRequest, Prediction, Probe, Record, Score
from warehouse.world.forms import PLAINLY, Asker
from warehouse.world.probes import build_edit_probes, make_probe_set, standing_probes

Likelihoods = list[tuple[float, int]]


class BenchmarkOptions(Record):
    """How much is asked beside the edits' own probes.

    A single edit is asked only a few drawdown probes, the next ones for each edit, and one held text: two hundred
    edits cover the whole set together.
    """

    drawdown: int = 600
    drawdown_each: int = 4
    held_texts: int = 40
    kl_prompts: int = 96
    fluency_prompts: int = 24
    fluency_tokens: int = 40
    #: Single edits whose patches are made together and held at once.
    together: int = 50


@dataclass(frozen=True)
class RunQuestions:
    """Everything that is asked in a run, and what `f_0` answered.

    Attributes:
        owned: request id -> the probes that belong to it.
        drawdown: facts whose subjects take part in nothing: no edit, no second moment.
        asker: how the model is asked. Prompts that say nothing about an edit in it are in no `owned`; `aside` counts them.
        kl_log_probs: (prompts, vocab) of `f_0` after the first prompts of `drawdown`.
        duels: request id -> what the published scores ask about it, and whether `f_0` wins it.
        ability: for each item of general ability whether `f_0` answers it.
    """

    requests: tuple[EditRequest, ...]
    owned: Mapping[str, tuple[Probe, ...]]
    drawdown: tuple[Probe, ...]
    texts: tuple[str, ...]
    corpus: Corpus
    digest: str
    before: Mapping[str, Prediction]
    likelihoods: Likelihoods
    kl_log_probs: NDArray[np.float32]
    written: tuple[str, ...]
    duels: Mapping[str, Mapping[Duel, bool]]
    ability: tuple[bool, ...]
    options: BenchmarkOptions
    asker: Asker = PLAINLY
    aside: tuple[Score, ...] = ()

    def probes_of(self, requests: Sequence[EditRequest], kinds: frozenset[str] | None = None) -> list[Probe]:
        return [p for r in requests for p in self.owned[r.request_id] if kinds is None or p.kind in kinds]

    @property
    def kl_prompts(self) -> list[str]:
        return [p.prompt for p in self.drawdown[: self.options.kl_prompts]]


def ask_base(
    world: Warehouse,
    model: EditableModel,
    task: Task,
    edits: int,
    *,
    split: Split,
    seed: int,
    options: BenchmarkOptions | None = None,
    requests: Sequence[EditRequest] | None = None,
    asker: Asker = PLAINLY,
) -> RunQuestions:
    """Choose requests (unless they are given) and probes, and ask the bare base all of them once."""
    options = options or BenchmarkOptions()
    chosen = tuple(requests or benchmark_requests(world, model, task, edits, split=split, seed=seed, asker=asker))
    learnt = calibration(world, asker=asker)
    probes = build_edit_probes(world, chosen, excluded_subjects=learnt.subjects, seed=seed, asker=asker)
    away = standing_probes(
        world,
        kind="drawdown",
        limit=options.drawdown,
        excluded_subjects=learnt.subjects,
        requests=chosen,
        seed=seed,
        asker=asker,
    )
    held = standing_probes(world, kind="held_text", limit=options.held_texts)
    old = {r.request_id: [r.target_true] for r in chosen if r.target_true}
    by_request: dict[str, list[Probe]] = {r.request_id: [] for r in chosen}
    for probe in probes.probes:
        by_request[probe.request_id or ""].append(probe)
    # What is known, what says something, who wins: mostly asked with the same prompts, and so together.
    duels = [duel for r in chosen for duel in duels_of(r, by_request[r.request_id])]
    of_old = [
        Question(p.prompt, target) for p in probes.probes if p.kind in REWORDED for target in old.get(p.request_id or "", ())
    ]
    every = [*probe_questions([*probes.probes, *away.probes]), *duel_questions(duels), *of_old]
    asked = AskedTogether(model, every)
    before = predict(asked, [*probes.probes, *away.probes])
    # Nothing to lose where f_0 is wrong: such a probe would only cost time.
    known = tuple(p for p in away.probes if before[p.probe_id].exact)
    texts = tuple(p.prompt for p in held.probes)
    aside = frozenset() if asker.is_plain else unanswered(probes.probes, old, lambda these: predict(asked, these))
    owned = {name: tuple(p for p in own if p.probe_id not in aside) for name, own in by_request.items()}
    fought = {r.request_id: duels_of(r, owned[r.request_id]) for r in chosen}
    wins = won(asked, [duel for found in fought.values() for duel in found])
    kl = [p.prompt for p in known[: options.kl_prompts]]
    starts = [r.prompt for r in chosen[: options.fluency_prompts]]
    return RunQuestions(
        requests=chosen,
        owned=owned,
        drawdown=known,
        texts=texts,
        corpus=learnt.corpus,
        digest=make_probe_set("benchmark", [*probes.probes, *known, *held.probes]).digest,
        before=before,
        likelihoods=model.log_likelihoods(texts) if texts else [],
        kl_log_probs=model.next_token_log_probs(kl) if kl else np.empty((0, 0), dtype=np.float32),
        written=tuple(written(model, start, options, seed) for start in starts),
        duels={name: {duel: wins[duel] for duel in found} for name, found in fought.items()},
        ability=answered(model, ability_items()),
        options=options,
        asker=asker,
        aside=() if asker.is_plain else tuple(not_counted(probes.probes, aside, asker.form_of)),
    )


def written(model: EditableModel, prompt: str, options: BenchmarkOptions, seed: int) -> str:
    """What the model goes on with, sampled."""
    # One prompt a call: what is sampled depends on the rows beside it, and both models must draw alike.
    return model.generate([prompt], options.fluency_tokens, sample=True, seed=seed)[0]
