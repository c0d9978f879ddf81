"""A scripted predictor and short builders of probes, predictions and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from checks.metrics.outcome import ProbeOutcome
from checks.predictor import Answer, Question
from warehouse.digests import digest_of
from warehouse.records import EvaluationReport, Prediction, Probe, ProbeKind, ProbeSet, Score

NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)


class ScriptedPredictor:
    """Says what its script says; a word is a token. Counts how often it is asked."""

    def __init__(
        self,
        name: str,
        script: Mapping[str, str],
        *,
        text_log_prob: float = -2.0,
        next_token: Sequence[float] = (0.5, 0.5),
    ) -> None:
        self.digest = digest_of(name)
        self.script = dict(script)
        self.text_log_prob = text_log_prob
        self.next_token = next_token
        self.score_calls: list[list[Question]] = []

    def score(self, questions: Sequence[Question]) -> list[Answer]:
        self.score_calls.append(list(questions))
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Answer:
        said, wanted = self.script.get(question.prompt, "nothing").split(), question.answer.split()
        hits = [a == b for a, b in zip(said, wanted, strict=False)]
        accuracy = sum(hits) / len(wanted)
        exact = said == wanted
        return Answer(exact, accuracy, -1.0 - len(wanted) * (1 - accuracy), 1.0 if exact else -1.0, " ".join(said))

    def generate(self, prompts: Sequence[str], max_new_tokens: int, *, sample: bool = False, seed: int = 0) -> list[str]:
        return [" ".join(self.script.get(p, "nothing").split()[:max_new_tokens]) + "." for p in prompts]

    def log_likelihoods(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        return [(self.text_log_prob * len(text.split()), len(text.split())) for text in texts]

    def next_token_log_probs(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        return np.log(np.array([self.next_token] * len(prompts), dtype=np.float32))


def probe(kind: ProbeKind, prompt: str, *targets: str, request_id: str | None = None, probe_id: str | None = None) -> Probe:
    made = probe_id or digest_of(kind, prompt, targets, request_id)
    return Probe(probe_id=made, kind=kind, prompt=prompt, targets=targets, request_id=request_id)


def probe_set(*probes: Probe, name: str = "night") -> ProbeSet:
    return ProbeSet(name=name, version=1, probes=probes, digest=digest_of([p.probe_id for p in probes]))


def prediction(probe_id: str, exact: bool, token_accuracy: float | None = None, text: str = "") -> Prediction:
    accuracy = float(exact) if token_accuracy is None else token_accuracy
    return Prediction(model_digest="m", probe_id=probe_id, exact=exact, token_accuracy=accuracy, log_prob=-1.0, text=text)


def outcome(
    kind: ProbeKind, edit: str | None, after: bool, before: bool | None = None, token_accuracy: float | None = None
) -> ProbeOutcome:
    """One probe of `edit` (None: of a standing set) with both answers scripted."""
    asked = probe(kind, "a prompt", "an answer", request_id=edit)
    first = None if before is None else prediction(asked.probe_id, before)
    return ProbeOutcome(asked, prediction(asked.probe_id, after, token_accuracy), first)


def standing(kind: ProbeKind, number: int, after: bool, before: bool) -> ProbeOutcome:
    asked = probe(kind, f"prompt {number}", "an answer")
    return ProbeOutcome(asked, prediction(asked.probe_id, after), prediction(asked.probe_id, before))


def score(
    metric: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    n: int = 100,
    slice_name: str = "",
) -> Score:
    return Score(metric=metric, slice=slice_name, value=value, low=low, high=high, n=n)


def report(*scores: Score) -> EvaluationReport:
    return EvaluationReport(
        report_id=digest_of(["report", len(scores)]), before="f0", after="fN", probe_set_digest="set", scores=scores
    )
