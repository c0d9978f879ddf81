"""Which edits of a rejected batch break the gate: group testing by adaptive halving.

`passes(subset)` says whether the batch cut down to a subset of its edits passes. From nothing, the subset that is kept
grows by groups: a group that passes together with what is kept joins it, one that fails is halved (Dorfman 1943; Hwang
1972), and a single edit that fails is a culprit. Two edits that break the gate only together cost one of the two.

For a gate that no more edits can mend, no culprit can come back, and k culprits among n edits take at most about
2 k log2(n) evaluations; the rest of the default budget of 4 k log2(n) checks that and looks for a smaller set. For any
other gate the two promises still hold, because they are evaluated: what is kept passes, and with any one culprit it fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from warehouse.records import Record

Passes = Callable[[frozenset[str]], bool]


class Isolation(Record):
    """What group testing found; every edit is in exactly one of the three.

    Attributes:
        kept: passes the gate, by an evaluation of just this set (or is empty: what is served now).
        culprits: each was seen to fail the gate together with edits that are kept.
        unexplored: the budget ended before anything was known of them alone; no evidence against them.
        evaluations: how often the gate was asked.
        exact: nothing is unexplored, and with any one culprit beside what is kept the gate was seen to fail.
        smallest: no other set of fewer edits can do, if more edits never mend a gate.
    """

    kept: tuple[str, ...]
    culprits: tuple[str, ...]
    unexplored: tuple[str, ...]
    evaluations: int
    exact: bool
    smallest: bool


def default_budget(batch: int, culprits: int) -> int:
    """4 k log2(n), and as much for the first culprit while none is found."""
    return math.floor(4 * max(1, culprits) * math.log2(batch)) if batch > 1 else 0


def isolate(edits: Sequence[str], passes: Passes, budget: int | None = None) -> Isolation:
    """A minimal set of edits without which the batch passes.

    Args:
        edits: the batch, which failed; in the order in which edits are to be preferred.
        passes: is never asked about nothing, about the whole batch, or twice about one subset.
        budget: most evaluations; None: `default_budget` for as many culprits as are found.

    Raises:
        ValueError: an edit is named twice, or there is none.
    """
    if not edits or len(set(edits)) != len(edits):
        raise ValueError("isolate needs a batch of edits, each named once")
    search = _Search(tuple(edits), passes, budget)
    found = _Found()
    _absorb(search, found, tuple(edits))
    if not found.unexplored:
        found = _smaller(search, found)
        found = _mend(search, found)
    at = {name: place for place, name in enumerate(edits)}
    return Isolation(
        kept=tuple(sorted(found.kept, key=at.__getitem__)),
        culprits=tuple(sorted(found.culprits, key=at.__getitem__)),
        unexplored=tuple(sorted(found.unexplored, key=at.__getitem__)),
        evaluations=search.evaluations,
        exact=not found.unexplored and _is_minimal(search, found),
        smallest=not found.unexplored and (len(found.culprits) == 1 or _all_fail_alone(search, found)),
    )


class _Spent(Exception):
    """The budget is used up."""


@dataclass
class _Found:
    kept: frozenset[str] = frozenset()
    culprits: list[str] = field(default_factory=list)
    unexplored: list[str] = field(default_factory=list)


class _Search:
    """The gate, with its answers kept and its questions counted."""

    def __init__(self, edits: tuple[str, ...], passes: Passes, budget: int | None) -> None:
        self._passes, self._budget, self._batch = passes, budget, len(edits)
        # Both ends are known: the whole batch was rejected, and without any of it production stands.
        self._known = {frozenset(edits): False, frozenset[str](): True}
        self.evaluations = 0
        self.found = 0

    def passes(self, subset: frozenset[str]) -> bool:
        if subset not in self._known:
            limit = default_budget(self._batch, self.found) if self._budget is None else self._budget
            if self.evaluations >= limit:
                raise _Spent
            self.evaluations += 1
            self._known[subset] = self._passes(subset)
        return self._known[subset]

    def known_to_fail(self, subset: frozenset[str]) -> bool:
        return self._known.get(subset) is False


def _absorb(search: _Search, found: _Found, group: tuple[str, ...]) -> None:
    """Add to what is kept as much of the group as passes; note culprits and, at the end of the budget, what is left."""
    try:
        whole = search.passes(found.kept | set(group))
    except _Spent:
        found.unexplored += group
        return
    if whole:
        found.kept |= set(group)
    elif len(group) == 1:
        found.culprits += group
        search.found = max(search.found, len(found.culprits))
    else:
        half = len(group) // 2
        # Where the first half passes, the second is known to fail without being asked: it is the group again.
        _absorb(search, found, group[:half])
        _absorb(search, found, group[half:])


def _smaller(search: _Search, found: _Found) -> _Found:
    """A smaller set, if the culprits can be kept at the price of fewer others; else what was found.

    Culprits that fail alone are in every set. Three that fail only beside one other edit are no smaller than that one.
    """
    if len(found.culprits) < 2:
        return found
    again = _Found()
    try:
        again.culprits = [name for name in found.culprits if not search.passes(frozenset({name}))]
    except _Spent:
        return found
    tied = tuple(name for name in found.culprits if name not in again.culprits)
    if len(tied) < 2:
        return found
    _absorb(search, again, tied)
    _absorb(search, again, tuple(sorted(found.kept)))
    return again if not again.unexplored and len(again.culprits) < len(found.culprits) else found


def _mend(search: _Search, found: _Found) -> _Found:
    """Take back every culprit that passes beside what is kept in the end: a gate can be mended by more edits."""
    kept, culprits = found.kept, list(found.culprits)
    for _ in found.culprits:
        try:
            back = next((name for name in culprits if search.passes(kept | {name})), None)
        except _Spent:
            break
        if back is None:
            break
        kept |= {back}
        culprits.remove(back)
    return _Found(kept, culprits, found.unexplored)


def _is_minimal(search: _Search, found: _Found) -> bool:
    return all(search.known_to_fail(found.kept | {name}) for name in found.culprits)


def _all_fail_alone(search: _Search, found: _Found) -> bool:
    return all(search.known_to_fail(frozenset({name})) for name in found.culprits)
