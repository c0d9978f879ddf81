"""R-ROME: one rank-one update of one feed-forward layer for each fact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch

from editors.base import EditorCard
from editors.direct.rank_one import RankOneConfig, RankOneEditor, RankOneUpdates
from editors.mechanics.second_moment import LocatePreparation
from editors.model import EditableModel
from editors.precision import wide
from editors.solvers.solve import key_directions, shared_direction
from editors.targets.keys_values import written_keys
from editors.targets.values import anchored, optimise_values
from warehouse.records import EditRequest


class RRomeConfig(RankOneConfig):
    """`average_value`: take the base value over the contexts as well (p-ROME), not at the bare prompt."""

    average_value: bool = False


@final
class RRome(RankOneEditor[RRomeConfig]):
    """Rank-one editing with one averaged key in every place.

    With C = E[k k^T], k the key averaged over contexts and v* the optimised value at the MLP's output:
    Delta = (v* - W k) (C^-1 k)^T / (k^T C^-1 k). Meng et al. 2022, equation 2; Gupta, Baskaran and Anumanchipalli 2024
    showed that ROME's public code (kmeng01/rome, rome/compute_v.py) mixes the averaged key and the bare prompt's,
    which makes the denominator vanish for some facts ("disabling edits").
    """

    card: ClassVar[EditorCard] = EditorCard(
        name="r_rome",
        title="R-ROME",
        family="direct",
        patch_kind="weight",
        paper="Gupta et al. 2024, Rebuilding ROME, arXiv:2403.07175; Meng et al. 2022, arXiv:2202.05262",
        code="scalable-model-editing/rebuilding-rome",
        max_batch=1,
        needs_preparation=True,
        only_xy=False,
        modes=("single", "sequential"),
        why_not="a rank-one update holds one fact; use 'sequential', or memit",
        differs="Values of many edits are optimised in one batch on cached states above the layer; an edit may stop by "
        "margin; the objective can ask that the answer ends. C is factored in fp64 with a relative ridge.",
    )

    def updates(self, model: EditableModel, requests: Sequence[EditRequest], known: LocatePreparation) -> RankOneUpdates:
        """The averaged key, or its forms, in every place; see `RankOneEditor.updates`."""
        config, layer = self.config, self.config.layer
        solution = optimise_values(model, requests, known.contexts, layer, "mlp", config)
        written = written_keys(model, requests, known.contexts, layer, config)
        current = written.values
        base = current if config.average_value else solution.base_values
        targets = anchored(solution.deltas + base, known.mlp_norms[layer], config)
        every = key_directions(written.keys, known.factors[layer])
        own = [(written.of(i), every[(written.owner == i).to(every.device)]) for i in range(len(requests))]
        directions = torch.stack([shared_direction(forms, theirs) for forms, theirs in own])
        keys = torch.stack([wide(forms).mean(0) for forms, _ in own])
        return RankOneUpdates(solution, targets - current, keys, directions)
