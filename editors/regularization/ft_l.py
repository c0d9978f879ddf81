"""FT-L: fine-tuning of one feed-forward output matrix inside a small box around its start."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, final

from pydantic import NonNegativeInt, PositiveFloat

from editors.base import Editor, EditorCard, Prepared
from editors.mechanics.answers import AnswerRows, Labels
from editors.mechanics.descent import DescentConfig, descend
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from warehouse.records import EditBatch


class ConstrainedFineTuningConfig(DescentConfig):
    """Attributes:
    clamp: largest change of any entry (L-infinity).
    loss: `target_tokens` predicts each target token where it stands; `last_prompt_token` is the published code's
        loss, which asks the last prompt token for all of them at once. With two tokens or more its loss cannot
        fall below ln 2, so it runs all its steps and seldom writes a whole answer.
    """

    layer: NonNegativeInt
    clamp: PositiveFloat
    loss: Literal["target_tokens", "last_prompt_token"] = "target_tokens"


@final
class ConstrainedFineTuning(Editor[ConstrainedFineTuningConfig]):
    """Adam on one output projection, every entry kept within `clamp` of its value before the edit.

    Zhu et al. 2020 (the constrained form, L-infinity) as Meng et al. 2022, appendix E, ran it on one layer.
    """

    card = EditorCard(
        name="ft_l",
        title="FT-L, constrained fine-tuning",
        family="regularization",
        patch_kind="weight",
        paper="arXiv:2202.05262",
        code="kmeng01/rome baselines/ft/ft_main.py",
        scales=False,
        differs="The published loss asks one position for every target token, which only one-token targets survive: it is "
        "the named mode loss=last_prompt_token, with no stop token, as published. By default each target token and the "
        "stop behind them is predicted in its place. The clamp cannot be switched off by its type.",
    )

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        """See `Editor.edit`; one loss over the whole batch."""
        path, layer = model.anatomy.mlp_out, self.config.layer
        model.anatomy.module(model.hf, path, layer)  # refuses a layer that is not there
        return descend(
            model,
            batch.requests,
            [path.format(layer=layer) + ".weight"],
            self.config,
            self.config.clamp,
            relabel=all_at_last_prompt_token if self.config.loss == "last_prompt_token" else None,
        )


def all_at_last_prompt_token(rows: AnswerRows, labels: Labels) -> Labels:
    """The published labels: every target token at the last prompt token, no stop."""
    kept = ~labels.is_stop
    row = labels.row[kept]
    return replace(labels, row=row, at=rows.last_prompt[row], token=labels.token[kept], is_stop=labels.is_stop[kept])
