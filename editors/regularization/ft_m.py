"""FT-M: fine-tuning of one feed-forward output matrix with the prompt masked out of the loss."""

from __future__ import annotations

from typing import final

from pydantic import NonNegativeInt, PositiveFloat

from editors.base import Editor, EditorCard, Prepared
from editors.mechanics.descent import DescentConfig, descend
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from warehouse.records import EditBatch


class MaskedFineTuningConfig(DescentConfig):
    """`clamp`: largest change of any entry (L-infinity), None for no bound."""

    layer: NonNegativeInt
    clamp: PositiveFloat | None = None


@final
class MaskedFineTuning(Editor[MaskedFineTuningConfig]):
    """Causal language-modelling loss on the target tokens alone, one output projection, optional clamp.

    Zhang et al. 2024 (KnowEdit), section 3; the clamp is FT-L's (Meng et al. 2022, appendix E; kmeng01/rome
    `baselines/ft/ft_main.py`, where a clamp given as an integer was silently off).
    """

    card = EditorCard(
        name="ft_m",
        title="FT-M",
        family="regularization",
        patch_kind="weight",
        paper="arXiv:2401.01286",
        code="zjunlp/EasyEdit easyeditor/models/ft (objective_optimization: target_new)",
        scales=False,
        differs="The stop behind the target is a label too; each request weighs the same; training can stop by margin.",
    )

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        """See `Editor.edit`; one loss over the whole batch."""
        path, layer = model.anatomy.mlp_out, self.config.layer
        model.anatomy.module(model.hf, path, layer)  # refuses a layer that is not there
        return descend(model, batch.requests, [path.format(layer=layer) + ".weight"], self.config, self.config.clamp)
