"""EWC: fine-tuning that holds each weight by how much the model's predictions depend on it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import final

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from editors.base import NO_BENCH, Corpus, Editor, EditorCard, Prepared, Workbench
from editors.mechanics.descent import (
    Anchor,
    PenalisedConfig,
    Penalty,
    UpperBlocks,
    anchors,
    as_stored,
    descend,
    layer_of,
    site_parameters,
    upper_blocks,
)
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from editors.precision import wide, wide_device
from editors.views import at_base
from warehouse.records import EditBatch


class EwcConfig(PenalisedConfig):
    """Attributes:
    fisher_weight: lambda; the Fisher information has mean 1, so one number serves models of any size.
    num_texts, max_tokens: the Fisher pass reads this many texts, each cut to this many tokens.
    """

    fisher_weight: NonNegativeFloat
    anchor: Anchor = "base"
    num_texts: PositiveInt = 256
    max_tokens: PositiveInt = 64


@final
class Ewc(Editor[EwcConfig]):
    """min NLL(E) + lambda/2 sum_i F_i (theta_i - theta_i^0)^2 over chosen weights (Kirkpatrick et al. 2017, eq. 3)."""

    card = EditorCard(
        name="ewc",
        title="Elastic weight consolidation",
        family="regularization",
        patch_kind="weight",
        paper="arXiv:1612.00796",
        code="Thartvigsen/GRACE grace/editors/ewc.py",
        needs_preparation=True,
        only_xy=False,
        scales=False,
        differs="The true Fisher information, with tokens sampled from the model (public code squares gradients of the data's "
        "labels, often averaged over a batch), of the chosen weights alone, normalised to mean 1. It stays that of the "
        "base: edits are not added to it. Preparation is this one pass; no auxiliary model is trained.",
    )

    def preparation_key(self) -> str:
        """The Fisher information depends on which weights and which texts, not on the optimiser."""
        c = self.config
        return f"{c.layers}:{c.sites}:{c.num_texts}:{c.max_tokens}:{c.seed}"

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """Estimate the diagonal of the Fisher information of the base model.

        Raises:
            ValueError: the texts hold no token, or nothing depends on the weights.
        """
        texts = list(corpus.texts)
        random.Random(self.config.seed).shuffle(texts)
        encoded = model.tokenizer(texts[: self.config.num_texts])["input_ids"] if texts else []
        rows = [list(ids)[: self.config.max_tokens] for ids in encoded if ids]
        names = site_parameters(model, self.config.layers, self.config.sites)
        with at_base(model):
            fisher = fisher_diagonal(model, rows, names, self.config.seed)
        mean = float(torch.cat([f.flatten() for f in fisher.values()]).mean())
        if not mean > 0:
            raise ValueError(f"the Fisher information of {names} has mean {mean}; check the model's weights for NaN")
        tensors = {f"fisher.{name}": (f / mean).float().cpu() for name, f in fisher.items()}
        return Prepared(tensors, {"texts": len(rows), "tokens": sum(map(len, rows)), "mean": mean})

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        """See `Editor.edit`; one loss over the whole batch.

        Raises:
            ValueError: the preparation is of other weights.
        """
        names = site_parameters(model, self.config.layers, self.config.sites)
        missing = [name for name in names if f"fisher.{name}" not in prepared.tensors]
        if missing:
            raise ValueError(f"the preparation lacks {missing}; it holds {sorted(prepared.tensors)}: prepare again")
        fisher = {name: prepared.tensors[f"fisher.{name}"].to(model.device) for name in names}
        # The descent takes the mean over the edits, the objective their sum: else a batch of 100 is held 100 times as hard.
        penalty = quadratic(fisher, anchors(model, names, self.config.anchor), self.config.fisher_weight / len(batch.requests))
        return descend(model, batch.requests, names, self.config, penalty=penalty)


def quadratic(fisher: Mapping[str, Tensor], anchor: Mapping[str, Tensor], weight: float) -> Penalty:
    """weight / 2 * sum_i fisher_i (theta_i - anchor_i)^2."""

    def penalty(parameters: Mapping[str, Tensor], step: int) -> tuple[Tensor]:
        parts = [(fisher[name] * (value - anchor[name]).square()).sum() for name, value in parameters.items()]
        return (weight / 2 * torch.stack(parts).sum(),)

    return penalty


def fisher_diagonal(
    model: EditableModel, rows: Sequence[Sequence[int]], names: Sequence[str], seed: int = 0
) -> dict[str, Tensor]:
    """E_x E_{y ~ p(.|x)} [(d log p(y|x) / d theta)^2] over the prefixes x of token rows, fp64, as stored.

    One backward pass for each row: the next tokens of all its prefixes are sampled independently, and a score has mean
    zero, so the square of their summed gradient has the sum of their squares as its mean. Gradients of different rows
    are squared apart; a batch's mean gradient squared would be something else.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("the corpus holds no token; the Fisher information needs text")
    first = min(layer_of(model.anatomy, name) for name in names)
    weights = {name: model.parameter(name).float().clone().requires_grad_(True) for name in names}
    total = {n: torch.zeros_like(v, dtype=torch.float64, device=wide_device(v.device)) for n, v in weights.items()}
    generator = torch.Generator().manual_seed(seed)
    for row in rows:
        ids = torch.tensor([list(row)])
        upper = upper_blocks(model, ids, torch.ones_like(ids), first)
        for name, gradient in zip(names, score(model, upper, weights, generator), strict=True):
            total[name] += wide(gradient).square()
    tokens = sum(map(len, rows))
    return {name: value / tokens for name, value in total.items()}


def score(
    model: EditableModel, upper: UpperBlocks, weights: Mapping[str, Tensor], generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Gradient, for each of `weights`, of the log-probability of one sampled next token behind every prefix of one row."""
    with torch.enable_grad():
        log_probs = model.head(upper.run(model, as_stored(model, weights))[0]).float().log_softmax(-1)
        # On the CPU whatever the device: one seed, one sample.
        sampled = torch.multinomial(log_probs.detach().exp().cpu(), 1, generator=generator).to(log_probs.device)
        return torch.autograd.grad(log_probs.gather(1, sampled).sum(), list(weights.values()))
