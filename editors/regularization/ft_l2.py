"""FT+L2: fine-tuning with a pull back to the weights it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from editors.base import Editor, EditorCard, Prepared
from editors.mechanics.descent import Anchor, PenalisedConfig, Penalty, anchors, descend, site_parameters
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from warehouse.records import EditBatch


class FineTuningL2Config(PenalisedConfig):
    """Attributes:
    beta: weight of the squared distance.
    anchor: `base` measures it from the base model, so that a long sequence cannot drift far; `last` from the
        weights before this edit, so that earlier edits are not pulled back.
    """

    beta: NonNegativeFloat
    anchor: Anchor = "base"


@final
class FineTuningL2(Editor[FineTuningL2Config]):
    """min NLL(E) + beta ||theta_S - theta_S^0||^2 over chosen weights S (Zhu et al. 2020, the soft form of eq. 2).

    Not weight decay, which pulls to zero: the pull is to the anchor.
    """

    card = EditorCard(
        name="ft_l2",
        title="FT + L2",
        family="regularization",
        patch_kind="weight",
        paper="arXiv:2012.00363",
        only_xy=False,
        scales=False,
        differs="Soft penalty on chosen weights instead of a projection (the paper's norm ball); the anchor may be the "
        "base or the last accepted weights; the loss covers all target tokens and the stop behind them.",
    )

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        """See `Editor.edit`; one loss over the whole batch."""
        names = site_parameters(model, self.config.layers, self.config.sites)
        # The descent takes the mean over the edits, the objective their sum: else a batch of 100 is held 100 times as hard.
        penalty = squared_distance(anchors(model, names, self.config.anchor), self.config.beta / len(batch.requests))
        return descend(model, batch.requests, names, self.config, penalty=penalty)


def squared_distance(anchor: Mapping[str, Tensor], beta: float) -> Penalty:
    """beta * sum_i (theta_i - anchor_i)^2."""

    def penalty(parameters: Mapping[str, Tensor], step: int) -> tuple[Tensor]:
        return (beta * torch.stack([(value - anchor[name]).square().sum() for name, value in parameters.items()]).sum(),)

    return penalty
