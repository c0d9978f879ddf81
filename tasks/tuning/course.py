"""The order of a search: layers first, then one number after another at the best layer; best ones by what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from editors.presets.search_space import SearchSpace
from tasks.tuning.trials import Trial

#: Success and neighbours kept of numbers that are chosen by what carries over.
HOLDS, SPARES = 0.9, 0.9
#: A choice -> its trial; None where it is not measured yet.
Known = Callable[[dict[str, Any]], Trial | None]


def next_choice(space: SearchSpace, known: Known) -> dict[str, Any] | None:
    """What to try next; None when the search is done. A function of what is measured, so a killed search goes on.

    Each field in the space's order, with all others at the best so far. Numbers that nothing can beat end it.
    """
    best = known(space.first)
    if best is None:
        return space.first
    for field, candidates in space.candidates.items():
        tried = [best]
        for value in candidates.values:
            choice = {**best.choice, field: value}
            if best.is_perfect:
                return None
            found = known(choice)
            if found is None:
                return choice
            tried.append(found)
        best = best_of(tried)
    return None


def best_of(trials: Sequence[Trial]) -> Trial:
    """The best numbers; of equal ones the cheaper, then the earlier.

    Among those that hold and spare (`HOLDS`, `SPARES`) by generalization, then success, then neighbours kept. Numbers that do
    not hold or not spare come behind, by the harmonic mean of the three: generalization alone would choose what writes the
    new answer everywhere, and the mean alone would choose it over a memory that answers nothing but its own prompt.
    """
    return max(trials, key=_rank)


def _rank(trial: Trial) -> tuple[float, ...]:
    is_sound = trial.success >= HOLDS and trial.kept >= SPARES
    first = trial.generalization if is_sound else trial.score
    return (is_sound, first, trial.success, trial.kept, -trial.cpu_per_edit)


def most_trials(space: SearchSpace) -> int:
    """How many trials a search takes at most."""
    return 1 + sum(len(c.values) - 1 for c in space.candidates.values())


def all_known(space: SearchSpace, known: Known) -> Iterator[Trial]:
    """The measured trials of a search, in its order."""
    seen: list[dict[str, Any]] = []

    def noting(choice: dict[str, Any]) -> Trial | None:
        if choice not in seen and known(choice) is not None:
            seen.append(choice)
        return known(choice)

    next_choice(space, noting)
    for choice in seen:
        trial = known(choice)
        assert trial is not None
        yield trial
