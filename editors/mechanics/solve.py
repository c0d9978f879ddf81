"""Closed-form updates of one projection: Delta (d_out, d_in) as factors, in fp64 from a Cholesky factor of C."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editors.errors import EditRefused
from editors.patches.weight import Dense, LowRank, Update

#: R-ROME's guard on the denominator: smallest cosine between a key and C^-1 key.
SMALLEST_COSINE = 1e-3


#: Ridge among the forms of one key, as a share of the mean of their energies; forms may coincide.
FORM_RIDGE = 1e-3


def key_directions(keys: Tensor, factor: Tensor) -> Tensor:
    """C^-1 k for all keys at once: (edits, forms, d_in) from the same and the lower Cholesky factor of C, fp64."""
    flat = keys.double().reshape(-1, keys.shape[-1])
    return torch.cholesky_solve(flat.t(), factor).t().reshape(keys.shape)


def rank_one(residual: Tensor, keys: Tensor, directions: Tensor) -> LowRank:
    """Constrained least squares: the smallest update, measured by C, with (W + Delta) key = W key + residual.

    For one key Delta = residual (C^-1 k)^T / (k^T C^-1 k): ROME, equation 2, with one and the same key everywhere
    (R-ROME). For several forms K of it Delta = residual (C^-1 K (K^T C^-1 K)^-1 1)^T, which is rank one as well.

    Args:
        residual: (d_out,) wanted minus current value.
        keys: (forms, d_in).
        directions: (forms, d_in) C^-1 keys, from `key_directions`.

    Raises:
        EditRefused: the keys and the solution are near orthogonal, so that the denominator vanishes.
    """
    k = keys.double()
    gram = k @ directions.t()
    if len(k) > 1:
        gram.diagonal().add_(FORM_RIDGE * gram.diagonal().mean())
    solution = directions.t() @ torch.linalg.solve(gram, torch.ones(len(k), dtype=k.dtype, device=k.device))
    mean = k.mean(0)
    cosine = (solution @ mean / (solution.norm() * mean.norm())).item()
    if not cosine >= SMALLEST_COSINE:
        raise EditRefused(f"the key's share of its own direction is {cosine:.2e} (< {SMALLEST_COSINE}): no stable update")
    return LowRank(residual.float()[:, None], solution[:, None].float())


def ridge_update(residuals: Tensor, keys: Tensor, factor: Tensor, weight: float, protected: Tensor | None = None) -> LowRank:
    """Regularised least squares over a batch: Delta = R K^T (weight C + P P^T + K K^T)^-1 (MEMIT, equation 14).

    With few keys by Woodbury's identity on the factor of C; past half the width by one direct factorisation.

    Args:
        residuals: (d_out, edits) wanted minus current values.
        keys: (d_in, edits).
        factor: lower Cholesky factor of C.
        weight: lambda.
        protected: (d_in, others) keys of earlier edits whose values must stay; None: none.

    Raises:
        EditRefused: the update is not finite.
    """
    k = keys.double()
    others = protected.double() if protected is not None and protected.numel() else k[:, :0]
    every = torch.cat([others, k], dim=1)
    if 2 * every.shape[1] <= k.shape[0]:
        x = torch.cholesky_solve(every, factor) / weight
        inner = every.t() @ x
        inner.diagonal().add_(1.0)
        # (weight C + A A^T)^-1 A = X (I + A^T X)^-1; the last columns of A are K. `inner` is symmetric.
        chosen = torch.eye(every.shape[1], dtype=k.dtype, device=k.device)[:, others.shape[1] :]
        right = x @ torch.cholesky_solve(chosen, torch.linalg.cholesky(inner))
    else:
        matrix = weight * (factor @ factor.t()) + every @ every.t()
        right = torch.cholesky_solve(k, torch.linalg.cholesky(matrix))
    update = LowRank(residuals.float(), right.float())
    if not (update.left.isfinite().all() and update.right.isfinite().all()):
        raise EditRefused("the batch's update is not finite; raise second_moment_weight or split the batch")
    return update


def update_norm(update: LowRank) -> float:
    """Frobenius norm of the update, from its factors."""
    left, right = update.left.double(), update.right.double()
    return float(((left.t() @ left) * (right.t() @ right)).sum().clamp_min(0).sqrt())


def check_norm(update: LowRank, weight: Tensor, largest_share: float, names: Sequence[str]) -> None:
    """Refuse an update that is large against the weight that it changes.

    Raises:
        EditRefused: it is not finite, or its norm is above that share of the weight's.
    """
    share = update_norm(update) / float(weight.double().norm())
    if not share <= largest_share:
        who = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise EditRefused(
            f"the update for {who} has {share:.3f} of the weight's norm (allowed {largest_share}); it would damage the "
            "model: raise max_relative_norm if that is wanted, or lower clamp_norm"
        )


def smallest_form(update: LowRank) -> Update:
    """Factors where they are smaller than the matrix, else the matrix."""
    (d_out, rank), d_in = update.left.shape, update.right.shape[0]
    return update if rank * (d_out + d_in) <= d_out * d_in else Dense(update.dense())
