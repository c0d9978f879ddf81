"""Read the items of general ability, and ask a model which of them it answers.

Source: `items.yaml`, written for Errata. An item is right as every rate here has it: greedy decoding gives one of the accepted
answers and then stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from checks.errors import EvaluationError
from checks.predictor import Predictor, Question

ITEMS = Path(__file__).with_name("items.yaml")


@dataclass(frozen=True)
class AbilityItem:
    """`prompt` ends where an answer begins; any of `answers` counts."""

    kind: str
    prompt: str
    answers: tuple[str, ...]


@cache
def ability_items() -> tuple[AbilityItem, ...]:
    """All items, in the order of their file."""
    groups = yaml.safe_load(ITEMS.read_text(encoding="utf-8"))["groups"]
    return tuple(
        AbilityItem(group["kind"], group["begin"] + group["ask"].format(key), _several(answer))
        for group in groups
        for key, answer in group["items"].items()
    )


def answered(predictor: Predictor, items: Sequence[AbilityItem]) -> tuple[bool, ...]:
    """For each item whether the model answers it exactly; all in one `score` call.

    Raises:
        EvaluationError: the predictor gave another number of answers than there were questions.
    """
    questions = [Question(item.prompt, answer) for item in items for answer in item.answers]
    found = predictor.score(questions) if questions else []
    if len(found) != len(questions):
        raise EvaluationError(f"model {predictor.digest[:12]} gave {len(found)} answers to {len(questions)} questions")
    exact = iter(answer.exact for answer in found)
    return tuple(any([next(exact) for _ in item.answers]) for item in items)


def answered_still(predictor: Predictor, items: Sequence[AbilityItem], before: Sequence[bool]) -> tuple[bool, ...]:
    """As `answered`, of a model of which only those items are asked that were answered `before`; the others are False."""
    still = iter(answered(predictor, [item for item, known in zip(items, before, strict=True) if known]))
    return tuple(known and next(still) for known in before)


def _several(answer: str | list[str]) -> tuple[str, ...]:
    return (answer,) if isinstance(answer, str) else tuple(answer)
