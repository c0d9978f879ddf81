"""What every metric is computed from: one probe with the predictions of `f_0` and of the edited model.

Also the few ways of turning numbers into a `Score`. A score that cannot be measured has value None, never NaN: JSON
cannot hold NaN, and a gate must see that nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from checks.intervals import Interval, bootstrap_mean, bootstrap_rate, cluster_means, generator_for, wilson
from warehouse.records import Prediction, Probe, Score


@dataclass(frozen=True)
class ProbeOutcome:
    """One probe, asked before and after.

    Attributes:
        probe: the question.
        after: what the edited model answers.
        before: what `f_0` answers; None where the metric has no need of it.
        edit: the edit that the probe belongs to, the unit that is resampled. A probe of a standing set is its own.
    """

    probe: Probe
    after: Prediction
    before: Prediction | None = None
    edit: str = ""

    @property
    def cluster(self) -> str:
        return self.edit or self.probe.request_id or self.probe.probe_id

    @property
    def known_before(self) -> bool:
        """Whether `f_0` answers rightly: locality and drawdown are about what was there to lose."""
        assert self.before is not None, f"probe {self.probe.probe_id} needs the prediction of f_0"
        return self.before.exact


def of_kind(outcomes: Sequence[ProbeOutcome], *kinds: str) -> list[ProbeOutcome]:
    return [outcome for outcome in outcomes if outcome.probe.kind in kinds]


def unmeasured(metric: str, slice_name: str = "", n: int = 0) -> Score:
    """Nothing could be measured: no probes (`n` 0), or `n` of them with a result that is no number."""
    return Score(metric=metric, slice=slice_name, value=None, low=None, high=None, n=n)


def measured(metric: str, slice_name: str, value: float, interval: Interval, n: int) -> Score:
    if not all(math.isfinite(number) for number in (value, *interval)):
        return unmeasured(metric, slice_name, n)
    return Score(metric=metric, slice=slice_name, value=value, low=interval.low, high=interval.high, n=n)


def share_score(metric: str, slice_name: str, hits: Sequence[bool]) -> Score:
    """A proportion over probes, with Wilson's interval."""
    if not hits:
        return unmeasured(metric, slice_name)
    return measured(metric, slice_name, sum(hits) / len(hits), wilson(sum(hits), len(hits)), len(hits))


def rate_by_edit(metric: str, slice_name: str, values: Sequence[float], edits: Sequence[str], seed: int) -> Score:
    """Mean over edits of the mean over the probes of each, resampled by edit; `n` counts edits."""
    if not len(values):
        return unmeasured(metric, slice_name)
    return rate_score(metric, slice_name, cluster_means(values, edits), seed)


def rate_score(metric: str, slice_name: str, per_edit: NDArray[np.float64], seed: int) -> Score:
    """Mean of per-edit rates in [0, 1], resampled by edit."""
    if not len(per_edit):
        return unmeasured(metric, slice_name)
    interval = bootstrap_rate(per_edit, generator_for(seed, f"{metric}/{slice_name}"))
    return measured(metric, slice_name, float(per_edit.mean()), interval, len(per_edit))


def mean_score(metric: str, slice_name: str, values: ArrayLike, seed: int) -> Score:
    """Mean of one number per prompt or edit, unbounded; not measured where one of them is not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers) or not np.isfinite(numbers).all():
        return unmeasured(metric, slice_name, len(numbers))
    interval = bootstrap_mean(numbers, generator_for(seed, f"{metric}/{slice_name}"))
    return measured(metric, slice_name, float(numbers.mean()), interval, len(numbers))
