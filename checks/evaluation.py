"""Ask two model states the same probes and turn their answers into one report.

`predict` asks and caches, `scores_from` is pure arithmetic over predictions, `evaluate` joins the two and adds what
needs more than answers: perplexity, KL, fluency and failure modes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from checks.errors import EvaluationError
from checks.metrics.drawdown import drawdown, kl_divergence, perplexity_ratio
from checks.metrics.failures import FailedProbe, failure_scores, leading_clause
from checks.metrics.fluency import fluency
from checks.metrics.forms import FormOf, by_form, not_counted, unanswered
from checks.metrics.generalization import generalization_rate
from checks.metrics.locality import SLICES as LOCALITY_SLICES
from checks.metrics.locality import locality
from checks.metrics.obsolete import obsolete
from checks.metrics.outcome import ProbeOutcome, of_kind
from checks.metrics.portability import SLICES as PORTABILITY_SLICES
from checks.metrics.portability import portability
from checks.metrics.retention import retention
from checks.metrics.success import edit_success, success_rate, token_accuracy
from checks.predictor import Answer, Predictor, Question, Scorer
from warehouse.digests import digest_of
from warehouse.records import EvaluationReport, Prediction, Probe, ProbeKind, ProbeSet, Score

log = logging.getLogger(__name__)

EDIT_KINDS: frozenset[ProbeKind] = frozenset({"success", "also", "rephrase", "carry_over"})
#: Kinds whose meaning depends on what `f_0` answers.
BEFORE_KINDS: frozenset[str] = frozenset({*LOCALITY_SLICES, *PORTABILITY_SLICES, "drawdown"})
#: Stands for log 0, which neither JSON nor a comparison can hold.
LOWEST_LOG_PROB = -1e30


class PredictionCache(Protocol):
    """Predictions by model digest and probe id; a probe id must cover the probe's prompt and targets."""

    def cached(self, model_digest: str, probe_ids: Sequence[str]) -> Mapping[str, Prediction]:
        """Those of the probes that this model state has answered before."""
        ...

    def put(self, predictions: Sequence[Prediction]) -> None:
        """Keep them; one that is there already stays as it is."""
        ...


class InMemoryCache:
    """A cache for tests and single runs."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Prediction] = {}

    def cached(self, model_digest: str, probe_ids: Sequence[str]) -> dict[str, Prediction]:
        keys = ((model_digest, probe_id) for probe_id in probe_ids)
        return {key[1]: self._kept[key] for key in keys if key in self._kept}

    def put(self, predictions: Sequence[Prediction]) -> None:
        for prediction in predictions:
            self._kept.setdefault((prediction.model_digest, prediction.probe_id), prediction)


@dataclass(frozen=True)
class EvaluationSettings:
    """How much to generate and compare, and the seed of every interval and sample."""

    seed: int = 0
    max_kl_prompts: int = 128
    max_fluency_prompts: int = 24
    fluency_tokens: int = 48
    max_failures: int = 200
    failure_tokens: int = 16


def predict(predictor: Scorer, probes: Iterable[Probe], cache: PredictionCache | None = None) -> dict[str, Prediction]:
    """Predictions by probe id: each probe once, from the cache where it has it, the rest in one `score` call.

    Of several accepted targets any right one counts; the best answer is kept. `held_text` probes have no answer and
    are passed over.

    Raises:
        EvaluationError: two probes share an id but not their content, a probe has no target, or the predictor gave
            another number of answers than there were questions.
    """
    asked = _distinct(probe for probe in probes if probe.kind != "held_text")
    digest = predictor.digest
    found = dict(cache.cached(digest, list(asked))) if cache is not None else {}
    missing = [probe for probe_id, probe in asked.items() if probe_id not in found]
    # Many probes ask the same thing (an edit's own prompt is also in the retain set).
    questions = probe_questions(missing)
    answers = predictor.score(questions) if questions else []
    if len(answers) != len(questions):
        raise EvaluationError(f"model {digest[:12]} gave {len(answers)} answers to {len(questions)} questions")
    answer_of = dict(zip(questions, answers, strict=True))
    fresh = [_prediction(digest, p, [answer_of[Question(p.prompt, t)] for t in p.targets]) for p in missing]
    if cache is not None and fresh:
        cache.put(fresh)
    log.info("model %s: %d probes, %d cached, %d questions", digest[:12], len(asked), len(found), len(questions))
    found.update((prediction.probe_id, prediction) for prediction in fresh)
    return found


def probe_questions(probes: Iterable[Probe]) -> list[Question]:
    """What the probes ask, each question once; `held_text` probes ask nothing."""
    asked = (Question(p.prompt, target) for p in probes if p.kind != "held_text" for target in p.targets)
    return list(dict.fromkeys(asked))


def outcomes_of(
    probes: Iterable[Probe],
    before: Mapping[str, Prediction],
    after: Mapping[str, Prediction],
    edit: str = "",
) -> list[ProbeOutcome]:
    """Pair each probe with its predictions; `edit` names the one edit that was made, where probes are shared.

    Raises:
        EvaluationError: a probe has no prediction after the edit, or none of `f_0` where its kind needs one.
    """
    outcomes = []
    for probe in probes:
        if probe.kind == "held_text":
            continue
        if probe.probe_id not in after:
            raise EvaluationError(f"probe {probe.probe_id} ({probe.kind}) was not asked of the edited model")
        if probe.kind in BEFORE_KINDS and probe.probe_id not in before:
            raise EvaluationError(f"probe {probe.probe_id} ({probe.kind}) was not asked of f_0, which its rate needs")
        outcomes.append(ProbeOutcome(probe, after[probe.probe_id], before.get(probe.probe_id), edit))
    return outcomes


def scores_from_outcomes(
    outcomes: Sequence[ProbeOutcome],
    *,
    retain: Sequence[ProbeOutcome] | None = None,
    seed: int = 0,
    form_of: FormOf | None = None,
) -> tuple[Score, ...]:
    """All rates that follow from predictions alone. Outcomes of several single edits may be put one after another.

    Args:
        retain: read for SRR, GRR and ESR; outcomes of kind `retain` join it.
        form_of: the form that a prompt stands in, for a slice of each; None: the model is asked in one.
    """
    retained = [*(retain or ()), *of_kind(outcomes, "retain")]
    return (
        success_rate(outcomes),
        generalization_rate(outcomes, seed=seed),
        edit_success(outcomes, seed=seed),
        *token_accuracy(outcomes, seed),
        *retention(retained, seed),
        *locality(outcomes),
        *portability(outcomes, seed),
        obsolete(outcomes),
        *drawdown(outcomes, seed),
        *(by_form(outcomes, retained, form_of, seed) if form_of else ()),
    )


def scores_from(
    probes: Sequence[Probe],
    before: Mapping[str, Prediction],
    after: Mapping[str, Prediction],
    *,
    right_after: Mapping[str, Prediction] | None = None,
    retain: Sequence[Probe] = (),
    seed: int = 0,
    form_of: FormOf | None = None,
) -> tuple[Score, ...]:
    """All rates that follow from predictions alone, by probe id.

    Args:
        before: `f_0`; needed for the kinds in `BEFORE_KINDS`.
        after: `f_N`, the final model; for single edits, each probe under the model that holds its edit.
        right_after: `f_n`, right after the batch that holds the edit: SR, GR and ES are read from it where it has
            the probe (default: one batch, so `f_n` is `f_N`).
        retain: success and rephrase probes of every edit still in force, read under `f_N`.
        form_of: see `scores_from_outcomes`.

    Raises:
        EvaluationError: a prediction is missing.
    """
    at_edit = {**after, **(right_after or {})}
    edits = [probe for probe in probes if probe.kind in EDIT_KINDS]
    others = [probe for probe in probes if probe.kind not in EDIT_KINDS]
    outcomes = outcomes_of(edits, before, at_edit) + outcomes_of(others, before, after)
    return scores_from_outcomes(outcomes, retain=outcomes_of(retain, {}, after), seed=seed, form_of=form_of)


def evaluate(
    before: Predictor,
    after: Predictor,
    probe_set: ProbeSet,
    *,
    retain: ProbeSet | None = None,
    texts: Sequence[str] = (),
    right_after: Mapping[str, Prediction] | None = None,
    old_answers: Mapping[str, Sequence[str]] | None = None,
    cache: PredictionCache | None = None,
    environment: Mapping[str, str] | None = None,
    extra: Sequence[Score] = (),
    before_id: str | None = None,
    after_id: str | None = None,
    settings: EvaluationSettings | None = None,
    form_of: FormOf | None = None,
) -> EvaluationReport:
    """Measure the edited model `after` against `before`, the base `f_0`.

    Args:
        probe_set: probes of the edits and of the standing sets; `held_text` ones join `texts`.
        retain: success and rephrase probes of every edit still in force, tonight's among them.
        texts: held text for the perplexity ratio.
        right_after: predictions made right after each batch (see `scores_from`).
        old_answers: by request id, what was right before the edit, for failure modes; the targets of `obsolete`
            probes are added, and what `f_0` writes.
        environment: what the numbers depend on beside the models (versions, machine, seed); kept in the report.
        extra: scores measured elsewhere, such as `efficiency`.
        before_id, after_id: checkpoint ids for the report; default: the models' digests.
        form_of: the form that a prompt stands in, where a model is asked in several: each has slices of its own, and wordings
            in which `f_0` does not answer an old answer that it knows are not counted.

    Returns:
        A report whose `report_id` is the digest of the model ids, the sets' digests and the scores. Scores of
        `efficiency` are no part of it: a rerun takes other seconds and is the same measurement.

    Raises:
        EvaluationError: a probe cannot be asked or answered.
    """
    settings = settings or EvaluationSettings()
    retained = retain.probes if retain is not None else ()
    first = predict(before, [p for p in probe_set.probes if p.kind in BEFORE_KINDS], cache)
    # One call for both sets: tonight's edits are in both.
    last = predict(after, [*probe_set.probes, *retained], cache)
    aside: frozenset[str] = frozenset()
    if form_of is not None:
        asked = [*probe_set.probes, *retained]
        aside = unanswered(asked, old_answers or {}, lambda probes: predict(before, probes, cache))
    counted, kept = (tuple(p for p in probes if p.probe_id not in aside) for probes in (probe_set.probes, retained))
    held = [*texts, *(p.prompt for p in probe_set.probes if p.kind == "held_text")]
    scores = (
        *scores_from(counted, first, last, right_after=right_after, retain=kept, seed=settings.seed, form_of=form_of),
        *(not_counted(probe_set.probes, aside, form_of) if form_of else ()),
        *_model_scores(before, after, probe_set.probes, held, settings),
        *_failure_scores(before, after, counted, last, old_answers or {}, settings),
        *extra,
    )
    digests = {"retain_digest": retain.digest if retain is not None else "", "texts_digest": digest_of(held)}
    start, end = before_id or before.digest, after_id or after.digest
    identity = [score for score in scores if score.metric != "efficiency"]
    return EvaluationReport(
        report_id=digest_of(start, end, probe_set.digest, digests, identity),
        before=start,
        after=end,
        probe_set_digest=probe_set.digest,
        scores=scores,
        environment={**(environment or {}), **digests},
    )


def _model_scores(
    before: Predictor, after: Predictor, probes: Sequence[Probe], texts: Sequence[str], settings: EvaluationSettings
) -> list[Score]:
    """Perplexity ratio over held texts, KL over drawdown prompts, fluency over the edits' own prompts."""
    seed = settings.seed
    likelihoods = (before.log_likelihoods(texts), after.log_likelihoods(texts)) if texts else ([], [])
    asked = _prompts(probes, "drawdown", settings.max_kl_prompts)
    first, last = (before.next_token_log_probs(asked), after.next_token_log_probs(asked)) if asked else ([], [])
    starts = _prompts(probes, "success", settings.max_fluency_prompts)
    written = [
        # Sampled: greedy text of a small model loops, edited or not.
        model.generate(starts, settings.fluency_tokens, sample=True, seed=seed) if starts else []
        for model in (before, after)
    ]
    return [
        perplexity_ratio(*likelihoods, seed=seed),
        kl_divergence(first, last, seed),
        *fluency(written[0], written[1], seed),
    ]


def _failure_scores(
    before: Predictor,
    after: Predictor,
    probes: Sequence[Probe],
    predictions: Mapping[str, Prediction],
    old_answers: Mapping[str, Sequence[str]],
    settings: EvaluationSettings,
) -> list[Score]:
    """Class the success and rephrase probes that fail under `f_N` (at most `max_failures`) by what it writes freely.

    Teacher-forced argmax text would follow the right answer after its first wrong token, so both models generate.
    """
    asked = [p for p in probes if p.kind in ("success", "rephrase") and not predictions[p.probe_id].exact]
    failed = asked[: settings.max_failures]
    if not failed:
        return failure_scores(())
    known: dict[str, list[str]] = {request: list(answers) for request, answers in old_answers.items()}
    for probe in probes:
        if probe.kind == "obsolete" and probe.request_id is not None:
            known.setdefault(probe.request_id, []).extend(probe.targets)
    prompts = [probe.prompt for probe in failed]
    first = before.generate(prompts, settings.failure_tokens)
    last = after.generate(prompts, settings.failure_tokens)
    return failure_scores(
        FailedProbe(probe.targets, [*known.get(probe.request_id or "", ()), leading_clause(said)], text)
        for probe, said, text in zip(failed, first, last, strict=True)
    )


def _prompts(probes: Sequence[Probe], kind: ProbeKind, limit: int) -> list[str]:
    # By probe id, a digest: a fixed choice that favours no relation, whatever the order of the set.
    chosen = sorted((probe.probe_id, probe.prompt) for probe in probes if probe.kind == kind)
    return [prompt for _, prompt in chosen[:limit]]


def _distinct(probes: Iterable[Probe]) -> dict[str, Probe]:
    asked: dict[str, Probe] = {}
    for probe in probes:
        other = asked.setdefault(probe.probe_id, probe)
        if (other.prompt, other.targets) != (probe.prompt, probe.targets):
            raise EvaluationError(
                f"probe id {probe.probe_id} stands for two questions, {other.prompt!r} and {probe.prompt!r}; "
                "make the id a digest of prompt and targets"
            )
        if not probe.targets:
            raise EvaluationError(f"probe {probe.probe_id} ({probe.kind}) has no target; only held_text may have none")
    return asked


def _prediction(model_digest: str, probe: Probe, answers: Sequence[Answer]) -> Prediction:
    """The best answer over the accepted targets: exact before inexact, then token accuracy, then probability."""
    plain = [_plain(answer) for answer in answers]
    best = max(plain, key=lambda a: (a.exact, a.token_accuracy, a.log_prob))
    return Prediction(
        model_digest=model_digest,
        probe_id=probe.probe_id,
        exact=best.exact,
        token_accuracy=best.token_accuracy,
        log_prob=best.log_prob,
        text=best.argmax_text,
    )


def _plain(answer: Answer) -> Answer:
    """An answer without NaN. A model whose probabilities are NaN has answered nothing, whatever its argmax was."""
    broken = math.isnan(answer.log_prob) or math.isnan(answer.token_accuracy)
    return Answer(
        exact=answer.exact and not broken,
        token_accuracy=0.0 if broken else answer.token_accuracy,
        log_prob=LOWEST_LOG_PROB if broken else max(answer.log_prob, LOWEST_LOG_PROB),
        margin=answer.margin,
        argmax_text=answer.argmax_text,
        num_tokens=answer.num_tokens,
    )
