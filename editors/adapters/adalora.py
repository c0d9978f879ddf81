"""AdaLoRA: a low-rank change in singular-value form, whose rank goes where it matters most."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraModel
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from editors.adapters.injection import ADAPTER, Site, adapter_weights, factors, injected, target_paths
from editors.base import EditorCard, Prepared
from editors.draws import seeded
from editors.mechanics.descent import DescentConfig, minimise
from editors.mechanics.locality_bank import BankConfig, BankEditor
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from warehouse.records import EditBatch


class AdaLoraEditConfig(DescentConfig, BankConfig):
    """Settings of AdaLoRA.

    Attributes:
        initial_rank, target_rank: of each projection at the start, and on average at the end.
        warm_steps, final_steps: steps before the budget shrinks, and after it has shrunk.
        orthogonality: weight of `||P^T P - I||_F + ||Q Q^T - I||_F`, averaged over the factors (as in peft).
    """

    layers: tuple[int, ...] = Field(min_length=1)
    sites: tuple[Site, ...] = Field(default=("mlp_out",), min_length=1)
    initial_rank: PositiveInt = 12
    target_rank: PositiveInt = 8
    alpha: PositiveInt = 32
    warm_steps: NonNegativeInt = 5
    final_steps: PositiveInt = 10
    orthogonality: NonNegativeFloat = 0.1

    @model_validator(mode="after")
    def _steps_fit(self) -> AdaLoraEditConfig:
        if self.warm_steps + self.final_steps >= self.num_steps:
            raise ValueError(
                f"warm_steps {self.warm_steps} + final_steps {self.final_steps} leave no step of {self.num_steps} to prune in"
            )
        if self.stop_loss or self.stop_margin is not None:
            raise ValueError("AdaLoRA's budget is a schedule over all num_steps; set stop_loss 0 and no stop_margin")
        return self


@final
class AdaLora(BankEditor[AdaLoraEditConfig]):
    """`Delta W = P diag(Lambda) Q`; singular triplets of little importance are pruned on the way to a global budget.

    Zhang et al. 2023, eqs. 3 to 12, by peft's allocator, with KnowEdit's masked-prompt loss.
    """

    card = EditorCard(
        name="adalora",
        title="AdaLoRA",
        family="adapters",
        patch_kind="weight",
        paper="arXiv:2303.10512",
        code="huggingface/peft; zjunlp/EasyEdit easyeditor/models/lora",
        needs_preparation=True,
        only_xy=False,
        differs="The public editing code never calls the allocator, so nothing is pruned there; ours does, after every step, "
        "over exactly num_steps. A locality bank's divergence is added to the loss (gamma 0 is the published form). No "
        "dropout. Each batch trains a new adapter on the model as it stands, and is merged and saved as factors.",
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
        with seeded(config.seed), injected(model, paths, AdaLoraModel, self._settings()) as tuner:
            leaves = [model.hf.get_submodule(path) for path in paths]

            def penalty(step: int) -> Iterator[Tensor]:
                parts = bank.penalty({}, step) if bank else iter(())
                yield config.orthogonality * orthogonality(leaves) + next(parts, 0.0)
                yield from parts

            minimise(
                model,
                batch.requests,
                first,
                adapter_weights(model, paths),
                config,
                penalty=penalty,
                after_step=tuner.update_and_allocate,
            )
            updates = {f"{path}.weight": factors(model, path) for path in paths}
        # A projection whose triplets were all pruned keeps its weight.
        return WeightPatch({name: u for name, u in updates.items() if u.left.shape[1]}, self._reader.note(subjects))

    def _settings(self) -> AdaLoraConfig:
        c = self.config
        return AdaLoraConfig(
            init_r=c.initial_rank,
            target_r=c.target_rank,
            lora_alpha=c.alpha,
            lora_dropout=0.0,
            tinit=c.warm_steps,
            tfinal=c.final_steps,
            deltaT=1,
            total_step=c.num_steps,
            orth_reg_weight=c.orthogonality,
        )


def orthogonality(layers: list[Any]) -> Tensor:
    """Mean Frobenius distance of the factors' Gram matrices from the identity; zero where P and Q are orthonormal."""
    grams = [
        g
        for layer in layers
        for g in (layer.lora_A[ADAPTER] @ layer.lora_A[ADAPTER].t(), layer.lora_B[ADAPTER].t() @ layer.lora_B[ADAPTER])
    ]
    return torch.stack([torch.linalg.matrix_norm(g - torch.eye(len(g), device=g.device)) for g in grams]).mean()
