"""Does a server answer as the checkpoint that was promoted, and if not, as which one does it answer?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from checks.errors import EvaluationError
from checks.metrics.failures import is_meaningless, leading_clause
from warehouse.questions import ends_answer
from warehouse.records import Canary, CanarySet, Record

#: Of the answers a checkpoint must have given at least this share to be named as the one that is served.
NAMED = 0.9
#: A server that fits no checkpoint is broken where it says nothing in more than this share of what has an answer.
GARBLED = 0.5


class Fit(Record):
    """How many of the canaries a server answered as one checkpoint would; `checkpoint_id` may be the base's."""

    checkpoint_id: str
    edits: int
    bystanders: int

    @property
    def total(self) -> int:
        return self.edits + self.bystanders


class Judged(Record):
    """What a server's answers say.

    Attributes:
        verdict: `agrees`: as the promoted checkpoint; `garbled`: most answers are empty or mean nothing.
        edits, bystanders: of `num_edits` and `num_bystanders`, answered as the promoted checkpoint does.
        meaningless: answers that are empty or mean nothing where the promoted checkpoint says something.
        answers_as: the checkpoints that the answers fit best, the newest first: several where these canaries cannot tell
            them apart; empty where they fit none, or say nothing.
        fits: all checkpoints of the line, the promoted one last.
        wrong: prompts of up to three canaries that were answered otherwise, with both answers.
    """

    verdict: Literal["agrees", "differs", "garbled"]
    edits: int
    num_edits: int
    bystanders: int
    num_bystanders: int
    meaningless: int
    answers_as: tuple[str, ...]
    fits: tuple[Fit, ...]
    wrong: tuple[tuple[str, str, str], ...] = ()


def says(text: str, expected: str) -> bool:
    """Does a continuation give exactly this answer, as `Answer.exact` means it: all of it, and then its end?"""
    said = text.strip()
    if not expected:
        return not leading_clause(said)
    return said.startswith(expected) and ends_answer(said[len(expected) :]) is not False


def answer_in(text: str, known: Sequence[str] = ()) -> str:
    """What a continuation answers: the one of the known answers that it gives, else its first clause."""
    return next((answer for answer in known if answer and says(text, answer)), leading_clause(text))


def judge(canaries: CanarySet, answers: Sequence[str], least: float = 1.0) -> Judged:
    """Compare a server's answers, in the order of the canaries, with those of every checkpoint of the line.

    Args:
        least: share of the edits, and of the bystanders, that must be answered as the promoted checkpoint does.

    Raises:
        EvaluationError: another number of answers than of canaries.
    """
    asked = canaries.canaries
    if len(answers) != len(asked):
        raise EvaluationError(f"{len(answers)} answers to {len(asked)} canaries of {canaries.checkpoint_id[:12]}")
    line = (*canaries.line, canaries.checkpoint_id)
    fits = tuple(_fit(line, place, asked, answers) for place in range(len(line)))
    own = fits[-1]
    edits, others = (sum(c.kind == kind for c in asked) for kind in ("edit", "bystander"))
    answered = [a for c, a in zip(asked, answers, strict=True) if not _means_nothing(c.expected)]
    meaningless = sum(map(_means_nothing, answered))
    best = max(fit.total for fit in fits)
    named = [fit.checkpoint_id for fit in reversed(fits) if fit.total == best and best >= NAMED * len(asked)]
    verdict: Literal["agrees", "differs", "garbled"] = "differs"
    if not named and meaningless > GARBLED * len(answered):
        verdict = "garbled"
    elif own.total == best and own.edits >= least * edits and own.bystanders >= least * others:
        verdict, named = "agrees", [canaries.checkpoint_id]
    wrong = [(c.prompt, c.expected, a.strip()) for c, a in zip(asked, answers, strict=True) if not says(a, c.expected)]
    return Judged(
        verdict=verdict,
        edits=own.edits,
        num_edits=edits,
        bystanders=own.bystanders,
        num_bystanders=others,
        meaningless=meaningless,
        answers_as=tuple(named),
        fits=fits,
        wrong=tuple(wrong[:3]),
    )


def _fit(line: Sequence[str], place: int, asked: Sequence[Canary], answers: Sequence[str]) -> Fit:
    right = {"edit": 0, "bystander": 0}
    for canary, answer in zip(asked, answers, strict=True):
        right[canary.kind] += says(answer, _answer_at(canary, line, place))
    return Fit(checkpoint_id=line[place], edits=right["edit"], bystanders=right["bystander"])


def _answer_at(canary: Canary, line: Sequence[str], place: int) -> str:
    """What the checkpoint at a place of the line answers: it was asked of the first, the last and the one before that.

    Of those between, by the ledger: from the checkpoint that brought the edit on its answer, before that the base's.
    """
    if place == len(line) - 1:
        said = None
    elif place == 0:
        said = canary.base
    elif place == len(line) - 2:
        said = canary.previous
    else:
        is_later = canary.since in line[place + 1 :]
        said = canary.base if canary.kind == "edit" and is_later else None
    return canary.expected if said is None else said


def _means_nothing(text: str) -> bool:
    return not text.strip() or is_meaningless(text)
