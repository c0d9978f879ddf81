"""FT: unconstrained fine-tuning on the new answers, the baseline that forgets."""

from __future__ import annotations

from typing import Literal, final

from pydantic import Field

from editors.base import Editor, EditorCard, Prepared
from editors.mechanics.descent import DescentConfig, descend, site_parameters
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from warehouse.records import EditBatch


class FineTuningConfig(DescentConfig):
    """`sites` of each layer: the output projection of the feed-forward, all of the feed-forward, or the whole block."""

    layers: tuple[int, ...] = Field(min_length=1)
    sites: Literal["mlp_out", "mlp", "all"] = "all"


@final
class FineTuning(Editor[FineTuningConfig]):
    """Gradient steps on chosen weights with nothing to hold the rest of the model in place.

    Loss: cross-entropy of the target tokens and their stop, prompt masked (FT-M's loss; FT-L's pushes every target
    token at one position and cannot learn answers of two tokens).
    """

    card = EditorCard(
        name="ft",
        title="Fine-tuning, unconstrained",
        family="regularization",
        patch_kind="weight",
        paper="arXiv:2012.00363",
        code="kmeng01/rome baselines/ft",
        scales=False,
        differs="The loss covers all target tokens and the stop behind them; training stops once answers are exact.",
    )

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        """See `Editor.edit`; one loss over the whole batch."""
        return descend(model, batch.requests, site_parameters(model, self.config.layers, self.config.sites), self.config)
