"""How an edit failed: each failed probe is put into one mode, from what the model wrote.

Source: METRICS.md. Scores are counts: `value` probes of `n` failed ones, one score for each mode, without interval.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from warehouse.records import Score

FailureMode = Literal[
    "unchanged_old_answer", "repetition_or_meaningless", "partial_replacement", "missing_tokens", "irrelevant"
]
MODES: tuple[FailureMode, ...] = get_args(FailureMode)
_WORD = re.compile(r"\w+")
#: End of the answer's own clause: what follows is other text. A full stop inside a name ("St. Louis") ends it too
#: early, which matters to no mode but the last two.
_CLAUSE_END = re.compile(r"[.!?;](?:\s|$)|\n")
#: So many equal runs of words in a row are a loop, not a phrase.
_LOOP_REPEATS, _LONGEST_LOOP = 3, 4


@dataclass(frozen=True)
class FailedProbe:
    """A probe that did not get its answer.

    Attributes:
        targets: the accepted new answers.
        old_answers: what was right before the edit, or what `f_0` says; may be empty.
        text: what the edited model writes after the prompt.
    """

    targets: Sequence[str]
    old_answers: Sequence[str]
    text: str


def classify(failed: FailedProbe) -> FailureMode:
    """The first mode that fits, in the order below; `irrelevant` where none does.

    1. `unchanged_old_answer`: the text begins with an old answer.
    2. `repetition_or_meaningless`: up to four words three times in a row, a broken character, or marks and no word.
    3. `partial_replacement`: the beginning of a new answer, then the end (or all) of an old one.
    4. `missing_tokens`: nothing at all, or only some words of a new answer, in order.
    """
    clause = _words(leading_clause(failed.text))
    written = _words(failed.text)
    old = [words for words in map(_words, failed.old_answers) if words]
    new = [words for words in map(_words, failed.targets) if words]
    if _is_broken(failed.text, written, clause):
        return "repetition_or_meaningless"
    if any(written[: len(words)] == words for words in old):
        return "unchanged_old_answer"
    if any(_is_partial(written, fresh, stale) for fresh in new for stale in old):
        return "partial_replacement"
    if not failed.text.strip() or any(_is_gapped(clause, words) for words in new):
        return "missing_tokens"
    return "irrelevant"


def failure_scores(failed: Iterable[FailedProbe]) -> list[Score]:
    """One count for each mode, zeros included; `n` is the number of failed probes classed."""
    found = [classify(probe) for probe in failed]
    return [
        Score(metric="failure_mode", slice=mode, value=float(found.count(mode)), low=None, high=None, n=len(found))
        for mode in MODES
    ]


def leading_clause(text: str) -> str:
    """The part of a continuation that answers: up to the end of its first sentence or line."""
    return _CLAUSE_END.split(text.strip(), maxsplit=1)[0].strip()


def is_meaningless(text: str) -> bool:
    """A broken character, marks and no word, or up to four words three times in a row; an empty text is none of these."""
    return _is_broken(text, _words(text), _words(leading_clause(text)))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _is_broken(text: str, written: Sequence[str], clause: Sequence[str]) -> bool:
    if "\ufffd" in text or (text.strip() and not written):
        return True
    for size in range(1, _LONGEST_LOOP + 1):
        for start in range(len(clause) - size * _LOOP_REPEATS + 1):
            run = clause[start : start + size]
            if all(clause[start + i * size : start + (i + 1) * size] == run for i in range(1, _LOOP_REPEATS)):
                return True
    return False


def _is_partial(written: Sequence[str], new: Sequence[str], old: Sequence[str]) -> bool:
    kept = 0
    while kept < min(len(written), len(new)) and written[kept] == new[kept]:
        kept += 1
    # An ending that both answers share is not the old one coming back.
    return any(
        written[split : split + len(old) - start] == old[start:]
        for split in range(1, kept + 1)
        for start in range(len(old))
        if new[split : split + len(old) - start] != old[start:]
    )


def _is_gapped(clause: Sequence[str], new: Sequence[str]) -> bool:
    left = iter(new)
    return 0 < len(clause) < len(new) and all(word in left for word in clause)
