"""Recursive least squares over keys that come block by block: nothing is factored anew for a key that is held already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editors.exact import aligned
from editors.precision import wide

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float


class HeldKeys:
    """V = (P P^T + ridge I)^-1 of all keys P held so far, in float64.

    By Woodbury's identity a block K makes V - W (I + K^T W)^-1 W^T of it, with W = V K. That is V - Q Q^T: V is kept as
    I / ridge and one column of Q a key, and as the matrix itself once the columns outnumber its width. t new keys beside n
    old ones of width d cost O(d t min(n, d)), against the O(d min(n, d)^2) of a new system. On one machine a function of the
    blocks and their order, bit for bit, wherever they lie: one that is rebuilt equals one that grew.
    """

    def __init__(self, width: int, ridge: float, device: torch.device | None = None) -> None:
        self._ridge, self._number = ridge, 0
        self._columns = wide(torch.empty(0, width, device=device))
        self._dense: Tensor | None = None

    def hold(self, keys: Float[Tensor, "d_in tokens"]) -> None:
        """Take up a block of keys; their order within it and among the blocks is part of the result's last bits."""
        moved, factor = self._step(aligned(wide(keys)), None)
        columns = torch.linalg.solve_triangular(factor, moved.t(), upper=False)
        if self._dense is not None:
            self._dense.addmm_(columns.t(), columns, alpha=-1.0)
            return
        end = self._number + len(columns)
        if end > len(self._columns):
            # By doubling, so that a long sequence copies each column a few times at most.
            self._columns = torch.cat([self._columns, self._columns.new_empty(end, self._columns.shape[1])])
        self._columns[self._number : end] = columns
        self._number = end
        if end > self._columns.shape[1]:
            found = self._columns[:end]
            self._dense = torch.diag(found.new_full((found.shape[1],), 1 / self._ridge)).addmm_(found.t(), found, alpha=-1.0)
            self._columns = found[:0].clone()

    def directions(
        self, keys: Float[Tensor, "d_in tokens"], released: Float[Tensor, "d_in others"] | None = None
    ) -> Float[Tensor, "d_in tokens"]:
        """(P P^T - R R^T + U U^T + ridge I)^-1 U of keys U that are not held, float64; holds nothing more than before.

        Args:
            keys: U. Their number squared is the memory that this takes.
            released: R, held keys that count no more. Taking them out loses digits as the energy of a key outgrows ridge.
        """
        moved, factor = self._step(wide(keys), released)
        return torch.cholesky_solve(moved.t(), factor).t()

    def _step(self, u: Tensor, released: Tensor | None) -> tuple[Tensor, Tensor]:
        """V U, and the Cholesky factor of I + U^T V U."""
        moved = self._times(u)
        if released is not None:
            gone = wide(released)
            back = self._times(gone)
            gap = torch.linalg.cholesky(_identity(back) - gone.t() @ back)
            moved = moved + back @ torch.cholesky_solve(back.t() @ u, gap)
        return moved, torch.linalg.cholesky(_identity(u) + u.t() @ moved)

    def _times(self, keys: Tensor) -> Tensor:
        if self._dense is not None:
            return self._dense @ keys
        found = self._columns[: self._number]
        return keys / self._ridge - found.t() @ (found @ keys)


def _identity(keys: Tensor) -> Tensor:
    return torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
