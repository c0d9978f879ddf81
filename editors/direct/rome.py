"""ROME as its public code does it, mismatched keys included, behind a guard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from pydantic import field_validator

from editors.base import EditorCard
from editors.direct.rank_one import RankOneConfig, RankOneEditor, RankOneUpdates
from editors.mechanics.second_moment import LocatePreparation
from editors.model import EditableModel
from editors.precision import wide
from editors.solvers.solve import key_directions
from editors.targets.keys_values import lookup_states, over_forms
from editors.targets.values import anchored, optimise_values
from warehouse.records import EditRequest


class RomeConfig(RankOneConfig):
    """Attributes:
    compat: as published: the direction comes from the key averaged over contexts, while the current value and the
        denominator come from the bare prompt's key. False: the averaged key everywhere, the paper's equation (R-ROME).
    """

    compat: bool = True

    @field_validator("key_forms", check_fields=False)
    @classmethod
    def _one_key(cls, forms: str) -> str:
        if forms != "averaged":
            raise ValueError(f"rome writes at one key; set key_forms to averaged, not {forms}, or use r_rome")
        return forms


@final
class Rome(RankOneEditor[RomeConfig]):
    """Rank-one model editing: W' k* = v* with the least change on generic keys (Meng et al. 2022, equation 2).

    With u = C^-1 k, k averaged over contexts, and k_0, v_0 = W k_0 at the bare prompt, the public code
    (kmeng01/rome, rome/rome_main.py and rome/compute_v.py) writes Delta = (v* - v_0) u^T / (u^T k_0): right at the bare
    prompt, and without bound where u^T k_0 vanishes ("disabling edits", Gupta et al. 2024). The guard refuses those.
    """

    card: ClassVar[EditorCard] = EditorCard(
        name="rome",
        title="ROME",
        family="direct",
        patch_kind="weight",
        paper="Meng et al. 2022, Locating and Editing Factual Associations in GPT, arXiv:2202.05262",
        code="kmeng01/rome",
        max_batch=1,
        needs_preparation=True,
        only_xy=False,
        modes=("single", "sequential"),
        why_not="a rank-one update holds one fact; use 'sequential', or memit",
        survey="The table grants ROME no mode; it edits single facts, and one after the other until it falls apart. It needs "
        "the subject's place in the prompt, which is more than (x, y).",
        differs="The published mix of averaged and bare keys is kept as `compat`; edits whose denominator vanishes or whose "
        "update is large are refused instead of written. Values of many edits are optimised in one batch; an edit may stop "
        "by margin; the objective can ask that the answer ends.",
    )

    def updates(self, model: EditableModel, requests: Sequence[EditRequest], known: LocatePreparation) -> RankOneUpdates:
        """The published mix of keys, or the averaged one everywhere; see `RankOneEditor.updates`.

        With u = C^-1 k the residual is taken over u^T key, which the guard keeps from vanishing.
        """
        config, layer = self.config, self.config.layer
        solution = optimise_values(model, requests, known.contexts, layer, "mlp", config)
        targets = anchored(solution.targets, known.mlp_norms[layer], config)
        states = lookup_states(model, requests, known.contexts, model.anatomy.mlp_out, layer)
        averaged, average_value = states.averaged(known.contexts.weights(config.key_average))
        averaged, average_value, _ = over_forms(model, requests, layer, averaged, average_value)
        directions = key_directions(averaged, known.factors[layer])
        # The first context is the bare prompt.
        keys, current = (states.inputs[:, 0], states.outputs[:, 0]) if config.compat else (averaged, average_value)
        energies = torch.stack([u @ k for u, k in zip(directions, wide(keys), strict=True)])
        residuals = wide(targets - current) / energies[:, None]
        hint = "; it would disable the model: edit it with r_rome, or set compat to false" if config.compat else ""
        return RankOneUpdates(solution, residuals, keys, directions, {"compat": config.compat}, hint)
