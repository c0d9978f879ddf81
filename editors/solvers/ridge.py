"""Regularised least squares on tokens: S = argmin ||S U - D||^2 + ridge ||S||^2, and its derivatives.

S = D U^T (U U^T + ridge I)^-1 (MALMEN, arXiv:2311.04661, equation 4; `held_keys` adds the keys of earlier edits). Everything
is float64: keys of similar prompts are nearly parallel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editors.precision import wide

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float


def ridge_directions(keys: Float[Tensor, "d_in tokens"], ridge: float) -> Float[Tensor, "d_in tokens"]:
    """(U U^T + ridge I)^-1 U, so that S = D @ directions^T; float64.

    With fewer keys than their width by the dual form, U (U^T U + ridge I)^-1.
    """
    u = wide(keys)
    if u.shape[1] > u.shape[0]:
        return torch.cholesky_solve(u, _factor(u @ u.t(), ridge))
    return torch.cholesky_solve(u.t(), _factor(u.t() @ u, ridge)).t()


def ridge_gradient(
    keys: Float[Tensor, "d_in tokens"],
    ridge: float,
    changes: Float[Tensor, "d_out tokens"],
    towards: Float[Tensor, "d_out tokens"],
) -> float:
    """dL/dridge, where no earlier keys take part.

    With G = dL/dS and M = U U^T + ridge I the derivative is -<G M^-1, S>; as dL/dD = G M^-1 U, and M^-1 U =
    U (U^T U + ridge I)^-1, it is -<dL/dD (U^T U + ridge I)^-1, D>: no matrix of the weight's shape is needed.

    Args:
        changes: D, the wanted changes of the values.
        towards: dL/dD.
    """
    u = wide(keys)
    solved = torch.cholesky_solve(wide(towards).t(), _factor(u.t() @ u, ridge)).t()
    return -float((solved * wide(changes)).sum())


def _factor(gram: Tensor, ridge: float) -> Tensor:
    return torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
