"""Regularised least squares over keys that come in portions: the factor of the small system is bordered, not made again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editors.patches.weight import LowRank
from editors.precision import wide


class GrowingSolve:
    """R K^T (weight C + K K^T)^-1 for a growing K, by Woodbury's identity: X (I + K^T X)^-1 with X = (weight C)^-1 K.

    Recursive least squares in its dual form. A new portion of m keys beside n old ones costs one solve with the factor of
    C for the new ones and O((n + m)^2 m) for the border, against a whole system of the width of the layer.
    """

    def __init__(self, factor: Tensor, weight: float) -> None:
        self._factor, self._weight = factor, weight
        self._names: list[str] = []
        width = len(factor)
        self._keys = factor.new_empty(width, 0)
        self._basis = factor.new_empty(width, 0)
        self._lower = factor.new_empty(0, 0)
        #: How many keys the last call added, and whether it had to begin anew.
        self.added, self.renewed = 0, False

    def update(self, residuals: Tensor, keys: Tensor, names: Sequence[str]) -> LowRank:
        """The update for exactly these keys.

        Args:
            residuals: (d_out, keys) wanted minus current values.
            keys: (d_in, keys).
            names: of the keys, each once; an equal name means an equal key. Where a known name is missing now, the
                system begins anew: taking keys out by downdates loses digits.
        """
        known = set(self._names)
        self.renewed = not known <= set(names)
        if self.renewed:
            self.__init__(self._factor, self._weight)
            known, self.renewed = set(), True
        fresh = [i for i, name in enumerate(names) if name not in known]
        self.added = len(fresh)
        self._append(wide(keys[:, fresh]), [names[i] for i in fresh])
        place = {name: i for i, name in enumerate(self._names)}
        order = [place[name] for name in names]
        inverse = torch.cholesky_inverse(self._lower) if order else self._lower
        return LowRank(residuals.float(), (self._basis @ inverse)[:, order].to(residuals.device, torch.float32))

    def _append(self, keys: Tensor, names: Sequence[str]) -> None:
        if not len(names):
            return
        basis = torch.cholesky_solve(keys, self._factor) / self._weight
        old = len(self._names)
        side = torch.linalg.solve_triangular(self._lower, self._keys.t() @ basis, upper=False).t()
        corner = keys.t() @ basis
        corner.diagonal().add_(1.0)
        lower = self._lower.new_zeros(old + len(names), old + len(names))
        lower[:old, :old] = self._lower
        lower[old:, :old] = side
        lower[old:, old:] = torch.linalg.cholesky(corner - side @ side.t())
        self._lower = lower
        self._keys, self._basis = torch.cat([self._keys, keys], dim=1), torch.cat([self._basis, basis], dim=1)
        self._names += names
