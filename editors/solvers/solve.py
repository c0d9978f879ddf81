"""Closed-form updates of one projection: Delta (d_out, d_in) as factors, in fp64 from a Cholesky factor of C."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from editors.errors import EditRefused
from editors.patches.weight import Dense, LowRank, Update
from editors.precision import way_out, wide

#: R-ROME's guard on the denominator: smallest cosine between a key and C^-1 key.
SMALLEST_COSINE = 1e-3


#: Ridge among the forms of one key, as a share of the mean of their energies; forms may coincide.
FORM_RIDGE = 1e-3


def key_directions(keys: Tensor, factor: Tensor) -> Tensor:
    """C^-1 k for all keys at once: (edits, forms, d_in) from the same and the lower Cholesky factor of C, fp64."""
    flat = wide(keys).reshape(-1, keys.shape[-1])
    return torch.cholesky_solve(flat.t(), factor).t().reshape(keys.shape)


def shared_direction(keys: Tensor, directions: Tensor) -> Tensor:
    """The direction d (d_in,), fp64, of least energy in C that every form of a key answers alike: k^T d = 1.

    d = C^-1 K (K^T C^-1 K)^-1 1; for one key C^-1 k / (k^T C^-1 k).

    Args:
        keys: (forms, d_in).
        directions: (forms, d_in) C^-1 keys, from `key_directions`.
    """
    k = wide(keys)
    gram = k @ directions.t()
    if len(k) > 1:
        gram.diagonal().add_(FORM_RIDGE * gram.diagonal().mean())
    return directions.t() @ torch.linalg.solve(gram, torch.ones(len(k), dtype=k.dtype, device=k.device))


def rank_one(residual: Tensor, key: Tensor, direction: Tensor) -> LowRank:
    """Delta = residual direction^T, where the key has a stable share in the direction.

    With d from `shared_direction` it is the smallest update, measured by C, with (W + Delta) k = W k + residual: ROME,
    equation 2, with one and the same key everywhere (R-ROME). With whatever direction u, and the residual over u^T k, it
    gives W k + residual at that key alone (ROME as published).

    Args:
        residual: (d_out,) wanted minus current value, over the key's energy where the direction is not.
        key: (d_in,) the key of the current value; the mean of its forms.
        direction: (d_in,) fp64.

    Raises:
        EditRefused: key and direction are near orthogonal or opposed, so that the denominator vanishes.
    """
    k = wide(key)
    cosine = (direction @ k / (direction.norm() * k.norm())).item()
    if not cosine >= SMALLEST_COSINE:
        raise EditRefused(f"the key's share of the update's direction is {cosine:.2e} (< {SMALLEST_COSINE}): no stable update")
    return LowRank(residual.float()[:, None], direction.to(residual.device, torch.float32)[:, None])


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
    k = wide(keys)
    others = wide(protected) if protected is not None and protected.numel() else k[:, :0]
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
    update = LowRank(residuals.float(), right.to(residuals.device, torch.float32))
    if not (update.left.isfinite().all() and update.right.isfinite().all()):
        raise EditRefused("the batch's update is not finite; raise second_moment_weight or split the batch")
    return update


def update_norm(update: LowRank) -> float:
    """Frobenius norm of the update, from its factors."""
    left, right = wide(update.left), wide(update.right)
    return float(((left.t() @ left) * (right.t() @ right)).sum().clamp_min(0).sqrt())


def check_norm(update: LowRank, weight: Tensor, largest_share: float, names: Sequence[str]) -> None:
    """Refuse an update that is large against the weight that it changes.

    Raises:
        EditRefused: it is not finite, or its norm is above that share of the weight's.
    """
    share = update_norm(update) / float(wide(weight).norm())
    if not share <= largest_share:
        advice = "raise max_relative_norm if that is wanted, or lower clamp_norm"
        who = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise EditRefused(
            f"the update for {who} has {share:.3f} of the weight's norm (allowed {largest_share}); it would damage the "
            f"model: {way_out(weight.dtype, advice) if math.isnan(share) else advice}"
        )


def smallest_form(update: LowRank) -> Update:
    """Factors where they are smaller than the matrix, else the matrix."""
    (d_out, rank), d_in = update.left.shape, update.right.shape[0]
    return update if rank * (d_out + d_in) <= d_out * d_in else Dense(update.dense())
