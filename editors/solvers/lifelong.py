"""Running mean and variance of rows that come in batches, merged exactly and small enough to travel in a patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editors.precision import wide

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

#: In normalised rows a feature's deviation is never taken as less than this share of the root mean square over features.
LEAST_DEVIATION = 1e-3


@dataclass(frozen=True)
class LifelongMoments:
    """Count, mean and variance (of the population, without Bessel's correction); fp64.

    Population variance is defined from the first row on; the published code multiplies the unbiased one by the count,
    which grows with every merge and is NaN for a batch of one row.
    """

    count: int
    mean: Float[Tensor, " width"]
    variance: Float[Tensor, " width"]

    @classmethod
    def empty(cls, width: int, device: torch.device | None = None) -> LifelongMoments:
        nothing = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, nothing, nothing)

    def merged(self, rows: Float[Tensor, "rows width"]) -> LifelongMoments:
        """With these rows taken in (Chan, Golub and LeVeque 1979); self stays as it is."""
        if not len(rows):
            return self
        new = wide(rows)
        mean, variance = new.mean(0), new.var(0, unbiased=False)
        count = self.count + len(new)
        share = len(new) / count
        gap = mean - self.mean
        return LifelongMoments(
            count, self.mean + share * gap, (1 - share) * self.variance + share * variance + share * (1 - share) * gap.square()
        )

    def deviation(self, least: float) -> Float[Tensor, " width"]:
        """What to divide by, fp64: the standard deviation, at least this share of the root mean square over features."""
        floor = least * self.variance.mean().sqrt()
        return self.variance.sqrt().clamp_min(max(float(floor), 1e-30))

    def normalised(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """(rows - mean) / deviation, fp64; features that hardly vary are not blown up."""
        return (wide(rows) - self.mean) / self.deviation(LEAST_DEVIATION)
