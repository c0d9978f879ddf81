"""ENN: the base model itself is trained a little, so that a few plain gradient steps edit it well."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from editors.asking.tokens import pad_right
from editors.base import NO_BENCH, Corpus, Editor, EditorCard, EditorConfig, Prepared, TrainingEdit, Workbench
from editors.errors import EditRefused
from editors.mechanics.answers import check_request, row_leads, row_losses
from editors.mechanics.descent import Sites, as_stored, layer_of, site_parameters, upper_blocks
from editors.mechanics.paraphrases import in_every_form
from editors.model import EditableModel
from editors.nets.episodes import (
    EpisodeRows,
    Pair,
    Parameters,
    divergences,
    draw_episode,
    episode_loss,
    hold_out,
    oriented,
    read,
    success_on,
)
from editors.nets.outer import Outer, train
from editors.patches.weight import Dense, LowRank, Update, WeightPatch
from editors.precision import way_out
from editors.views import at_base
from warehouse.records import EditBatch

log = logging.getLogger(__name__)

#: Key of a patch's note that names the preparation whose trained weights it stands on.
NOTE = "enn_trained"
#: Training edits that the gradient's usual size is measured on.
SIZED_ON = 32


class EnnConfig(EditorConfig):
    """Numbers of ENN.

    Attributes:
        layers, sites: whose matrices are trained beforehand and changed by an edit.
        num_steps: most inner steps of an edit; it stops once every answer is exact and leads by `stop_margin` logits.
        training_steps: the same bound in training.
        first_order: leave out the second derivatives.
        initial_step: the first rates move a matrix by this share of its norm, for a gradient of the usual size.
        updates, episodes: steps of the outer Adam, and training edits in each.
        learning_rate: of the trained weights; `rate_learning_rate`: of the logarithms of the inner rates.
        edit_weight, locality_weight, base_weight: c_edit, c_loc and c_base of the loss.
        rephrases, kept: prompts of an episode that must follow the edit, and that must not.
        texts, max_tokens: texts of an update's distillation, each cut to so many tokens.
        clip: bound on the norm of the outer gradient.
        held_out_share, held_out_edits: the share of the training subjects kept aside, and how many of their edits are
            measured when training is done.
    """

    layers: tuple[NonNegativeInt, ...] = Field(min_length=1)
    sites: Sites = "mlp_out"
    num_steps: PositiveInt = 10
    stop_margin: PositiveFloat = 1.0
    training_steps: PositiveInt = 4
    first_order: bool = False
    initial_step: PositiveFloat = 0.01
    updates: NonNegativeInt = 200
    episodes: PositiveInt = 4
    learning_rate: PositiveFloat = 1e-4
    rate_learning_rate: PositiveFloat = 0.02
    edit_weight: NonNegativeFloat = 1.0
    locality_weight: NonNegativeFloat = 1.0
    base_weight: NonNegativeFloat = 1.0
    rephrases: NonNegativeInt = 3
    kept: NonNegativeInt = 4
    texts: PositiveInt = 8
    max_tokens: PositiveInt = 48
    clip: PositiveFloat = 100.0
    held_out_share: PositiveFloat = Field(0.1, lt=1)
    held_out_edits: PositiveInt = 40


@dataclass(frozen=True)
class Stepped:
    """Weights after the inner steps, how many there were, and by how many logits the answers lead (least row)."""

    parameters: dict[str, Tensor]
    steps: int
    lead: float


def plain_steps(
    reading: EpisodeRows, start: Parameters, rates: Parameters, most: int, margin: float, order: int = 0
) -> Stepped:
    """theta <- theta - rate * grad NLL(theta), until every answer leads by the margin or `most` steps are done.

    Several rows add their losses up: to each its own steps, taken at once.

    Args:
        start: where to begin; `rates` has a scalar for each name.
        order: 0: the result is cut off from `start` and `rates`; 1: the gradients count as constants; 2: the result can
            be differentiated through them as well.

    Raises:
        EditRefused: the loss is not finite.
    """
    model, theta = reading.model, dict(start)
    stops, steps, lead = model.stops.to(model.device), 0, float("-inf")
    for steps in range(most + 1):
        if order == 0:
            theta = {name: value.detach().requires_grad_(True) for name, value in theta.items()}
        logits = reading.logits(theta)
        lead = float(row_leads(logits.detach(), reading.labels, stops).min())
        loss = row_losses(logits, reading.labels).sum()
        if not torch.isfinite(loss):
            advice = way_out(model.hf.dtype, "lower initial_step and prepare again")
            raise EditRefused(f"enn: loss {float(loss)} after {steps} inner steps; {advice}")
        if steps == most or lead >= margin:
            break
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=order == 2)
        moved = zip(theta.items(), gradients, strict=True)
        theta = {name: value - rates[name] * gradient for (name, value), gradient in moved}
    return Stepped({name: value.detach() if order == 0 else value for name, value in theta.items()}, steps, lead)


@final
class Enn(Editor[EnnConfig]):
    """Sinitsin et al. 2020, equation 5: L_base + c_edit NLL(y_e | x_e; Edit(theta)) + c_loc KL(p_theta || p_Edit(theta)).

    The trained weights are part of what an edit changes: the first patch on a model carries them with its own steps,
    later ones their steps alone. A patch's note tells which it stands on, so the stack of patches is the only state.
    """

    card = EditorCard(
        name="enn",
        title="ENN",
        family="meta_learning",
        patch_kind="weight",
        paper="arXiv:2004.00345",
        code="xtinkt/editable; eric-mitchell/mend algs/enn.py",
        needs_preparation=True,
        trains=True,
        preserves_architecture=False,
        modes=("single", "sequential"),
        experimental=("batch", "sequential-batch"),
        scales=False,
        why_not="it is trained on one edit at a time: a batch adds the gradients of its edits up, which no training has seen",
        differs="Only the matrices that an edit changes are trained beforehand, not the whole model. Both divergences are from "
        "the original model, which is what drawdown is measured against. Edits are trained on rephrases and the stop token, "
        "and stop by margin. Rates begin as a share of each matrix's norm.",
    )

    def preparation_key(self) -> str:
        """All but the bound on the steps of an edit, which training does not read."""
        values = self.config.model_dump(mode="json", exclude={"num_steps"})
        return str(sorted(values.items()))

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """Train the weights and their rates.

        Returns:
            Tensors `trained|NAME` (the change from the base, fp32, as stored) and `rate|NAME` (scalar). Meta: the loss
            `curve`, and what edits of held-out subjects do with (`held_out`) and without (`untrained`) training.

        Raises:
            ValueError: training edits of fewer than two subjects, or no text.
        """
        with at_base(model):
            return _Training(self.config, model, corpus).run(bench)

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        """See `Editor.edit`; a batch takes the steps of all its edits at once.

        Raises:
            ValueError: the preparation is of other weights, or the model stands on another preparation.
        """
        for request in batch.requests:
            check_request(request)
        names = matrices(model, self.config)
        missing = [name for name in names if f"trained|{name}" not in prepared.tensors]
        if missing:
            raise ValueError(f"the preparation lacks {missing}; it holds {sorted(prepared.tensors)}: prepare again")
        below = {p.meta["note"][NOTE] for p in model.patches if NOTE in p.meta.get("note", {})}
        if below - {prepared.digest}:
            raise ValueError(
                f"the model stands on the enn preparation {min(below)[:12]}, this one is {prepared.digest[:12]}; "
                "edit with the preparation of the patches below, or roll them back"
            )
        device = model.device
        stands = {name: model.parameter(name).float() for name in names}
        start = stands if below else {n: w + prepared.tensors[f"trained|{n}"].to(device) for n, w in stands.items()}
        rates = {name: prepared.tensors[f"rate|{name}"].to(device) for name in names}
        reading = read(model, [(r.prompt, r.target_new) for r in in_every_form(batch.requests)], first_layer(model, names))
        done = plain_steps(reading, start, rates, self.config.num_steps, self.config.stop_margin)
        log.info("%d requests, %d steps, smallest lead %.2f", len(batch.requests), done.steps, done.lead)
        changes = {name: oriented(model, name, done.parameters[name] - stands[name]) for name in names}
        # A step's gradient has no more ranks than tokens; the trained weights of a first patch have all of them.
        rank = done.steps * int(reading.rows.mask.sum()) if below else None
        updates = {name: Dense(change) if rank is None else thin(change, rank) for name, change in changes.items()}
        return WeightPatch(updates, {NOTE: prepared.digest, "steps": done.steps})


def matrices(model: EditableModel, config: EnnConfig) -> list[str]:
    """Names of the matrices that are trained and edited.

    Raises:
        UnsupportedModel: a layer that the model does not have.
    """
    return [name for name in site_parameters(model, config.layers, config.sites) if model.parameter(name).ndim == 2]


def first_layer(model: EditableModel, names: Sequence[str]) -> int:
    return min(layer_of(model.anatomy, name) for name in names)


def thin(matrix: Tensor, rank: int) -> Update:
    """A matrix of at most that rank by its factors, or itself where that is smaller.

    Its columns are spanned by its products with as many random vectors (Halko et al. 2011, algorithm 4.1).
    """
    if not rank:
        return LowRank(matrix.new_zeros(len(matrix), 1), matrix.new_zeros(matrix.shape[1], 1))
    if rank * sum(matrix.shape) > matrix.numel():
        return Dense(matrix)
    probes = torch.randn(matrix.shape[1], rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(matrix.double() @ probes).Q
    return LowRank(basis.float().contiguous(), (matrix.double().t() @ basis).float().contiguous())


class _Training:
    """One preparation: the outer loss, its gradients, and how edits of held-out subjects do."""

    def __init__(self, config: EnnConfig, model: EditableModel, corpus: Corpus) -> None:
        self.config, self.model = config, model
        self.texts = [text for text in corpus.texts if text.strip()]
        if not self.texts:
            raise ValueError("the corpus holds no text; distillation from the original model needs some")
        self.names = matrices(model, config)
        self.first = first_layer(model, self.names)
        self.edits, self.held = hold_out(corpus.edits, config.held_out_share, config.seed)
        self.start = {name: model.parameter(name).float().clone() for name in self.names}
        self.first_rates = self._first_rates()
        self.weights = {name: value.clone().requires_grad_(True) for name, value in self.start.items()}
        self.log_rates = {name: rate.log().requires_grad_(True) for name, rate in self.first_rates.items()}

    def run(self, bench: Workbench) -> Prepared:
        config = self.config
        learnt = {f"weight|{n}": w for n, w in self.weights.items()} | {f"rate|{n}": r for n, r in self.log_rates.items()}
        rates = {n: config.rate_learning_rate if n.startswith("rate|") else config.learning_rate for n in learnt}
        curve = train(Outer(learnt, rates, config.clip), config.updates, bench, self._gather)
        shifts = {name: self.weights[name].detach() - self.start[name] for name in self.names}
        final_rates = {name: self.log_rates[name].detach().exp() for name in self.names}
        tensors = {f"trained|{name}": shift.cpu() for name, shift in shifts.items()}
        tensors |= {f"rate|{name}": rate.cpu() for name, rate in final_rates.items()}
        meta: dict[str, Any] = {
            "training_edits": len(self.edits),
            "held_out_edits": len(self._examined()),
            "curve": curve,
            "held_out": self._success({n: w.detach() for n, w in self.weights.items()}, final_rates),
            "untrained": self._success(self.start, self.first_rates),
            "relative_change": {n: float(shift.norm() / self.start[n].norm()) for n, shift in shifts.items()},
            "rates": {name: [float(self.first_rates[name]), float(final_rates[name])] for name in self.names},
        }
        log.info("%d updates on %d training edits; held out: %s", config.updates, len(self.edits), meta["held_out"])
        return Prepared(tensors, meta)

    # ------------------------------------------------------------ the outer loss

    def _gather(self, number: int) -> dict[str, float]:
        """Leave the gradients of one update in the weights and rates."""
        config, seen = self.config, {"edited": 0.0, "kept": 0.0, "steps": 0.0}
        for i in range(config.episodes):
            episode = draw_episode(self.edits, number * config.episodes + i, config.seed, config.rephrases, config.kept)
            rates = {name: log_rate.exp() for name, log_rate in self.log_rates.items()}
            stated = read(self.model, [episode.stated], self.first)
            order = 1 if config.first_order else 2
            after = plain_steps(stated, self.weights, rates, config.training_steps, config.stop_margin, order)
            loss = episode_loss(self.model, episode, self.first, after.parameters)
            total = config.edit_weight * loss.edited + config.locality_weight * loss.kept
            (total / config.episodes).backward()
            measured = {"edited": loss.edited.item(), "kept": loss.kept.item(), "steps": after.steps}
            seen = {name: seen[name] + value / config.episodes for name, value in measured.items()}
        distance = self._distance(number)
        (config.base_weight * distance).backward()
        return seen | {"base": float(distance.detach())}

    def _distance(self, number: int) -> Tensor:
        """Divergence of the trained, unedited weights from the original model at all tokens of this update's texts."""
        draw = random.Random(f"{self.config.seed}:texts:{number}")
        texts = draw.sample(self.texts, min(self.config.texts, len(self.texts)))
        rows = [ids[: self.config.max_tokens] for ids in self.model.tokenizer(texts)["input_ids"]]
        ids, mask = pad_right(rows, self.model.pad_id)
        upper = upper_blocks(self.model, ids, mask, self.first)
        real = mask.bool().to(upper.final.device)
        with torch.no_grad():
            before = self.model.head(upper.final[real]).float()
        after = self.model.head(upper.run(self.model, as_stored(self.model, self.weights))[real]).float()
        return divergences(before, after).mean()

    # ------------------------------------------------------------ measures

    def _first_rates(self) -> dict[str, Tensor]:
        """Rates that move each matrix by `initial_step` of its norm for the median gradient of some training edits."""
        norms: dict[str, list[Tensor]] = {name: [] for name in self.names}
        ones = {name: torch.ones((), device=self.model.device) for name in self.names}
        for edit in self.edits[:SIZED_ON]:
            stated = read(self.model, [_stated(edit)], self.first)
            moved = plain_steps(stated, self.start, ones, 1, float("inf")).parameters
            for name in self.names:
                norms[name].append((moved[name] - self.start[name]).norm())
        step = self.config.initial_step
        return {n: step * self.start[n].norm() / torch.stack(norms[n]).median().clamp(min=1e-12) for n in self.names}

    def _examined(self) -> list[TrainingEdit]:
        return self.held[: self.config.held_out_edits]

    def _success(self, weights: Parameters, rates: Parameters) -> dict[str, Any]:
        taken: list[int] = []

        def edit(training: TrainingEdit) -> Mapping[str, Tensor]:
            stated = read(self.model, [_stated(training)], self.first)
            done = plain_steps(stated, weights, rates, self.config.num_steps, self.config.stop_margin)
            taken.append(done.steps)
            return done.parameters

        found = success_on(self.model, self._examined(), self.first, edit)
        return {**found, "steps": sum(taken) / max(1, len(taken))}


def _stated(edit: TrainingEdit) -> Pair:
    return (edit.request.prompt, edit.request.target_new)
