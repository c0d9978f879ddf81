"""Intervals against published or hand-computed numbers."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.intervals import (
    bootstrap_mean,
    bootstrap_rate,
    bootstrap_ratio,
    cluster_means,
    cluster_sums,
    generator_for,
    wilson,
)


def test_wilson_gives_the_textbook_interval_for_81_of_263() -> None:
    # Newcombe 1998, table I, method 3: 81/263 gives 0.2553 to 0.3662.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_of_none_in_twenty_still_has_width() -> None:
    # Newcombe 1998: 0/20 gives 0 to 0.1611.
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@given(st.integers(1, 5_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_share_and_stays_in_the_unit_interval(pair: tuple[int, int]) -> None:
    successes, n = pair
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="proportion"):
        wilson(successes, n)


def test_cluster_means_weigh_each_edit_once_however_many_probes_it_has() -> None:
    means = cluster_means([1, 1, 1, 0, 0], ["a", "a", "a", "b", "a"])
    assert means.tolist() == [0.75, 0.0]


def test_cluster_sums_do_not_depend_on_the_order_of_probes() -> None:
    forward = cluster_sums([1, 2, 3], ["b", "a", "b"])
    backward = cluster_sums([3, 2, 1], ["b", "a", "b"])
    assert [part.tolist() for part in forward] == [part.tolist() for part in backward] == [[2, 4], [1, 2]]


def test_cluster_sums_refuse_values_without_a_cluster() -> None:
    with pytest.raises(ValueError, match="2 values but 1 cluster"):
        cluster_sums([1, 2], ["a"])


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval_of_many_values() -> None:
    values = np.random.default_rng(1).normal(10.0, 2.0, 400)
    half = 1.96 * values.std() / np.sqrt(400)
    low, high = bootstrap_mean(values, generator_for(0, "x"), num_resamples=4_000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_resampling_by_edit_is_wider_than_by_probe_when_probes_of_an_edit_agree() -> None:
    edits = np.repeat([0.0, 1.0] * 10, 10)
    by_probe = bootstrap_mean(edits, generator_for(0, "x"))
    by_edit = bootstrap_mean(cluster_means(edits, [str(i // 10) for i in range(200)]), generator_for(0, "x"))
    assert by_edit.high - by_edit.low > 2 * (by_probe.high - by_probe.low)


def test_a_paired_difference_is_tight_where_both_sides_move_together() -> None:
    before = np.random.default_rng(0).random(100)
    after = before + 0.1
    assert bootstrap_mean(after - before, generator_for(0, "x")) == pytest.approx((0.1, 0.1))


def test_three_edits_that_all_hold_are_not_called_certain() -> None:
    assert bootstrap_rate([1.0, 1.0, 1.0], generator_for(0, "x")) == wilson(3, 3)


def test_three_edits_that_are_all_half_right_get_an_interval_around_a_half() -> None:
    low, high = bootstrap_rate([0.5, 0.5, 0.5], generator_for(0, "x"))
    assert low < 0.5 < high


def test_ratio_divides_sums_and_not_means_of_ratios() -> None:
    low, high = bootstrap_ratio([1.0, 30.0], [10.0, 30.0], generator_for(0, "x"))
    # Resamples: (1, 1) -> 0.1, (1, 2) -> 31/40, (2, 2) -> 1.
    assert (low, high) == pytest.approx((0.1, 1.0))


def test_ratio_leaves_out_resamples_without_a_denominator() -> None:
    low, high = bootstrap_ratio([0.0, 1.0], [0.0, 2.0], generator_for(0, "x"))
    assert (low, high) == (0.5, 0.5)


def test_ratio_refuses_a_denominator_that_is_always_zero() -> None:
    with pytest.raises(ValueError, match="denominator of zero"):
        bootstrap_ratio([1.0], [0.0], generator_for(0, "x"))


def test_bootstrap_refuses_to_say_anything_about_nothing() -> None:
    with pytest.raises(ValueError, match="at least one cluster"):
        bootstrap_mean([], generator_for(0, "x"))


def test_the_same_seed_and_metric_give_the_same_interval_and_another_metric_another() -> None:
    values = np.random.default_rng(3).random(50)
    first, again = (bootstrap_mean(values, generator_for(7, "GR")) for _ in range(2))
    assert first == again != bootstrap_mean(values, generator_for(7, "ES"))


def test_bootstrap_pieces_cover_every_resample_when_clusters_are_many() -> None:
    # 9 million indices do not fit one piece, so the resamples come in several.
    low, high = bootstrap_mean(np.r_[np.zeros(4_500), np.ones(4_500)], generator_for(0, "x"))
    assert (low, high) == pytest.approx((0.49, 0.51), abs=0.003)


def test_a_thousand_resamples_of_two_thousand_probes_take_well_under_a_second() -> None:
    start = time.process_time()
    bootstrap_ratio(np.ones(2_000), np.ones(2_000), generator_for(0, "x"))
    assert time.process_time() - start < 1.0
