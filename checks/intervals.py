"""95% intervals: Wilson for a proportion, a bootstrap resampled by edit for means, differences and ratios.

Probes of one edit stand and fall together, so the edit (the *cluster*) is what gets resampled, not the probe. Both
sides of a difference or ratio are read from the same resample, which makes it paired.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
NUM_RESAMPLES = 1_000
#: Indices held at once by the bootstrap: 4 million int64 are 32 MB, whatever the number of clusters.
_MAX_INDICES = 4_000_000


class Interval(NamedTuple):
    low: float
    high: float


def generator_for(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for each metric, so that adding one metric moves no other metric's interval."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927): inside [0, 1], and of some width even at 0 and 1.

    Raises:
        ValueError: `n` is not positive, or `successes` is outside 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n > 0; got {successes} of {n}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the formula gives 0 and 1 only up to rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(low, high)


def cluster_sums(values: ArrayLike, clusters: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and count of `values` in each cluster, clusters in sorted order so that probe order changes nothing."""
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) != len(clusters):
        raise ValueError(f"{len(numbers)} values but {len(clusters)} cluster names")
    names, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sums = np.bincount(member, numbers, len(names)).astype(np.float64)
    return sums, np.bincount(member, minlength=len(names)).astype(np.float64)


def cluster_means(values: ArrayLike, clusters: Sequence[str]) -> NDArray[np.float64]:
    """Mean of `values` in each cluster: every edit weighs the same, however many probes it has."""
    sums, counts = cluster_sums(values, clusters)
    return sums / counts


def bootstrap_mean(
    values: ArrayLike,
    rng: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Percentile interval of the mean of per-cluster `values` (clusters,); paired differences are such values too.

    Raises:
        ValueError: there is no value.
    """
    numbers = np.asarray(values, dtype=np.float64)
    means = [numbers[index].mean(axis=1) for index in _resamples(len(numbers), num_resamples, rng)]
    return _percentile(np.concatenate(means), confidence)


def bootstrap_rate(
    values: ArrayLike,
    rng: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """`bootstrap_mean` for per-edit rates in [0, 1].

    Where all edits share one value every resample is the same and the bootstrap would claim certainty after three
    edits. Wilson's interval over the edits stands in there: it is exact about how little few edits can tell.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) and np.ptp(numbers) == 0.0:
        share, n = float(numbers[0]), len(numbers)
        return Interval(wilson(math.floor(share * n), n, confidence).low, wilson(math.ceil(share * n), n, confidence).high)
    return bootstrap_mean(numbers, rng, num_resamples, confidence)


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    rng: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Percentile interval of `sum(numerators) / sum(denominators)`, both (clusters,), resampled together.

    Resamples whose denominator is zero have no ratio and are left out.

    Raises:
        ValueError: there is no cluster, the shapes differ, or no resample has a denominator.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if top.shape != bottom.shape:
        raise ValueError(f"numerators {top.shape} and denominators {bottom.shape} differ in shape")
    ratios = []
    for index in _resamples(len(top), num_resamples, rng):
        above, below = top[index].sum(axis=1), bottom[index].sum(axis=1)
        ratios.append(above[below != 0] / below[below != 0])
    found = np.concatenate(ratios)
    if not len(found):
        raise ValueError("every resample has a denominator of zero: the ratio is not defined")
    return _percentile(found, confidence)


def _resamples(size: int, num_resamples: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    if size == 0:
        raise ValueError("a bootstrap needs at least one cluster")
    rows = max(1, min(num_resamples, _MAX_INDICES // size))
    for start in range(0, num_resamples, rows):
        yield rng.integers(0, size, (min(rows, num_resamples - start), size))


def _percentile(found: NDArray[np.float64], confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Interval(float(low), float(high))
