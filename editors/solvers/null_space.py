"""The null space of preserved keys, and updates that live in it (AlphaEdit, Fang et al. 2025)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.base import Corpus, Prepared
from editors.errors import EditRefused
from editors.mechanics.behind import Site, spread_site
from editors.mechanics.contexts import Contexts, sample_contexts
from editors.mechanics.second_moment import measure_moments
from editors.mechanics.settings import LocateEditConfig
from editors.model import EditableModel
from editors.patches.weight import LowRank
from editors.precision import wide, wide_device
from editors.views import at_base

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NullSpaces:
    """What a null-space method learns before any edit.

    Attributes:
        contexts: sampled prefixes.
        bases: layer -> (d_mlp, r) orthonormal directions that generic keys hardly use, fp64.
        energies: layer -> mean squared norm of a generic token's key.
        block_norms: layer -> mean norm of the block's output in the base model.
        mlp_norms: the same of the feed-forward's, where values are counted there (`mechanics/behind.py`).
    """

    contexts: Contexts
    bases: Mapping[int, Tensor]
    energies: Mapping[int, float]
    block_norms: Mapping[int, float]
    mlp_norms: Mapping[int, float]

    def site_norms(self, site: Site) -> Mapping[int, float]:
        """Those of the values at `site`."""
        return self.mlp_norms if site == "mlp" else self.block_norms


def prepare_null_spaces(model: EditableModel, corpus: Corpus, layers: tuple[int, ...], config: LocateEditConfig) -> Prepared:
    """Contexts of the base model, and the eigenvectors of each layer's second moment with their eigenvalues, ascending.

    All eigenvectors are kept, so that another threshold does not ask for another preparation.
    """
    with at_base(model):
        contexts = sample_contexts(model, config.contexts, config.seed)
        moments = measure_moments(model, corpus.texts, layers, config.second_moment_tokens, config.seed)
    tensors: dict[str, Tensor] = {}
    for layer, second in moments.second.items():
        values, vectors = torch.linalg.eigh(wide(second))
        tensors[f"eigenvalues.{layer}"] = values.clamp_min(0).cpu()
        tensors[f"eigenvectors.{layer}"] = vectors.float().cpu().contiguous()
    meta = {
        "templates": list(contexts.templates),
        "groups": list(contexts.groups),
        "tokens": moments.tokens,
        "energies": {str(layer): m.trace().item() for layer, m in moments.second.items()},
        "block_norms": {str(layer): v for layer, v in moments.block_norms.items()},
    }
    if spread_site(model) == "mlp":
        meta["mlp_norms"] = {str(layer): v for layer, v in moments.mlp_norms.items()}
    return Prepared(tensors, meta)


def null_dimension(eigenvalues: Tensor, share: float, threshold: float | None) -> int:
    """How many of the ascending eigenvalues span the null space.

    Args:
        share: the most of the trace that they may hold together; free of the scale of the keys.
        threshold: the published rule instead: eigenvalues below this number. None: by share.
    """
    if threshold is not None:
        return int((eigenvalues < threshold).sum())
    return int((eigenvalues.cumsum(0) <= share * eigenvalues.sum()).sum())


def read_null_spaces(
    prepared: Prepared, layers: Sequence[int], device: torch.device, share: float, threshold: float | None
) -> NullSpaces:
    """The preparation as it is used: bases in fp64 on the device.

    Raises:
        ValueError: a layer was not prepared; the configuration changed since.
        EditRefused: generic keys use every direction of a layer, so that nothing may be written.
    """
    missing = [layer for layer in layers if f"eigenvectors.{layer}" not in prepared.tensors]
    if missing:
        raise ValueError(f"the preparation lacks layers {missing}; it holds {sorted(prepared.tensors)}: prepare again")
    bases = {}
    for layer in layers:
        values = prepared.tensors[f"eigenvalues.{layer}"]
        size = null_dimension(values, share, threshold)
        if size == 0:
            raise EditRefused(
                f"layer {layer} has no null space (smallest eigenvalue {float(values[0]):.3g}); raise null_share ({share}) or "
                f"null_threshold ({threshold})"
            )
        log.info("layer %d: %d of %d directions are free", layer, size, len(values))
        bases[layer] = prepared.tensors[f"eigenvectors.{layer}"][:, :size].to(wide_device(device), torch.float64)
    meta = prepared.meta
    return NullSpaces(
        Contexts(tuple(meta["templates"]), tuple(meta["groups"])),
        bases,
        {int(layer): float(v) for layer, v in meta["energies"].items()},
        {int(layer): float(v) for layer, v in meta["block_norms"].items()},
        {int(layer): float(v) for layer, v in meta.get("mlp_norms", {}).items()},
    )


def null_space_update(residuals: Tensor, keys: Tensor, basis: Tensor, ridge: float, earlier: Tensor | None = None) -> LowRank:
    """Delta = R K^T P ((E E^T + K K^T) P + ridge I)^-1 with P = U U^T (AlphaEdit), solved in r dimensions.

    With K~ = U^T K and E~ = U^T E the same update is R K~^T (E~ E~^T + K~ K~^T + ridge I_r)^-1 U^T: symmetric and
    positive definite, hence Cholesky, where the published form takes an LU of a non-symmetric matrix.

    Args:
        residuals: (d_out, edits) wanted minus current values.
        keys: (d_in, edits).
        basis: (d_in, r) orthonormal, fp64.
        earlier: (d_in, others) keys of earlier edits whose values must stay; None: none.

    Raises:
        EditRefused: the update is not finite.
    """
    inside = basis.t() @ wide(keys)
    every = inside
    if earlier is not None and earlier.numel():
        every = torch.cat([basis.t() @ wide(earlier), inside], dim=1)
    if 2 * every.shape[1] <= basis.shape[1]:
        # (ridge I + A A^T)^-1 A = A (ridge I + A^T A)^-1; the last columns of A are K~.
        inner = every.t() @ every
        inner.diagonal().add_(ridge)
        chosen = torch.eye(every.shape[1], dtype=every.dtype, device=every.device)[:, every.shape[1] - inside.shape[1] :]
        solved = every @ torch.cholesky_solve(chosen, torch.linalg.cholesky(inner))
    else:
        matrix = every @ every.t()
        matrix.diagonal().add_(ridge)
        solved = torch.cholesky_solve(inside, torch.linalg.cholesky(matrix))
    update = LowRank(residuals.float(), (basis @ solved).to(residuals.device, torch.float32))
    if not (update.left.isfinite().all() and update.right.isfinite().all()):
        raise EditRefused("the batch's update is not finite; raise l2 or split the batch")
    return update
