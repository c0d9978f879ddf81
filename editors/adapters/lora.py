"""LoRA: a low-rank change of chosen projections, trained on the new answers."""

from __future__ import annotations

from typing import final

from peft import LoraConfig
from peft.tuners.lora import LoraModel
from pydantic import Field, PositiveFloat, PositiveInt

from editors.adapters.injection import Site, adapter_weights, factors, injected, target_paths
from editors.base import EditorCard, Prepared
from editors.draws import seeded
from editors.mechanics.descent import DescentConfig, minimise
from editors.mechanics.locality_bank import BankConfig, BankEditor
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from warehouse.records import EditBatch


class LoraEditConfig(DescentConfig, BankConfig):
    """`rank` and `alpha` as in the paper; `gamma` weighs a locality bank."""

    layers: tuple[int, ...] = Field(min_length=1)
    sites: tuple[Site, ...] = Field(default=("mlp_out",), min_length=1)
    rank: PositiveInt = 8
    alpha: PositiveFloat = 32


@final
class Lora(BankEditor[LoraEditConfig]):
    """`W' = W + (alpha / r) B A`, A random and B zero at first, Adam on both until the answers are right.

    Hu et al. 2021, eq. 3, with KnowEdit's masked-prompt loss. The adapter is merged: its factors are the patch.
    """

    card = EditorCard(
        name="lora",
        title="LoRA",
        family="adapters",
        patch_kind="weight",
        paper="arXiv:2106.09685",
        code="huggingface/peft; zjunlp/EasyEdit easyeditor/models/lora",
        needs_preparation=True,
        only_xy=False,
        differs="An adapter changes every token, so a locality bank's divergence is added to the loss (gamma 0 is the "
        "published form). No dropout: over a few dozen steps on one fact it only blurs the stopping rule. Each batch trains "
        "a new adapter on the model as it stands, and is merged and saved as factors.",
    )

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        """See `Editor.edit`; one adapter for the whole batch.

        Raises:
            ValueError: the preparation is not a locality bank.
        """
        config, first = self.config, min(self.config.layers)
        paths = target_paths(model, config.layers, config.sites)
        subjects = [r.subject for r in batch.requests]
        bank = self._reader.bank(model, prepared, first, config, subjects) if config.gamma else None
        with seeded(config.seed):
            settings = LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0)  # pyright: ignore[reportArgumentType]
            with injected(model, paths, LoraModel, settings):
                minimise(
                    model,
                    batch.requests,
                    first,
                    adapter_weights(model, paths),
                    config,
                    penalty=(lambda step: bank.penalty({}, step)) if bank else None,
                )
                updates = {f"{path}.weight": factors(model, path) for path in paths}
        return WeightPatch(updates, self._reader.note(subjects))
