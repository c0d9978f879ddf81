"""Training edits as episodes: what editors that learn to edit are shown, and how their edits of held-out subjects do.

An episode is one training edit with some of its rephrases, which must follow it, and some prompts that it must leave
alone. Parameters stand in for weights by name (fp32, as stored), so the model itself is never written.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from editors.asking.tokens import continuation_of, encode_rows, pad_right
from editors.base import TrainingEdit
from editors.mechanics.answers import AnswerRows, Labels, answer_labels, label_logits, row_leads, row_losses
from editors.mechanics.descent import UpperBlocks, as_stored, upper_blocks
from editors.model import EditableModel
from warehouse.digests import digest_of

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

#: A prompt and the answer behind it.
Pair = tuple[str, str]
#: Weights by name, fp32, as the model stores them.
Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Episode:
    """One training edit as pairs: the edit itself, rephrases with the new answer, prompts to leave alone with theirs."""

    edit: TrainingEdit
    rephrased: tuple[Pair, ...]
    kept: tuple[Pair, ...]

    @property
    def stated(self) -> Pair:
        return (self.edit.request.prompt, self.edit.request.target_new)


def hold_out(edits: Sequence[TrainingEdit], share: float, seed: int) -> tuple[list[TrainingEdit], list[TrainingEdit]]:
    """Training edits, and those of a share of the subjects, kept aside; which ones is a matter of subject and seed alone.

    Raises:
        ValueError: fewer than two subjects.
    """
    subjects = sorted({e.request.subject for e in edits}, key=lambda s: digest_of("hold-out", seed, s))
    if len(subjects) < 2:
        raise ValueError(
            f"{len(edits)} training edits of {len(subjects)} subjects; to learn editing takes two subjects or more: "
            "give the corpus training edits"
        )
    aside = set(subjects[: min(len(subjects) - 1, max(1, round(share * len(subjects))))])
    parts: tuple[list[TrainingEdit], list[TrainingEdit]] = ([], [])
    for edit in edits:
        parts[edit.request.subject in aside].append(edit)
    return parts


def draw_episode(edits: Sequence[TrainingEdit], number: int, seed: int, rephrases: int, kept: int) -> Episode:
    """Episode `number` of a training run; a function of its arguments, so that a resumed run goes on as it was."""
    # Every round visits all edits, in an order of its own.
    turn, place = divmod(number, len(edits))
    order = list(range(len(edits)))
    random.Random(f"{seed}:{turn}").shuffle(order)
    edit, draw = edits[order[place]], random.Random(f"{seed}:episode:{number}")
    request = edit.request
    chosen = draw.sample(request.rephrases, min(rephrases, len(request.rephrases)))
    return Episode(
        edit, tuple((prompt, request.target_new) for prompt in chosen), tuple(draw.sample(edit.kept, min(kept, len(edit.kept))))
    )


@dataclass(frozen=True)
class EpisodeRows:
    """Pairs on their way through the model, ready for the blocks that are trained or edited.

    Attributes:
        rows: the pairs as tokens.
        base: (labels, vocab) logits at the labels with the weights as the model holds them.
    """

    model: EditableModel
    rows: AnswerRows
    upper: UpperBlocks
    labels: Labels
    base: Float[Tensor, "labels vocab"]

    def logits(self, parameters: Parameters) -> Float[Tensor, "labels vocab"]:
        """With `parameters` in place of the weights of the same name."""
        return label_logits(self.model, self.upper.run(self.model, as_stored(self.model, parameters)), self.labels)


def read(model: EditableModel, pairs: Sequence[Pair], first: int) -> EpisodeRows:
    """One pass over prompts with answers, kept from block `first` on."""
    encoded = encode_rows(model.tokenizer, [p for p, _ in pairs], [continuation_of(answer) for _, answer in pairs])
    ids, mask = pad_right([row.ids for row in encoded], model.pad_id)
    device = model.device
    last = torch.tensor([row.start - 1 for row in encoded], device=device)
    rows = AnswerRows(ids.to(device), mask.to(device), last, tuple(tuple(row.ids[row.start :]) for row in encoded))
    upper = upper_blocks(model, rows.ids, rows.mask, first, rows.positions())
    labels = answer_labels(model, rows, upper.final)
    with torch.no_grad():
        base = label_logits(model, upper.final, labels)
    return EpisodeRows(model, rows, upper, labels, base)


def row_divergences(base: Tensor, logits: Tensor, labels: Labels) -> Float[Tensor, " rows"]:
    """KL(base || model) in nats, the mean over the labels of each row: where an answer is due, as in De Cao et al. 2021."""
    at_labels = divergences(base, logits)
    total = torch.zeros(labels.num_rows, device=logits.device).index_add(0, labels.row, at_labels)
    return total / torch.bincount(labels.row, minlength=labels.num_rows)


def divergences(base: Float[Tensor, "places vocab"], logits: Float[Tensor, "places vocab"]) -> Float[Tensor, " places"]:
    """KL(base || model) at each place, in nats."""
    before, after = base.log_softmax(-1), logits.log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1)


@dataclass(frozen=True)
class EpisodeLoss:
    """Mean loss of the edit's own and its rephrased prompts, and mean divergence from the original model on kept ones."""

    edited: Tensor
    kept: Tensor


def episode_loss(model: EditableModel, episode: Episode, first: int, parameters: Parameters) -> EpisodeLoss:
    """What an edit is judged by in training: all of an episode's prompts in one pass.

    The divergence is from the weights as the model holds them: the original ones, never those in training.
    """
    new = [episode.stated, *episode.rephrased]
    reading = read(model, [*new, *episode.kept], first)
    logits = reading.logits(parameters)
    losses = row_losses(logits, reading.labels)[: len(new)]
    kept = row_divergences(reading.base, logits, reading.labels)[len(new) :]
    return EpisodeLoss(losses.mean(), kept.mean() if len(kept) else losses.new_zeros(()))


@torch.no_grad()
def success_on(
    model: EditableModel, edits: Iterable[TrainingEdit], first: int, edit: Callable[[TrainingEdit], Parameters]
) -> dict[str, float]:
    """Exact matches after each edit alone, as shares.

    Args:
        edit: the weights after a training edit.

    Returns:
        `success` on the edits' own prompts, `generalization` on their rephrases, and `locality`: kept prompts still
        answered right, of those that the original model answers right. A share of nothing is missing.
    """
    counts = {"success": [0, 0], "generalization": [0, 0], "locality": [0, 0]}
    stops = model.stops.to(model.device)
    for training in edits:
        with torch.enable_grad():
            parameters = edit(training)
        request = training.request
        pairs = [(prompt, request.target_new) for prompt in (request.prompt, *request.rephrases)]
        reading = read(model, [*pairs, *training.kept], first)
        right = (row_leads(reading.logits(parameters), reading.labels, stops) > 0).tolist()
        known = (row_leads(reading.base, reading.labels, stops) > 0).tolist()
        kept = [now for now, before in zip(right[len(pairs) :], known[len(pairs) :], strict=True) if before]
        for name, found in (("success", right[:1]), ("generalization", right[1 : len(pairs)]), ("locality", kept)):
            counts[name][0] += sum(found)
            counts[name][1] += len(found)
    return {name: hits / total for name, (hits, total) in counts.items() if total}


def oriented(model: EditableModel, name: str, delta: Tensor) -> Tensor:
    """A matrix's update as (d_out, d_in), as `EditableModel.add_to_weight` takes it; fp32, contiguous, on the CPU."""
    module = model.hf.get_submodule(name.rsplit(".", 1)[0])
    return (delta if isinstance(module, (nn.Linear, nn.Embedding)) else delta.t()).contiguous().cpu()
