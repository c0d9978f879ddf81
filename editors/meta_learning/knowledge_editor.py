"""KnowledgeEditor: a net reads a fact and its correction and says how the gradient of the edit is to be bent.

De Cao et al. 2021, arXiv:2104.08164. Trained to make the edit hold on rephrases under a constraint: the divergence from
the original model on other prompts stays below a margin.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self, final

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from editors.asking.tokens import continuation_of, encode_rows
from editors.base import NO_BENCH, Corpus, Editor, EditorCard, EditorConfig, Prepared, TrainingEdit, Workbench
from editors.mechanics.answers import row_leads
from editors.mechanics.gradients import Projections
from editors.model import EditableModel
from editors.nets.episodes import Episode, draw_episode, hold_out
from editors.nets.lessons import Factors, LessonQuestions, Places, Terms, ask, low_rank_patch, request_factors, success_of
from editors.nets.outer import Outer, train
from editors.nets.shift_net import Condition, ShiftGates, ShiftNet, Units, units_of
from editors.patches.weight import LowRank, WeightPatch
from editors.views import at_base
from warehouse.records import EditBatch, EditRequest

log = logging.getLogger(__name__)

#: Most tokens of a present answer that the net reads.
ANSWER_TOKENS = 8
#: Training edits that the gradients' usual norms are measured on, and updates between two looks at the validation edits.
SIZED_ON, LOOK_EVERY = 32, 10


class KnowledgeEditorConfig(EditorConfig):
    """Numbers of KnowledgeEditor.

    Attributes:
        layers, projections: the feed-forward matrices that are edited.
        max_scale: s, the bound on the scale of a shift.
        first_step: a fresh net moves a matrix by this share of its norm, for a gradient of the usual size.
        lstm, code, hidden: widths of the encoder (each way), of the code and of the nets of the matrices.
        learning_rate, updates, edits_each: Adam's rate, its steps, and the training edits of each.
        rephrases, kept: prompts of each edit that must follow it, and that must not.
        margin, smallest_margin, margin_factor: the bound on the divergence in nats, where it ends, and what it is
            multiplied by each time validation meets `validation_target`.
        multiplier, multiplier_rate: the Lagrangian multiplier's start and its largest step.
        validation: training edits that the margin's schedule looks at; they belong to the subjects kept aside.
        held_out_share, held_out_edits: the share of the training subjects kept aside, and how many of their edits are
            measured when training is done.
        max_relative_norm: a shift larger than this share of the matrix's Frobenius norm is refused.
    """

    layers: tuple[NonNegativeInt, ...] = Field(min_length=1)
    projections: Projections = "mlp"
    max_scale: PositiveFloat = 1.0
    first_step: PositiveFloat = 0.02
    lstm: PositiveInt = 128
    code: PositiveInt = 256
    hidden: PositiveInt = 128
    learning_rate: PositiveFloat = 3e-4
    updates: NonNegativeInt = 400
    edits_each: PositiveInt = 8
    rephrases: NonNegativeInt = 3
    kept: PositiveInt = 4
    margin: PositiveFloat = 0.1
    smallest_margin: PositiveFloat = 1e-3
    margin_factor: PositiveFloat = Field(0.8, lt=1)
    validation_target: PositiveFloat = 0.9
    multiplier: NonNegativeFloat = 0.1
    multiplier_rate: PositiveFloat = 0.1
    validation: PositiveInt = 16
    clip: PositiveFloat = 10.0
    held_out_share: PositiveFloat = Field(0.1, lt=1)
    held_out_edits: PositiveInt = 60
    max_relative_norm: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _margin_falls(self) -> Self:
        if self.smallest_margin > self.margin:
            raise ValueError(f"smallest_margin {self.smallest_margin} is above margin {self.margin}; the margin only falls")
        return self


@dataclass
class Constraint:
    """min loss subject to divergence <= margin, by gradient ascent on the multiplier of (divergence - margin) / margin.

    In units of the margin one rate serves all margins; the violation that the multiplier sees is bounded by one, because
    single prompts diverge a thousand times more than most.
    """

    multiplier: float
    margin: float
    rate: float
    smallest: float
    factor: float

    def lagrangian(self, loss: Tensor, divergence: Tensor) -> Tensor:
        return loss + self.multiplier * (divergence - self.margin) / self.margin

    def ascend(self, divergence: float) -> None:
        """One step of the multiplier, kept at zero or above."""
        violation = (divergence - self.margin) / self.margin
        self.multiplier = max(0.0, self.multiplier + self.rate * min(1.0, max(-1.0, violation)))

    def tighten(self) -> None:
        self.margin = max(self.smallest, self.margin * self.factor)


@final
class KnowledgeEditor(Editor[KnowledgeEditorConfig]):
    """One gradient of the new answer, gated matrix by matrix by a trained net; the shift is added once."""

    card = EditorCard(
        name="knowledge_editor",
        title="KnowledgeEditor",
        family="meta_learning",
        patch_kind="weight",
        paper="arXiv:2104.08164",
        code="nicola-decao/KnowledgeEditor",
        needs_preparation=True,
        trains=True,
        modes=("single",),
        experimental=("batch", "sequential", "sequential-batch"),
        why_not="its net has learnt single edits of the unedited model; shifts of several edits are only summed",
        differs="Outputs are in units that make a fresh net one plain gradient step (softmax over long rows makes the gates "
        "tiny otherwise). Feed-forward matrices of chosen layers, no vectors. The condition has the model's present answer, "
        "also in sequences. The constraint is in units of its margin, with a bounded violation. No label smoothing: an answer "
        "must be exact, stop included. Shifts stay in low-rank form. Larger rates and fewer updates than published.",
    )

    def __init__(self, config: KnowledgeEditorConfig) -> None:
        super().__init__(config)
        self._seen: tuple[Prepared, torch.device, ShiftNet] | None = None

    def preparation_key(self) -> str:
        """All but the guard of `edit`."""
        return self.config.model_copy(update={"max_relative_norm": 1.0}).digest

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """Train the net on the corpus's training edits.

        Returns:
            Tensors: the net's weights. Meta: `units` of the matrices, the loss `curve` with multiplier and margin, and
            what edits of held-out subjects do with (`held_out`) and without (`untrained`) training.

        Raises:
            ValueError: training edits of fewer than two subjects.
        """
        with at_base(model):
            return _Training(self.config, model, corpus).run(bench)

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        """See `Editor.edit`; a batch's shifts are summed."""
        return self._patch(model, self._shifts(model, batch.requests, prepared), batch.requests)

    def edit_each(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[WeightPatch]:
        """Independent patches; the gradients of many requests are taken in one pass."""
        if not requests:
            return []
        shifts = self._shifts(model, requests, prepared)
        return [self._patch(model, [shift], [request]) for shift, request in zip(shifts, requests, strict=True)]

    def _shifts(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[Terms]:
        """Each request's change of every matrix, for the model as it stands."""
        places = Places.of(model, self.config.layers, self.config.projections, "all")
        # Sequences edit one by one: the net is built once for all of them.
        if self._seen is None or self._seen[0] is not prepared or self._seen[1] != model.device:
            self._seen = (prepared, model.device, _trained(self.config, model, places, prepared))
        factors = request_factors(model, requests, places)
        with torch.no_grad():
            gates = self._seen[2](conditions(model, requests), _embedding(model))
        return [_terms(g, f) for g, f in zip(gates, factors, strict=True)]

    def _patch(self, model: EditableModel, shifts: Sequence[Terms], requests: Sequence[EditRequest]) -> WeightPatch:
        """The sum of the shifts, each matrix in its smaller form, behind the guard on its norm."""
        total = {
            path: LowRank(torch.cat([s[path].left for s in shifts], 1), torch.cat([s[path].right for s in shifts], 1))
            for path in shifts[0]
        }
        return low_rank_patch(model, total, self.config.max_relative_norm, [r.request_id for r in requests])


def conditions(model: EditableModel, requests: Sequence[EditRequest]) -> list[Condition]:
    """What the net reads: each prompt, the model's present (greedy) answer up to its stop, and the new answer."""
    prompts = [r.prompt for r in requests]
    stops = model.stops.tolist()
    said = [text.strip() for text in model.generate(prompts, ANSWER_TOKENS)]
    present = encode_rows(model.tokenizer, prompts, [continuation_of(text) if text else "" for text in said])
    new = encode_rows(model.tokenizer, prompts, [continuation_of(r.target_new) for r in requests])
    out = []
    for before, after in zip(present, new, strict=True):
        answer = before.ids[before.start :]
        # The first token is the answer's whatever it is: an answer that begins with a stop is still one.
        end = next((i for i, token in enumerate(answer) if i and stops[token]), len(answer))
        out.append(Condition(tuple(after.ids[: after.start]), tuple(answer[:end]), tuple(after.ids[after.start :])))
    return out


def _terms(gates: Mapping[str, ShiftGates], factors: Factors) -> Terms:
    return {path: gates[path].shift(found) for path, found in factors.items()}


def _embedding(model: EditableModel) -> Tensor:
    return model.parameter(f"{model.anatomy.embedding}.weight")


def _fresh(config: KnowledgeEditorConfig, model: EditableModel, places: Places, units: Mapping[str, Units]) -> ShiftNet:
    return ShiftNet(
        places.shapes,
        units,
        _embedding(model).shape[1],
        lstm=config.lstm,
        code=config.code,
        hidden=config.hidden,
        max_scale=config.max_scale,
        seed=config.seed,
    ).to(model.device)


def _trained(config: KnowledgeEditorConfig, model: EditableModel, places: Places, prepared: Prepared) -> ShiftNet:
    """The net of a preparation.

    Raises:
        ValueError: the preparation is of other matrices.
    """
    units = {path: Units(**found) for path, found in prepared.meta.get("units", {}).items()}
    if set(units) != set(places.shapes):
        raise ValueError(f"the preparation is of {sorted(units)}, not of {sorted(places.shapes)}: prepare again")
    net = _fresh(config, model, places, units)
    net.load_state_dict(dict(prepared.tensors))
    return net.requires_grad_(False)


def _ask(model: EditableModel, episodes: Sequence[Episode], places: Places) -> LessonQuestions:
    """Each episode's edit stands alone."""
    return ask(model, [[episode] for episode in episodes], places)


class _Training:
    """One preparation: the Lagrangian, the margin's schedule, and how edits of held-out subjects do."""

    def __init__(self, config: KnowledgeEditorConfig, model: EditableModel, corpus: Corpus) -> None:
        self.config, self.model = config, model
        self.places = Places.of(model, config.layers, config.projections, "all")
        self.edits, aside = hold_out(corpus.edits, config.held_out_share, config.seed)
        self.validation = aside[: config.validation]
        self.held = (aside[config.validation :] or aside)[: config.held_out_edits]
        self.known = self._conditions([*self.edits, *self.validation, *self.held])
        self.units = self._units()
        self.net = _fresh(config, model, self.places, self.units)
        self.constraint = Constraint(
            config.multiplier, config.margin, config.multiplier_rate, config.smallest_margin, config.margin_factor
        )

    def run(self, bench: Workbench) -> Prepared:
        config, untrained = self.config, self._success()
        learnt = dict(self.net.named_parameters())
        outer = Outer(learnt, dict.fromkeys(learnt, config.learning_rate), config.clip)
        curve = train(outer, config.updates, bench, self._gather, self._facts, self._recall)
        meta: dict[str, Any] = {
            "units": {path: asdict(unit) for path, unit in self.units.items()},
            "training_edits": len(self.edits),
            "validation_edits": len(self.validation),
            "held_out_edits": len(self.held),
            "parameters": sum(t.numel() for t in learnt.values()),
            "curve": curve,
            "untrained": untrained,
            "held_out": self._success(),
        }
        log.info("%d updates on %d training edits; held out: %s", config.updates, len(self.edits), meta["held_out"])
        return Prepared({name: t.detach().contiguous().cpu() for name, t in self.net.state_dict().items()}, meta)

    # ------------------------------------------------------------ the loss

    def _gather(self, number: int) -> dict[str, float]:
        """Leave the gradients of one update in the net; move the multiplier, and at times the margin."""
        config, constraint = self.config, self.constraint
        if number and number % LOOK_EVERY == 0 and self._validated() >= config.validation_target:
            constraint.tighten()
        episodes = [
            draw_episode(self.edits, number * config.edits_each + i, config.seed, config.rephrases, config.kept)
            for i in range(config.edits_each)
        ]
        losses, divergences = _ask(self.model, episodes, self.places).losses(self._shifts(episodes))
        edited, kept = losses.mean(), divergences.mean() if len(divergences) else losses.new_zeros(())
        constraint.lagrangian(edited, kept).backward()
        constraint.ascend(kept.item())
        return {"edited": edited.item(), "kept": kept.item(), "multiplier": constraint.multiplier, "margin": constraint.margin}

    def _shifts(self, episodes: Sequence[Episode]) -> list[Terms]:
        """What the net makes of each episode's edit."""
        requests = [e.edit.request for e in episodes]
        return self._shifts_of(requests, request_factors(self.model, requests, self.places))

    def _shifts_of(self, requests: Sequence[EditRequest], factors: Sequence[Factors]) -> list[Terms]:
        gates = self.net([self.known[r.request_id] for r in requests], _embedding(self.model))
        return [_terms(g, f) for g, f in zip(gates, factors, strict=True)]

    def _facts(self) -> dict[str, Any]:
        return {"multiplier": self.constraint.multiplier, "margin": self.constraint.margin}

    def _recall(self, facts: Mapping[str, Any]) -> None:
        self.constraint.multiplier, self.constraint.margin = facts["multiplier"], facts["margin"]

    # ------------------------------------------------------------ measures

    @cached_property
    def _watched(self) -> tuple[LessonQuestions, list[EditRequest], list[Factors]]:
        """The validation edits with some of their prompts; read once, for the model does not change."""
        config = self.config
        episodes = [
            draw_episode(self.validation, i, config.seed, config.rephrases, config.kept) for i in range(len(self.validation))
        ]
        requests = [e.edit.request for e in episodes]
        return _ask(self.model, episodes, self.places), requests, request_factors(self.model, requests, self.places)

    @torch.no_grad()
    def _validated(self) -> float:
        """Share of the validation edits' own prompts and rephrases that are exact after the edit."""
        asked, requests, factors = self._watched
        logits = asked.logits(self._shifts_of(requests, factors))
        leads = row_leads(logits, asked.reading.labels, self.model.stops.to(logits.device))
        return float((leads[asked.is_new] > 0).float().mean())

    def _success(self) -> dict[str, float]:
        """Of edits of held-out subjects, each alone."""
        with torch.no_grad():
            gates = self.net([self.known[e.request.request_id] for e in self.held], _embedding(self.model))
        # `success_of` asks for one edit after the other, in their order.
        turns = iter(gates)
        return success_of(self.model, self.held, self.places, lambda factors: _terms(next(turns), factors))

    def _conditions(self, edits: Sequence[TrainingEdit]) -> dict[str, Condition]:
        requests = [e.request for e in edits]
        return {r.request_id: c for r, c in zip(requests, conditions(self.model, requests), strict=True)}

    def _units(self) -> dict[str, Units]:
        """From the norms of the matrices and the median norms of some training edits' gradients."""
        config = self.config
        norms: dict[str, list[Tensor]] = {path: [] for path in self.places.shapes}
        for factors in request_factors(self.model, [e.request for e in self.edits[:SIZED_ON]], self.places):
            for path, found in factors.items():
                norms[path].append((found.gradients.t() @ found.inputs).norm())
        return {
            path: units_of(
                shape,
                float(self.model.parameter(f"{path}.weight").float().norm()),
                float(torch.stack(norms[path]).median()),
                config.first_step,
                config.max_scale,
            )
            for path, shape in self.places.shapes.items()
        }
