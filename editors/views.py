"""Look at a model as it was some patches ago, without a second copy of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
from numpy.typing import NDArray

from editors.model import EditableModel
from warehouse.questions import Answer, Question
from warehouse.records import checkpoint_id


@contextmanager
def at_depth(model: EditableModel, depth: int) -> Iterator[EditableModel]:
    """Take the patches above the first `depth` off for the length of a block, and put them back in their order."""
    later = model.patches[depth:]
    if later:
        model.rollback(depth)
    try:
        yield model
    finally:
        for patch in later:
            model.push(patch)


def at_base(model: EditableModel) -> AbstractContextManager[EditableModel]:
    """Take all patches off for the length of a block: a preparation belongs to the base model."""
    return at_depth(model, 0)


class AtDepth:
    """The model with only its first `depth` patches; a `checks.Predictor`. Depth 0 is the base, `f_0`.

    Each question takes the later patches off and puts them back: one weight update each, no copy of the model.
    """

    def __init__(self, model: EditableModel, depth: int = 0) -> None:
        self._model, self._depth = model, depth

    @property
    def digest(self) -> str:
        return checkpoint_id(self._model.base_digest, [p.digest for p in self._model.patches[: self._depth]])

    def score(self, questions: Sequence[Question]) -> list[Answer]:
        with at_depth(self._model, self._depth) as model:
            return model.score(questions)

    def generate(self, prompts: Sequence[str], max_new_tokens: int, *, sample: bool = False, seed: int = 0) -> list[str]:
        with at_depth(self._model, self._depth) as model:
            return model.generate(prompts, max_new_tokens, sample=sample, seed=seed)

    def log_likelihoods(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        with at_depth(self._model, self._depth) as model:
            return model.log_likelihoods(texts)

    def next_token_log_probs(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        with at_depth(self._model, self._depth) as model:
            return model.next_token_log_probs(prompts)
