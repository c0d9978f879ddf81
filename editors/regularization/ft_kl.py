"""FT+KL: fine-tuning that keeps the base model's predictions on texts about other things."""

from __future__ import annotations

from typing import final

from editors.base import EditorCard, Prepared
from editors.mechanics.descent import PenalisedConfig, descend, layer_of, site_parameters
from editors.mechanics.locality_bank import BankConfig, BankEditor
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from warehouse.records import EditBatch


class FineTuningKlConfig(PenalisedConfig, BankConfig):
    """A descent held back by a locality bank."""


@final
class FineTuningKl(BankEditor[FineTuningKlConfig]):
    """min NLL(E) + gamma E_{x in O} KL(p_base(.|x) || p(.|x)), x every prefix of the bank's texts.

    The locality term of De Cao et al. 2021 (eq. 2) and Mitchell et al. 2022. Texts that name a subject of this batch,
    or of an FT+KL edit on the model, are in scope and left out.
    """

    card = EditorCard(
        name="ft_kl",
        title="FT + KL",
        family="regularization",
        patch_kind="weight",
        paper="arXiv:2104.08164",
        code="zjunlp/EasyEdit (kl_factor of its FT, which the training loop never reads)",
        needs_preparation=True,
        only_xy=False,
        scales=False,
        differs="KL at all positions of the bank's texts, from cached base distributions: the top tokens and the remaining "
        "mass as one class, a lower bound of the full KL. Texts that name an edited subject are left out. Preparation is one "
        "forward pass over the bank; no auxiliary model is trained.",
    )

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        """See `Editor.edit`; one loss over the whole batch.

        Raises:
            ValueError: the preparation is not a locality bank.
        """
        config = self.config
        names = site_parameters(model, config.layers, config.sites)
        subjects = [r.subject for r in batch.requests]
        first = min(layer_of(model.anatomy, name) for name in names)
        bank = self._reader.bank(model, prepared, first, config, subjects)
        patch = descend(model, batch.requests, names, config, penalty=bank.penalty if bank else None)
        return WeightPatch(patch.updates, self._reader.note(subjects))
