"""Culprits among good edits: found, few, with a bounded number of questions."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.isolation.group_testing import Isolation, default_budget, isolate

GOOD = [f"good-{i:03}" for i in range(100)]
Gate = Callable[[frozenset[str]], bool]


class Asked:
    """A gate that counts its questions and refuses those that isolation promises not to ask."""

    def __init__(self, gate: Gate, batch: list[str]) -> None:
        self.gate, self.batch, self.seen = gate, frozenset(batch), set[frozenset[str]]()

    def __call__(self, subset: frozenset[str]) -> bool:
        assert subset and subset != self.batch and subset not in self.seen
        assert subset <= self.batch
        self.seen.add(subset)
        return self.gate(subset)


def run(batch: list[str], gate: Gate, budget: int | None = None) -> Isolation:
    asked = Asked(gate, batch)
    found = isolate(batch, asked, budget)
    assert found.evaluations == len(asked.seen)
    assert sorted([*found.kept, *found.culprits, *found.unexplored]) == sorted(batch)
    assert not found.kept or gate(frozenset(found.kept))
    return found


def is_minimal(found: Isolation, gate: Gate) -> bool:
    return not any(gate(frozenset({*found.kept, name})) for name in found.culprits)


planted = st.lists(st.integers(0, 99), min_size=1, max_size=12, unique=True)


@given(planted, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_all_planted_culprits_and_no_others_are_found_within_the_budget(places: list[int], shuffled: random.Random) -> None:
    bad = [f"bad-{i:03}" for i in places]
    batch = [*GOOD, *bad]
    shuffled.shuffle(batch)
    found = run(batch, lambda subset: not subset & set(bad))
    assert set(found.culprits) == set(bad)
    assert found.exact and found.smallest
    assert found.evaluations <= 4 * len(bad) * math.log2(len(batch))


@given(planted, st.integers(0, 1000), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_by_a_rate_over_probes_at_most_two_good_edits_are_quarantined(
    places: list[int], seed: int, shuffled: random.Random
) -> None:
    """Each culprit breaks 60 of 1,000 probes, every tenth good edit one; the gate allows 5%, and the good ones break 1%."""
    bad = [f"bad-{i:03}" for i in places]
    broken = {b: set(range(100 + 60 * k, 160 + 60 * k)) for k, b in enumerate(bad)}
    broken |= {g: {(seed + i) % 1000} for i, g in enumerate(GOOD) if i % 10 == 0}
    batch = [*GOOD, *bad]
    shuffled.shuffle(batch)

    def gate(subset: frozenset[str]) -> bool:
        return len(set().union(*(broken.get(name, set()) for name in subset))) <= 50

    found = run(batch, gate)
    assert set(bad) <= set(found.culprits)
    assert len(set(found.culprits) - set(bad)) <= 2
    assert is_minimal(found, gate)
    assert found.evaluations <= 4 * len(bad) * math.log2(len(batch))


@given(st.integers(0, 99), st.integers(0, 98))
@settings(max_examples=100, deadline=None)
def test_two_edits_that_break_only_together_cost_one_of_them(first: int, second: int) -> None:
    pair = {GOOD[first], [g for g in GOOD if g != GOOD[first]][second]}
    found = run(GOOD, lambda subset: not pair <= subset)
    assert len(found.culprits) == 1
    assert set(found.culprits) < pair
    assert found.exact and found.smallest
    assert found.evaluations <= 4 * math.log2(100)


def test_one_edit_that_breaks_beside_any_of_three_is_quarantined_instead_of_the_three() -> None:
    hub, spokes = "good-000", {"good-040", "good-050", "good-099"}
    found = run(GOOD, lambda subset: hub not in subset or not subset & spokes)
    assert found.culprits == (hub,)
    assert found.exact and found.smallest
    assert found.evaluations <= 4 * 3 * math.log2(100)


def test_what_more_edits_mend_comes_back() -> None:
    """`good-010` fails the gate unless `good-090` stands beside it; `bad` fails it always."""
    batch = [*GOOD, "bad"]

    def gate(subset: frozenset[str]) -> bool:
        return "bad" not in subset and ("good-010" not in subset or "good-090" in subset)

    found = run(batch, gate)
    assert found.culprits == ("bad",)
    assert found.exact


@given(planted, st.integers(0, 60), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_a_small_budget_is_kept_and_leaves_no_guess(places: list[int], budget: int, shuffled: random.Random) -> None:
    bad = {f"bad-{i:03}" for i in places}
    batch = [*GOOD, *sorted(bad)]
    shuffled.shuffle(batch)
    found = run(batch, lambda subset: not subset & bad, budget)
    assert found.evaluations <= budget
    assert set(found.culprits) <= bad
    assert bad <= {*found.culprits, *found.unexplored}
    assert not (found.exact and found.unexplored)


def test_without_a_budget_nothing_is_kept_and_nothing_is_blamed() -> None:
    found = run(GOOD, lambda subset: False, 0)
    assert (found.kept, found.culprits, found.unexplored, found.exact) == ((), (), tuple(GOOD), False)


def test_a_batch_of_one_is_its_own_culprit_without_a_question() -> None:
    found = run(["only"], lambda subset: False)
    assert (found.culprits, found.evaluations, found.exact) == (("only",), 0, True)


def test_where_every_edit_is_bad_none_is_kept() -> None:
    batch = GOOD[:10]
    found = run(batch, lambda subset: False)
    assert set(found.culprits) == set(batch)
    assert found.evaluations <= 4 * 10 * math.log2(10)


@pytest.mark.parametrize("wrong", [[], ["a", "b", "a"]])
def test_a_batch_names_each_edit_once(wrong: list[str]) -> None:
    with pytest.raises(ValueError, match="once"):
        isolate(wrong, lambda subset: True)


def test_the_default_budget_is_four_times_the_culprits_times_the_halvings() -> None:
    assert [default_budget(64, k) for k in (0, 1, 3)] == [24, 24, 72]
