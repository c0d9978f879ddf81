"""What a metric may see of a model: it scores and it generates. No editor, no weights.

`editors.model.EditableModel` has this shape; so could a server behind HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from warehouse.questions import Answer, Question

__all__ = ["Answer", "AskedTogether", "Predictor", "Question", "Scorer"]


class Scorer(Protocol):
    """What most metrics need of a model."""

    @property
    def digest(self) -> str:
        """Identity of the model state: equal digests give equal answers on one machine."""
        ...

    def score(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions; batching is the predictor's affair."""
        ...


class Predictor(Scorer, Protocol):
    """All that a metric may see of a model."""

    def generate(self, prompts: Sequence[str], max_new_tokens: int, *, sample: bool = False, seed: int = 0) -> list[str]:
        """Continuations without the prompt; greedy unless `sample`; special tokens removed."""
        ...

    def log_likelihoods(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """(sum of token log-probabilities in nats, number of predicted tokens) of each text."""
        ...

    def next_token_log_probs(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """(prompts, vocab) log-probabilities of the token after each prompt."""
        ...


class AskedTogether:
    """A scorer that was asked some questions in one call, so that what their prompts begin with ran once.

    Metrics ask by themselves, each what it needs; of one state of a model many of them ask the same prompts.
    """

    def __init__(self, predictor: Scorer, questions: Iterable[Question]) -> None:
        self._predictor, self._digest = predictor, predictor.digest
        asked = list(dict.fromkeys(questions))
        self._answers = dict(zip(asked, predictor.score(asked) if asked else [], strict=True))

    @property
    def digest(self) -> str:
        """That of the state that was asked."""
        return self._digest

    def score(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions; what was not asked before is asked now."""
        missing = [question for question in dict.fromkeys(questions) if question not in self._answers]
        if missing:
            self._answers |= zip(missing, self._predictor.score(missing), strict=True)
        return [self._answers[question] for question in questions]
