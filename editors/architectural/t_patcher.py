"""T-Patcher: one new neuron in the last feed-forward layer for each token that the model gets wrong."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from editors.base import NO_BENCH, Corpus, Editor, EditorCard, EditorConfig, Prepared, Workbench
from editors.errors import EditRefused
from editors.mechanics.answers import TOKENS_PER_PASS, Labels, row_losses
from editors.mechanics.last_layer import Positions, every, label_leads, last_layer_answers, last_site, read_bank
from editors.mechanics.paraphrases import in_every_form
from editors.model import EditableModel
from editors.patches.neurons import ACTIVATIONS, Activation, NeuronPatch, activation_of, count_neurons, neuron_queries
from editors.precision import way_out
from warehouse.records import EditBatch, EditRequest

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Bool, Float, Int

log = logging.getLogger(__name__)

#: Queries as like as this (cosine) are one prompt, met again: no neuron can be silent at one and speak at the other.
SAME_QUERY = 0.995


class TPatcherConfig(EditorConfig):
    """Numbers of T-Patcher.

    Attributes:
        activation: of the new neurons; `model`: the feed-forward's own, as published.
        activation_weight, memory_weight: a and m of the paper's loss.
        silent, apart: beta and gamma: where a neuron's input should lie on the bank, and how far below its own query's.
        top_k: the memory terms read the so many largest entries of the bank.
        refresh_every: steps between two searches for them.
        value_scale: a value is this times what Adam moves.
        stop_margin: a token is mistaken while it leads its best rival by less, in logits.
        stop_activation: and training goes on while a neuron's activation loss is above this.
    """

    activation: Literal["model", "relu", "gelu", "gelu_tanh", "silu"] = "model"
    learning_rate: PositiveFloat = 1e-2
    num_steps: PositiveInt = 100
    activation_weight: NonNegativeFloat = 1.0
    memory_weight: NonNegativeFloat = 5.0
    silent: float = -3.0
    apart: float = -3.0
    top_k: PositiveInt = 250
    refresh_every: PositiveInt = 5
    value_scale: PositiveFloat = 10.0
    stop_margin: PositiveFloat = 1.0
    stop_activation: PositiveFloat = 0.1
    bank_size: PositiveInt = 20_000


@dataclass(frozen=True)
class Bank:
    """Queries at which new neurons must be silent.

    Attributes:
        queries: (entries, d_model) inputs of the last feed-forward.
        foreign: (neurons, entries) False where an entry is the neuron's own prompt.
    """

    queries: Float[Tensor, "entries d_model"]
    foreign: Bool[Tensor, "neurons entries"]

    @torch.no_grad()
    def hardest(self, keys: Tensor, biases: Tensor, top_k: int) -> Float[Tensor, "neurons top d_model"]:
        """The entries of the largest inputs to each neuron; never its own prompt, while there are others."""
        scores = (keys @ self.queries.t() + biases[:, None]).masked_fill(~self.foreign, float("-inf"))
        return self.queries[scores.topk(min(top_k, int(self.foreign.sum(1).min())), dim=1).indices]


@dataclass(frozen=True)
class _Neurons:
    """Parameters in training, a row for each neuron: values are to be multiplied by `value_scale`."""

    keys: Tensor
    biases: Tensor
    raw_values: Tensor


@dataclass(frozen=True)
class _Task:
    """Labels of some requests, cached below the last feed-forward's addition, and the neurons to train for them.

    Attributes:
        places: the last layer where a label is to be predicted.
        own: (neurons,) the label that each neuron is for.
        acts: (labels, neurons) whether the neuron is there when the label is predicted: in one batch all are, in
            independent edits only those of the same request.
    """

    model: EditableModel
    places: Positions
    labels: Labels
    own: Int[Tensor, " neurons"]
    acts: Bool[Tensor, "labels neurons"]

    @property
    def row(self) -> Tensor:
        """(neurons,) the request that each neuron belongs to."""
        return self.labels.row[self.own]

    @property
    def queries(self) -> Tensor:
        """(neurons, d_model) the query that each neuron is for."""
        return self.places.queries[self.own]

    def logits(self, neurons: _Neurons, act: Activation, value_scale: float) -> Tensor:
        """(labels, vocab) with the neurons in place (eq. 3)."""
        active = act(self.places.queries @ neurons.keys.t() + neurons.biases) * self.acts
        return self.places.logits(self.model, active @ neurons.raw_values * value_scale)


@final
class TPatcher(Editor[TPatcherConfig]):
    """Huang et al. 2023. L = NLL + a L_a + m L_m for neurons `act(q k^T + b) v` beside the last feed-forward (eq. 3 to 9).

    Whatever is below that layer is run once: a step costs one final norm and head at the labels, and the products of the
    new keys with the hardest entries of the bank.
    """

    card = EditorCard(
        name="t_patcher",
        title="T-Patcher",
        family="architectural",
        patch_kind="module",
        paper="arXiv:2301.09785",
        code="ZeroYuHuang/Transformer-Patcher src/models/patch.py",
        needs_preparation=True,
        preserves_architecture=False,
        only_xy=False,
        modes=("single", "batch", "sequential"),
        experimental=("sequential-batch",),
        why_not="neither the paper nor the survey shows batches in sequence; the neurons of both append alike",
        differs=(
            "Neurons stand in one matrix and have no cap of 5 an edit. A token that leads by less than the margin counts as "
            "mistaken, the stop behind the target too. The memory terms also read the activated value, since GELU leaks below "
            "zero, and search the hardest entries of the bank every few steps. The amplifier of a value is fixed. Queries of "
            "earlier edits and of other requests of the batch join the bank."
        ),
        behind_norm=False,
    )

    def preparation_key(self) -> str:
        """The bank, not the optimiser."""
        return f"{self.config.bank_size}:{self.config.seed}"

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """Collect the bank: inputs of the base's last feed-forward at tokens of the texts in a seeded order.

        Returns:
            `queries` (bank_size or fewer, d_model), fp32; meta: `texts` and `tokens` read.

        Raises:
            ValueError: the corpus holds no token.
        """
        bank = read_bank(model, corpus, self.config.bank_size, self.config.seed, bench)
        return Prepared({"queries": bank.places.queries}, {"texts": len(bank.texts), "tokens": len(bank.places.queries)})

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> NeuronPatch:
        """See `Editor.edit`; all requests of the batch together."""
        return self._edit(model, in_every_form(batch.requests), prepared, together=True)[0]

    def edit_each(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[NeuronPatch]:
        """Independent patches, trained side by side: no neuron sees another request's labels."""
        if any(request.also for request in requests):
            return [self._edit(model, in_every_form([request]), prepared, together=True)[0] for request in requests]
        longest = max((len(r.prompt) + len(r.target_new) for r in requests), default=1)
        # Characters stand in for tokens: an upper bound for all but rare scripts.
        size = max(1, TOKENS_PER_PASS // longest)
        chunks = [requests[at : at + size] for at in range(0, len(requests), size)]
        return [patch for chunk in chunks for patch in self._edit(model, chunk, prepared, together=False)]

    def _edit(
        self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared, *, together: bool
    ) -> list[NeuronPatch]:
        if "queries" not in prepared.tensors:
            raise ValueError(f"t_patcher needs its bank of queries, not {sorted(prepared.tensors)}; prepare it first")
        task, site = self._task(model, requests, together), last_site(model)
        known = [q.to(task.queries) for q in (prepared.tensors["queries"], *neuron_queries(model.patches, site))]
        activation = activation_of(model) if self.config.activation == "model" else self.config.activation
        neurons = self._train(task, _bank(task, known, together), requests, ACTIVATIONS[activation], together)
        start = count_neurons(model, site, activation)
        chosen = [torch.arange(len(task.own))] if together else [(task.row == i).nonzero()[:, 0] for i in range(len(requests))]
        return [
            NeuronPatch(
                site,
                activation,
                start,
                neurons.keys[own],
                neurons.biases[own],
                neurons.raw_values[own] * self.config.value_scale,
                queries=task.queries[own],
                note={"requests": [requests[i].request_id for i in task.row[own].tolist()]},
            )
            for own in chosen
        ]

    def _task(self, model: EditableModel, requests: Sequence[EditRequest], together: bool) -> _Task:
        """One pass over the rows, and a neuron for each mistaken token."""
        places, labels = last_layer_answers(model, requests)
        with torch.no_grad():
            leads = label_leads(places.logits(model), labels, model.stops)
        own = (leads < self.config.stop_margin).nonzero()[:, 0]
        everywhere = torch.ones(len(leads), len(own), dtype=torch.bool, device=leads.device)
        return _Task(model, places, labels, own, everywhere if together else labels.row[:, None] == labels.row[own])

    def _train(self, task: _Task, bank: Bank, requests: Sequence[EditRequest], act: Activation, together: bool) -> _Neurons:
        """Adam on all neurons; a request that is done keeps its neurons as they are.

        Raises:
            EditRefused: the loss is not finite.
        """
        config, own, count = self.config, task.queries, len(requests)
        params = [own / own.square().sum(1, keepdim=True), torch.zeros(len(own), device=own.device), torch.zeros_like(own)]
        kept = _Neurons(*(p.clone() for p in params))
        if not len(own):
            return kept
        params = [p.requires_grad_(True) for p in params]
        neurons, optimizer = _Neurons(*params), torch.optim.Adam(params, lr=config.learning_rate)
        # Each request weighs alike, however many tokens it had wrong.
        share = torch.bincount(task.row, minlength=count)[task.row]
        done = torch.zeros(count, dtype=torch.bool, device=own.device)
        hardest, steps = own, 0
        for steps in range(config.num_steps + 1):
            if steps % config.refresh_every == 0:
                hardest = bank.hardest(neurons.keys, neurons.biases, config.top_k)
            logits = task.logits(neurons, act, config.value_scale)
            speaks = activation_loss(neurons.keys, neurons.biases, own)
            silence = memory_loss(neurons.keys, neurons.biases, own, hardest, act, config)
            losses = row_losses(logits, task.labels)
            held = (config.activation_weight * speaks + config.memory_weight * silence) / share
            loss = losses.sum() + held.sum()
            if not bool(torch.isfinite(loss)):
                bad = task.row[~torch.isfinite(held)].tolist() or (~torch.isfinite(losses)).nonzero()[:, 0].tolist()
                named = ", ".join(sorted({requests[i].request_id for i in bad}))
                advice = way_out(task.model.hf.dtype, "lower learning_rate")
                raise EditRefused(f"t_patcher: loss {float(loss.detach())} after {steps} steps ({named}); {advice}")
            right = every(label_leads(logits, task.labels, task.model.stops) >= config.stop_margin, task.labels.row, count)
            right &= every(speaks.detach() < config.stop_activation, task.row, count)
            if together:
                right = right.all().expand(count)
            last = steps == config.num_steps
            fresh = (~done if last else right & ~done)[task.row]
            for value, param in zip((kept.keys, kept.biases, kept.raw_values), params, strict=True):
                value[fresh] = param.detach()[fresh]
            done = done | right
            if last or bool(done.all()):
                break
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        log.info("%d requests, %d neurons, %d steps, %d done", count, len(own), steps, int(done.sum()))
        return kept


def activation_loss(keys: Tensor, biases: Tensor, own: Tensor) -> Float[Tensor, " neurons"]:
    """L_a of each neuron (eq. 6): exp(-(q_e k + b)) is large while the neuron does not speak at its own query."""
    return torch.exp(-((own * keys).sum(1) + biases))


def memory_loss(
    keys: Float[Tensor, "neurons d_model"],
    biases: Float[Tensor, " neurons"],
    own: Float[Tensor, "neurons d_model"],
    hardest: Float[Tensor, "neurons top d_model"],
    act: Activation,
    config: TPatcherConfig,
) -> Float[Tensor, " neurons"]:
    """L_m of each neuron (eq. 7 to 9): silent on the bank, and far below its own query there.

    S(v) is the mean of exp over the largest entries. Beside S(M k + b - beta) and S((M - q_e) k - gamma) (b cancels in the
    public code's difference), ours has the mean size of the activated value.
    """
    if not hardest.shape[1]:
        return torch.zeros_like(biases)
    there = torch.einsum("ntd,nd->nt", hardest, keys) + biases[:, None]
    here = (own * keys).sum(1) + biases
    silent = torch.exp(there - config.silent).mean(1)
    apart = torch.exp(there - here[:, None] - config.apart).mean(1)
    return silent + apart + act(there).abs().mean(1)


def _bank(task: _Task, known: Sequence[Tensor], together: bool) -> Bank:
    """The prepared queries, those of earlier edits, and in a batch the other requests' labels."""
    labels = task.places.queries
    queries = torch.cat([*known, labels] if together else list(known))
    unit = torch.nn.functional.normalize
    foreign = unit(task.queries, dim=1) @ unit(queries, dim=1).t() < SAME_QUERY
    if together:
        # Of the own request the likelihood itself decides.
        foreign[:, -len(labels) :] &= task.row[:, None] != task.labels.row
    return Bank(queries, foreign)
