"""CaliNet: a block of trained slots beside the last feed-forward, calibrated for a batch of facts at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from editors.base import NO_BENCH, Corpus, Editor, EditorCard, EditorConfig, Prepared, Workbench
from editors.errors import EditRefused
from editors.mechanics.answers import Labels, row_leads, row_losses
from editors.mechanics.assessment import Assessment, assess
from editors.mechanics.last_layer import Positions, last_layer_answers, last_site, read_bank
from editors.mechanics.locality_bank import out_of_scope
from editors.mechanics.paraphrases import paraphrases_of, relation_templates
from editors.model import EditableModel
from editors.patches.neurons import ACTIVATIONS, Activation, NeuronPatch, activation_of, count_neurons
from editors.precision import way_out
from warehouse.records import EditBatch, EditRequest

log = logging.getLogger(__name__)


class CaliNetConfig(EditorConfig):
    """Numbers of CaliNet.

    Attributes:
        slots: neurons of one calibration, whatever the number of its facts.
        activation: of the slots; `model`: the feed-forward's own, as published.
        paraphrases: other wordings that a fact is trained on beside its prompt.
        gamma: weight of the divergence from the base, in nats per token of the bank.
        bank_size, bank_per_step: tokens of the unrelated bank, and how many of them a step reads.
        stop_margin, stop_divergence: training is done when every answer token of every wording leads by so many logits and
            the divergence on this step's part of the bank is no more than this, in nats per token.
        calibrate_below: facts whose CKA score is not below this are held to be known already and left out;
            None: every request is trained.
    """

    slots: PositiveInt = 64
    activation: Literal["model", "relu", "gelu", "gelu_tanh", "silu"] = "model"
    paraphrases: NonNegativeInt = 4
    learning_rate: PositiveFloat = 1e-2
    num_steps: PositiveInt = 200
    gamma: NonNegativeFloat = 10.0
    bank_size: PositiveInt = 16_000
    bank_per_step: PositiveInt = 512
    stop_margin: PositiveFloat = 1.0
    stop_divergence: PositiveFloat = 0.01
    calibrate_below: PositiveFloat | None = None


@dataclass(frozen=True)
class _Slots:
    """Parameters in training: keys (slots, d_model), biases (slots,), values (slots, d_model)."""

    keys: Tensor
    biases: Tensor
    values: Tensor

    def added(self, queries: Tensor, act: Activation) -> Tensor:
        """act(h K^T + b) V at some positions (eq. 2)."""
        return act(queries @ self.keys.t() + self.biases) @ self.values


@dataclass(frozen=True)
class _Unrelated:
    """The base's last layer at tokens that no fact of the batch is about, read a part at a time."""

    model: EditableModel
    places: Positions
    size: int
    generator: torch.Generator

    def divergence(self, slots: _Slots, act: Activation) -> Tensor:
        """KL(base || calibrated) in nats, mean over this step's tokens."""
        chosen = torch.randperm(len(self.places.queries), generator=self.generator)[: self.size]
        part = self.places.select(chosen.to(self.places.queries.device))
        with torch.no_grad():
            base = part.logits(self.model).log_softmax(-1)
        now = part.logits(self.model, slots.added(part.queries, act)).log_softmax(-1)
        return (base.exp() * (base - now)).sum(-1).mean()


@final
class CaliNet(Editor[CaliNetConfig]):
    """Dong et al. 2022: FFN'(h) = FFN(h) + act(h K^T) V, the rest frozen, trained on several wordings of each fact.

    CKA tells false knowledge from true (`assessment`); with `calibrate_below` only false facts are calibrated, as in the paper.
    """

    card = EditorCard(
        name="calinet",
        title="CaliNet",
        family="architectural",
        patch_kind="module",
        paper="arXiv:2210.03329",
        code="dqxiu/CaliNet",
        needs_preparation=True,
        trains=True,
        modes=("single", "batch"),
        experimental=("sequential", "sequential-batch"),
        why_not="each calibration trains its slots for its own facts; the survey grants neither sequential mode",
        differs=(
            "Values start at zero, slots have a bias, and a divergence from the base on texts that name no subject of the "
            "batch holds the slots back: the paper has no locality term. Adam until every wording is right by a margin, not "
            "5,000 steps of Adafactor. Wordings come from other subjects' training edits of the same relation; those that the "
            "request itself lists as rephrases are never trained on, since generalization is measured there. A relation "
            "without training edits has its prompt alone. The slots are hooks; `editors/export/plain.py` writes them into "
            "a plain model of wider layers."
        ),
        behind_norm=False,
    )

    def preparation_key(self) -> str:
        """The bank, not the optimiser; wordings come from the corpus alone."""
        return f"{self.config.bank_size}:{self.config.seed}"

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """Collect the wordings of each relation and the base's last layer over a bank of texts.

        Returns:
            `queries` and `hidden` (tokens, d_model), fp32; meta: `templates` by relation, `texts` and their `lengths`.

        Raises:
            ValueError: the corpus holds no token.
        """
        bank = read_bank(model, corpus, self.config.bank_size, self.config.seed, bench)
        meta = {"templates": relation_templates(corpus.edits), "texts": list(bank.texts), "lengths": list(bank.lengths)}
        return Prepared({"queries": bank.places.queries, "hidden": bank.places.hidden}, meta)

    def assessment(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[Assessment]:
        """CKA of the requests' new facts on the model as it stands."""
        return assess(model, requests, self._meta(prepared)["templates"])

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> NeuronPatch:
        """See `Editor.edit`; one block of slots for the whole batch."""
        config, site, meta = self.config, last_site(model), self._meta(prepared)
        name = activation_of(model) if config.activation == "model" else config.activation
        # Refuses a request that cannot be applied, also one that the assessment would leave out.
        last_layer_answers(model, batch.requests)
        chosen = self._false(model, batch.requests, prepared)
        trained = [r.model_copy(update={"prompt": p}) for r in chosen for p in self._wordings(r, prepared)]
        note = {"requests": [r.request_id for r in chosen], "wordings": len(trained)}
        if not trained:
            d_model = model.anatomy.d_model(model.hf)
            none = torch.zeros(0, d_model)
            return NeuronPatch(site, name, count_neurons(model, site, name), none, torch.zeros(0), none, note=note)
        places, labels = last_layer_answers(model, trained)
        unrelated = self._unrelated(model, batch.requests, prepared, meta)
        slots = self._train(model, places, labels, unrelated, ACTIVATIONS[name])
        start = count_neurons(model, site, name)
        return NeuronPatch(site, name, start, slots.keys, slots.biases, slots.values, note=note)

    def _meta(self, prepared: Prepared) -> dict:
        if "templates" not in prepared.meta:
            raise ValueError(f"calinet needs its wordings and bank, not {sorted(prepared.meta)}; prepare it first")
        return dict(prepared.meta)

    def _false(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[EditRequest]:
        """The requests to calibrate."""
        if self.config.calibrate_below is None:
            return list(requests)
        found = self.assessment(model, requests, prepared)
        return [r for r, a in zip(requests, found, strict=True) if a.score < self.config.calibrate_below]

    def _wordings(self, request: EditRequest, prepared: Prepared) -> list[str]:
        return [request.prompt, *paraphrases_of(request, prepared.meta["templates"], self.config.paraphrases)]

    def _unrelated(
        self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared, meta: dict
    ) -> _Unrelated | None:
        """The bank without texts that name a subject of the batch; None where nothing is left or asked for."""
        allowed = out_of_scope(meta["texts"], [r.subject for r in requests])
        if not allowed or not self.config.gamma:
            return None
        kept = torch.tensor([i in allowed for i, length in enumerate(meta["lengths"]) for _ in range(length)])
        device = model.device
        places = Positions(prepared.tensors["queries"][kept].to(device), prepared.tensors["hidden"][kept].to(device))
        generator = torch.Generator().manual_seed(self.config.seed)
        return _Unrelated(model, places, self.config.bank_per_step, generator)

    def _train(
        self, model: EditableModel, places: Positions, labels: Labels, unrelated: _Unrelated | None, act: Activation
    ) -> _Slots:
        """Adam until every wording is right by the margin.

        Raises:
            EditRefused: the loss is not finite.
        """
        config, queries = self.config, places.queries
        generator = torch.Generator().manual_seed(config.seed)
        keys = torch.randn(config.slots, queries.shape[1], generator=generator).to(queries)
        # So that a slot's input has the size of one at a typical query, whatever the layer's norm.
        keys = keys / queries.square().sum(1).mean().sqrt()
        params = [keys, torch.zeros(config.slots, device=keys.device), torch.zeros_like(keys)]
        params = [p.requires_grad_(True) for p in params]
        slots, optimizer = _Slots(*params), torch.optim.Adam(params, lr=config.learning_rate)
        steps, lead, loss = 0, 0.0, torch.zeros(())
        for steps in range(config.num_steps + 1):
            logits = places.logits(model, slots.added(queries, act))
            loss = row_losses(logits, labels).mean()
            lead = float(row_leads(logits.detach(), labels, model.stops).min())
            if not bool(torch.isfinite(loss)):
                advice = way_out(model.hf.dtype, "lower learning_rate")
                raise EditRefused(f"calinet: loss {float(loss.detach())} after {steps} steps; {advice}")
            drift = loss.new_zeros(()) if unrelated is None else unrelated.divergence(slots, act)
            if (lead >= config.stop_margin and float(drift.detach()) <= config.stop_divergence) or steps == config.num_steps:
                break
            optimizer.zero_grad(set_to_none=True)
            (loss + config.gamma * drift).backward()
            optimizer.step()
        log.info("%d wordings, %d steps, loss %.4f, smallest lead %.2f", labels.num_rows, steps, float(loss.detach()), lead)
        return _Slots(*(p.detach() for p in params))
