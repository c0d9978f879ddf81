"""What a metric may see of a model: it scores and it generates. No editor, no weights.

`editors.model.EditableModel` has this shape; so could a server behind HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from warehouse.questions import Answer, Question

__all__ = ["Answer", "Predictor", "Question"]


class Predictor(Protocol):
    @property
    def digest(self) -> str:
        """Identity of the model state: equal digests give equal answers on one machine."""
        ...

    def score(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions; batching is the predictor's affair."""
        ...

    def generate(self, prompts: Sequence[str], max_new_tokens: int, *, sample: bool = False, seed: int = 0) -> list[str]:
        """Continuations without the prompt; greedy unless `sample`; special tokens removed."""
        ...

    def log_likelihoods(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """(sum of token log-probabilities in nats, number of predicted tokens) of each text."""
        ...

    def next_token_log_probs(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """(prompts, vocab) log-probabilities of the token after each prompt."""
        ...
