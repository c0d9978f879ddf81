"""MEND: a net turns the low-rank factors of an edit's gradient into those of a better update.

Mitchell et al. 2022, arXiv:2110.11309, section 3. For a projection with inputs u_t and output gradients d_t the update is
W~ = W - step * sum_t d~_t u~_t^T, with [u~_t; d~_t] the net's answer to [u_t; d_t].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from pydantic import NonNegativeFloat

from editors.base import NO_BENCH, Corpus, EditorCard, Prepared, Workbench
from editors.groups import GroupEditor
from editors.mechanics.gradients import Projections
from editors.mechanics.paraphrases import names_of
from editors.model import EditableModel
from editors.nets.episodes import Episode
from editors.nets.hypernetwork import EditorNets
from editors.nets.lessons import Factors, Places, ask, batch_factors, group_factors, low_rank_patch
from editors.nets.net_training import NetConfig, scaled_step, train_nets
from editors.patches.weight import LowRank, WeightPatch
from warehouse.digests import digest_of
from warehouse.records import EditRequest


class MendConfig(NetConfig):
    """Numbers of MEND.

    Attributes:
        projections: both matrices of the feed-forward, as published, or the one back to the residual stream.
        edit_weight: of the loss on the new answers, against the divergence on kept prompts.
    """

    projections: Projections = "mlp"
    edit_weight: NonNegativeFloat = 0.1


@final
class Mend(GroupEditor[MendConfig]):
    """Gradients of the edits in, low-rank updates out, through nets trained on training edits."""

    card = EditorCard(
        name="mend",
        title="MEND",
        family="meta_learning",
        patch_kind="weight",
        paper="arXiv:2110.11309",
        code="eric-mitchell/mend",
        modes=("single", "batch"),
        experimental=("sequential", "sequential-batch"),
        needs_preparation=True,
        trains=True,
        why_not="its net has learnt the gradients of the unedited model, and its updates add up without knowing each other",
        differs=(
            "The step is a positive multiple of the weight's own scale behind a written minus sign (the public code adds, and "
            "lets training find the sign). Moments are each projection's own and are taken before training, on the model that "
            "is edited. An edit's gradient is that of the sum over its labels, and the stop behind an answer is one of them. "
            "Kept prompts are facts; the divergence is taken where their answers are due. A run has a fixed number of updates "
            "with a falling rate in place of an early stop; its rates are larger than the published ones. Training mixes "
            "batch sizes."
        ),
    )

    def preparation_key(self) -> str:
        """All but the bound on an edit's norm."""
        return digest_of(self.config.model_dump(mode="json", exclude={"max_relative_norm"}))

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """Train the nets on the corpus's training edits, on the base model.

        Raises:
            ValueError: fewer than two subjects among the training edits.
        """
        places, weight = self._places(model), self.config.edit_weight

        def gather(nets: EditorNets, batches: Sequence[Sequence[Episode]]) -> dict[str, float]:
            updates = [terms(nets, factors) for factors in batch_factors(model, batches, places)]
            edited, kept = ask(model, batches, places).losses(updates)
            # A draw without kept prompts has no divergence, not an undefined one.
            held = kept.sum() / max(1, len(kept))
            (weight * edited.mean() + held).backward()
            return {"edited": float(edited.detach().mean()), "kept": float(held.detach())}

        scalars = {"step": self.config.edit_rate}
        return train_nets(model, corpus, places, self.config, bench, scalars=scalars, gather=gather, edit=terms)

    def _places(self, model: EditableModel) -> Places:
        return Places.of(model, self.config.layers, self.config.projections, "all")

    def edit_groups(
        self, model: EditableModel, groups: Sequence[Sequence[EditRequest]], prepared: Prepared
    ) -> list[WeightPatch]:
        """See `GroupEditor.edit_groups`."""
        places = self._places(model)
        nets = EditorNets(prepared.tensors, prepared.tensors, places.shapes)
        patches = []
        for group, factors in zip(groups, group_factors(model, groups, places), strict=True):
            with torch.no_grad():
                updates = terms(nets, factors)
            patches.append(low_rank_patch(model, updates, self.config.max_relative_norm, names_of(group)))
        return patches


def terms(nets: EditorNets, factors: Factors) -> dict[str, LowRank]:
    """The update of every projection for one batch of edits: -step sum_t d~_t u~_t^T as factors."""
    out: dict[str, LowRank] = {}
    for path, found in factors.items():
        inputs, gradients = nets(path, found)
        # The minus is written out: d~ stands for a gradient, and a fresh net descends from the first step on.
        out[path] = LowRank(-scaled_step(nets, path, inputs.device) * gradients.t(), inputs.t())
    return out
