"""Small things that stand for something else in tests: a question, a kill. Nothing heavy is imported for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ask:
    """A question with its answer, as `EditableModel.score` takes it; editors know nothing of `checks.predictor`."""

    prompt: str
    answer: str


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` may swallow it."""
