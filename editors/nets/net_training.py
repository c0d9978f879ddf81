"""How MEND and MALMEN train their nets: the settings and the course that both share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from editors.base import Corpus, EditorConfig, Prepared, TrainingEdit, Workbench
from editors.model import EditableModel
from editors.nets.episodes import Episode, draw_episode, hold_out
from editors.nets.hypernetwork import EditorNets, fresh_nets
from editors.nets.lessons import Factors, Places, Terms, compatible, slices, success_of, take_moments
from editors.nets.outer import Outer, train
from editors.views import at_base

log = logging.getLogger(__name__)

#: What the nets make of the factors of a batch: its update.
Edit = Callable[[EditorNets, Factors], Terms]
#: Leaves the gradients of one update's batches in the nets' learnt tensors, and says what it measured.
Gather = Callable[[EditorNets, Sequence[Sequence[Episode]]], dict[str, float]]


class NetConfig(EditorConfig):
    """What an editor with a trained net is told. `rank` and what follows it concern the preparation alone.

    Attributes:
        layers: blocks whose feed-forward is edited.
        max_relative_norm: an update larger than this share of the weight's Frobenius norm is refused.
        rank: of the nets' matrices.
        edit_rate: first step of every projection, for factors of unit size and in units of the root mean square of the
            weight's entries, so that one number serves every width.
        learning_rate: Adam's, of the nets; `rate_learning_rate`, of the logarithms of the learnt scalars.
        updates, edits_each: steps of training, and training edits in each.
        batch_sizes: update i divides its edits into batches of `batch_sizes[i mod n]`.
        rephrases, kept: how many of each edit's are drawn.
        clip: bound on the norm of the gradient of all learnt tensors.
        moment_edits: training edits that the moments of inputs and gradients are taken over.
        held_out, held_out_edits: share of the training subjects kept aside; of their edits so many are measured.
    """

    layers: tuple[int, ...] = Field(min_length=1)
    max_relative_norm: PositiveFloat = 1.0
    rank: PositiveInt = 128
    edit_rate: PositiveFloat = 0.005
    learning_rate: PositiveFloat = 5e-4
    rate_learning_rate: PositiveFloat = 1e-2
    updates: PositiveInt = 160
    edits_each: PositiveInt = 8
    batch_sizes: tuple[PositiveInt, ...] = Field(default=(1, 2, 4, 8), min_length=1)
    rephrases: PositiveInt = 2
    kept: PositiveInt = 3
    clip: PositiveFloat = 1.0
    moment_edits: PositiveInt = 512
    held_out: float = Field(default=0.1, gt=0, lt=1)
    held_out_edits: PositiveInt = 64


def train_nets(
    model: EditableModel,
    corpus: Corpus,
    places: Places,
    config: NetConfig,
    bench: Workbench,
    *,
    scalars: Mapping[str, float],
    gather: Gather,
    edit: Edit,
) -> Prepared:
    """Train nets on the corpus's training edits, on the base model, and measure them on held-out subjects.

    Args:
        scalars: name -> first value of what each projection learns beside its net; learnt as `PATH|name`, a logarithm.

    Returns:
        The learnt tensors, the moments, and `PATH|unit` (root mean square of the weight's entries) and `PATH|energy` (mean
        squared norm of its inputs); meta: the loss curve, held-out rates, sizes, and the scalars as learnt.

    Raises:
        ValueError: fewer than two subjects among the training edits.
    """
    shown, aside = hold_out(corpus.edits, config.held_out, config.seed)
    measured_on = aside[: config.held_out_edits]
    with at_base(model):
        nets = fresh_editor(model, shown, places, config, scalars)
        names = tuple(f"|{name}" for name in scalars)
        rates = {n: config.rate_learning_rate if n.endswith(names) else config.learning_rate for n in nets.learnt}
        curve = train(
            Outer(nets.learnt, rates, config.clip),
            config.updates,
            bench,
            lambda number: gather(nets, draw_batches(shown, number, config)),
        )
        held_out = {
            f"batch of {size}": success_of(model, measured_on, places, lambda factors: edit(nets, factors), size)
            for size in sorted({1, max(config.batch_sizes)})
        }
    log.info("%d updates on %d training edits; held out: %s", config.updates, len(shown), held_out)
    learnt = {name: tensor.detach() for name, tensor in nets.learnt.items()}
    meta: dict[str, Any] = {
        "curve": curve,
        "held_out": held_out,
        "training_edits": len(shown),
        "held_out_edits": len(measured_on),
        "parameters": sum(tensor.numel() for tensor in learnt.values()),
        "scalars": {name: {path: float(learnt[f"{path}|{name}"].exp()) for path in places.shapes} for name in scalars},
    }
    return Prepared({name: tensor.contiguous() for name, tensor in {**learnt, **nets.fixed}.items()}, meta)


def fresh_editor(
    model: EditableModel, edits: Sequence[TrainingEdit], places: Places, config: NetConfig, scalars: Mapping[str, float]
) -> EditorNets:
    """Nets that change nothing yet, over the moments of training edits; what is learnt asks for gradients."""
    moments = take_moments(model, edits[: config.moment_edits], places)
    fixed, learnt = moments.fixed(), fresh_nets(places.shapes, config.rank, config.seed)
    for path in places.shapes:
        fixed[f"{path}|unit"] = model.parameter(f"{path}.weight").float().square().mean().sqrt().cpu()
        fixed[f"{path}|energy"] = moments.energy(path)
        learnt |= {f"{path}|{name}": torch.tensor(value).log() for name, value in scalars.items()}
    for tensor in learnt.values():
        tensor.requires_grad_(True)
    return EditorNets(learnt, fixed, places.shapes)


def scaled_step(nets: EditorNets, path: str, device: torch.device) -> Tensor:
    """The learnt `PATH|step` in the units of the weight; a scalar."""
    return nets.learnt[f"{path}|step"].to(device).exp() * nets.fixed[f"{path}|unit"].to(device)


def draw_batches(edits: Sequence[TrainingEdit], number: int, config: NetConfig) -> list[list[Episode]]:
    """The batches of update `number`: a function of its arguments, so that a resumed run goes on as it was."""
    each = config.edits_each
    drawn = [draw_episode(edits, number * each + i, config.seed, config.rephrases, config.kept) for i in range(each)]
    return [compatible(batch) for batch in slices(drawn, config.batch_sizes[number % len(config.batch_sizes)])]
