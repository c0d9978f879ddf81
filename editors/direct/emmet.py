"""EMMET: ROME's equality constraint for a whole batch, in one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, field_validator
from torch import Tensor

from editors.base import EditorCard, Prepared
from editors.errors import EditRefused
from editors.mechanics.behind import spread_site
from editors.mechanics.locating import LocatingEditor
from editors.mechanics.second_moment import LocatePreparation
from editors.mechanics.settings import LocateEditConfig
from editors.model import EditableModel
from editors.patches.weight import LowRank, WeightPatch
from editors.precision import wide
from editors.solvers.solve import check_norm, key_directions, smallest_form
from editors.targets.keys_values import written_keys
from editors.targets.values import Site, anchored, optimise_values
from warehouse.records import EditRequest


class EmmetConfig(LocateEditConfig):
    """Attributes:
    layer: the layer whose feed-forward output is written.
    value_site: whose base value bounds the solved change: the layer's output as in MEMIT, or the MLP's as in ROME.
    alpha: added to the diagonal of K^T C^-1 K; 0 asks for exact equality and fails on duplicate keys.
    alpha_scale: `relative` takes alpha as a share of the mean diagonal entry, so that it does not see the scale of the
        keys; `published` takes it as it is, with `second_moment_weight` times C in the place of C.
    """

    layer: NonNegativeInt
    value_site: Site = "block"
    alpha: NonNegativeFloat = 1e-6
    alpha_scale: Literal["relative", "published"] = "relative"
    second_moment_weight: PositiveFloat = 1.0

    @field_validator("key_forms", check_fields=False)
    @classmethod
    def _one_key(cls, forms: str) -> str:
        if forms != "averaged":
            raise ValueError(f"emmet asks for equality at one key of each edit; set key_forms to averaged, not {forms}")
        return forms


def equality_update(residuals: Tensor, keys: Tensor, factor: Tensor, alpha: float) -> LowRank:
    """Constrained least squares for a batch: the smallest update, measured by C, with Delta K = R.

    Delta = R (K^T C^-1 K + alpha I)^-1 K^T C^-1 (EMMET); alpha trades equality for conditioning.

    Args:
        residuals: (d_out, edits) wanted minus current values.
        keys: (d_in, edits).
        factor: lower Cholesky factor of C, fp64.

    Raises:
        EditRefused: K^T C^-1 K is singular: two edits share a key.
    """
    k = wide(keys)
    directions = key_directions(k.t(), factor).t()
    inner = k.t() @ directions
    inner = (inner + inner.t()) / 2
    inner.diagonal().add_(alpha)
    cholesky, failed = torch.linalg.cholesky_ex(inner)
    if int(failed) or not inner.isfinite().all():
        raise EditRefused(
            f"the keys of {k.shape[1]} edits are linearly dependent (edit {int(failed)}); raise alpha ({alpha:g})"
        )
    left = torch.cholesky_solve(wide(residuals).t(), cholesky).t()
    return LowRank(left.float(), directions.float())


@final
class Emmet(LocatingEditor[EmmetConfig]):
    """Equality-constrained mass editing: for one request it is R-ROME.

    Delta = (V - W K) (K^T C^-1 K + alpha I)^-1 K^T C^-1, keys and current values averaged over contexts
    (Gupta, Sajnani and Anumanchipalli 2024, A Unified Framework for Model Editing).
    """

    card: ClassVar[EditorCard] = EditorCard(
        name="emmet",
        title="EMMET",
        family="direct",
        patch_kind="weight",
        paper="Gupta et al. 2024, A Unified Framework for Model Editing, arXiv:2403.14236",
        code="scalable-model-editing/unified-model-editing",
        needs_preparation=True,
        only_xy=False,
        differs="alpha may be relative to K^T C^-1 K, as the absolute one depends on the scale of the keys and of C; fp64 "
        "Cholesky; values of a batch are optimised together on cached states; the objective can ask that the answer ends.",
    )

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.config.layer,)

    @torch.no_grad()
    def edit_groups(
        self, model: EditableModel, groups: Sequence[Sequence[EditRequest]], prepared: Prepared
    ) -> list[WeightPatch]:
        """Values and keys of all groups are taken in one batch; see `GroupEditor.edit_groups`."""
        config = self.config
        path, layer = model.anatomy.mlp_out, config.layer
        known = self.known(model, prepared)
        requests = [r for group in groups for r in group]
        # Behind a norm a change of the block's output is none that this layer could write.
        site = config.value_site if spread_site(model) == "block" else "mlp"
        solution = optimise_values(model, requests, known.contexts, layer, site, config)
        changes = solution.deltas
        if config.anchor_norm:
            changes = anchored(solution.targets, known.site_norms(site)[layer], config) - solution.base_values
        written = written_keys(model, requests, known.contexts, layer, config)
        # A change of the block's output is the same change of the MLP's; the wanted value is the bare prompt's plus it.
        residuals = written.bare + changes - written.values
        patches, at = [], 0
        for group in groups:
            part = slice(at, at + len(group))
            own = (written.owner >= at) & (written.owner < at + len(group))
            at += len(group)
            update = self._solve(residuals[written.owner[own]].t(), written.keys[own].t(), known)
            check_norm(update, model.weight(path, layer), config.max_relative_norm, [r.request_id for r in group])
            note = {"editor": "emmet", "requests": [r.request_id for r in group], "solved": list(solution.solved[part])}
            patches.append(WeightPatch({path.format(layer=layer) + ".weight": smallest_form(update)}, note))
        return patches

    def _solve(self, residuals: Tensor, keys: Tensor, known: LocatePreparation) -> LowRank:
        config = self.config
        factor = known.factors[config.layer]
        if config.alpha_scale == "published":
            # (w C)^-1 = C^-1 / w on both sides of the inner matrix: alpha counts w times as much against C alone.
            alpha = config.alpha * config.second_moment_weight
        else:
            # ||L^-1 k||^2 = k^T C^-1 k.
            energies = torch.linalg.solve_triangular(factor, wide(keys), upper=False).square().sum(0)
            alpha = config.alpha * float(energies.mean())
        return equality_update(residuals, keys, factor, alpha)
