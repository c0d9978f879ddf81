"""Several independent batches of training edits in one pass, each seen through its own low-rank terms.

What hypernetworks learn from: the factors of the edits' gradients go in, the loss after the edit comes out. Batches share
a pass and never meet, so that a step on many edits alone costs no more than one on a batch of many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from editors.base import TrainingEdit
from editors.mechanics.answers import TOKENS_PER_PASS, answer_labels, answer_rows, row_leads, row_losses
from editors.mechanics.descent import layer_of, upper_blocks
from editors.mechanics.gradients import Projections, TokenFactors, Tokens, added, projection_paths, token_factors, weight_shape
from editors.model import EditableModel
from editors.nets.episodes import Episode, EpisodeRows, Pair, read, row_divergences
from editors.nets.hypernetwork import FactorMoments
from editors.patches.weight import LowRank, WeightPatch
from editors.solvers.solve import check_norm, smallest_form
from warehouse.records import EditRequest

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Bool

T = TypeVar("T")
#: Projection -> the factors of a batch's gradient, or the terms that edit it.
Factors = Mapping[str, TokenFactors]
Terms = Mapping[str, LowRank]
#: Training edits in one pass that measures, and episodes with all they ask.
EDITS_PER_PASS = 16


@dataclass(frozen=True)
class Places:
    """Which projections a hypernetwork edits, and which tokens it reads there.

    Attributes:
        shapes: path -> (d_out, d_in), in the order in which they run.
        first: the lowest block with one of them.
    """

    shapes: Mapping[str, tuple[int, int]]
    first: int
    tokens: Tokens

    @classmethod
    def of(cls, model: EditableModel, layers: Sequence[int], which: Projections, tokens: Tokens) -> Places:
        """Raises UnsupportedModel for a layer that the model does not have."""
        paths = projection_paths(model, layers, which)
        first = min(layer_of(model.anatomy, f"{path}.weight") for path in paths)
        return cls({path: weight_shape(model, path) for path in paths}, first, tokens)


@dataclass(frozen=True)
class LessonQuestions:
    """What is asked after some edits, batch after batch, in one pass.

    Attributes:
        sizes: rows of each batch.
        is_new: (rows,) True where the new answer is due: the edits' own prompts and rephrases; False for kept prompts.
        is_own: (rows,) True for the edits' own prompts.
    """

    reading: EpisodeRows
    sizes: tuple[int, ...]
    is_new: Bool[Tensor, " rows"]
    is_own: Bool[Tensor, " rows"]

    def logits(self, terms: Sequence[Terms]) -> Tensor:
        """(labels, vocab), each batch with its own terms."""
        by_path = {path: [batch[path] for batch in terms] for path in terms[0]}
        with added(self.reading.model, by_path, self.sizes):
            return self.reading.logits({})

    def losses(self, terms: Sequence[Terms]) -> tuple[Tensor, Tensor]:
        """Loss of each new answer, and the divergence of each kept prompt from the model without terms."""
        logits, labels = self.logits(terms), self.reading.labels
        return (
            row_losses(logits, labels)[self.is_new],
            row_divergences(self.reading.base, logits, labels)[~self.is_new],
        )


def ask(model: EditableModel, batches: Sequence[Sequence[Episode]], places: Places) -> LessonQuestions:
    """Read what is asked of each batch on the model as it stands."""
    pairs: list[Pair] = []
    new: list[bool] = []
    own: list[bool] = []
    sizes: list[int] = []
    for batch in batches:
        before = len(pairs)
        for episode in batch:
            here = [episode.stated, *episode.rephrased, *episode.kept]
            pairs += here
            new += [i <= len(episode.rephrased) for i in range(len(here))]
            own += [i == 0 for i in range(len(here))]
        sizes.append(len(pairs) - before)
    reading = read(model, pairs, places.first)
    device = reading.base.device
    return LessonQuestions(reading, tuple(sizes), torch.tensor(new, device=device), torch.tensor(own, device=device))


def compatible(batch: Sequence[Episode]) -> list[Episode]:
    """The episodes of a batch without the kept prompts that another edit of it changes."""
    changed = {prompt for e in batch for prompt in (e.edit.request.prompt, *e.edit.request.rephrases)}
    return [replace(e, kept=tuple(pair for pair in e.kept if pair[0] not in changed)) for e in batch]


def passes(batches: Sequence[Sequence[Episode]], most: int) -> Iterator[list[tuple[int, list[Episode]]]]:
    """Episodes in passes of at most so many: each pass a list of (number of a batch, some of its episodes)."""
    flat = [(number, episode) for number, batch in enumerate(batches) for episode in batch]
    for some in slices(flat, most):
        yield [(number, [episode for _, episode in part]) for number, part in groupby(some, key=itemgetter(0))]


def batch_factors(model: EditableModel, batches: Sequence[Sequence[Episode]], places: Places) -> list[Factors]:
    """The factors of each batch's gradient, for the model as it stands."""
    found = iter(request_factors(model, [e.edit.request for batch in batches for e in batch], places))
    return [joined([next(found) for _ in batch]) for batch in batches]


def request_factors(model: EditableModel, requests: Sequence[EditRequest], places: Places) -> list[Factors]:
    """The factors of each request's own gradient, for the model as it stands.

    Raises:
        InvalidRequest: a request that cannot be applied.
    """
    longest = answer_rows(model, requests).ids.shape[1]
    size, out = max(1, TOKENS_PER_PASS // longest), []
    for at in range(0, len(requests), size):
        rows = answer_rows(model, requests[at : at + size])
        upper = upper_blocks(model, rows.ids, rows.mask, places.first, rows.positions())
        labels = answer_labels(model, rows, upper.final)
        found = token_factors(model, upper, labels, list(places.shapes), places.tokens)
        out += [{path: f.of_rows(i, i + 1) for path, f in found.items()} for i in range(len(rows.ids))]
    return out


def group_factors(model: EditableModel, groups: Sequence[Sequence[EditRequest]], places: Places) -> list[Factors]:
    """The factors of each group's requests, one behind the other; as `request_factors`, all in its passes."""
    found = iter(request_factors(model, [request for group in groups for request in group], places))
    return [joined([next(found) for _ in group]) for group in groups]


def joined(factors: Sequence[Factors]) -> Factors:
    """The factors of several edits as one batch's; gradients add up."""
    return {
        path: TokenFactors(
            torch.cat([f[path].inputs for f in factors]),
            torch.cat([f[path].gradients for f in factors]),
            torch.cat([torch.full_like(f[path].row, number) for number, f in enumerate(factors)]),
        )
        for path in factors[0]
    }


def take_moments(model: EditableModel, edits: Sequence[TrainingEdit], places: Places) -> FactorMoments:
    """Moments of the factors of training edits, for the model as it stands: they do not change while a net is trained."""
    moments = FactorMoments(places.shapes)
    for some in slices(edits, EDITS_PER_PASS):
        moments.update(joined(request_factors(model, [e.request for e in some], places)))
    return moments


@torch.no_grad()
def success_of(
    model: EditableModel, edits: Sequence[TrainingEdit], places: Places, edit: Callable[[Factors], Terms], size: int = 1
) -> dict[str, float]:
    """Exact matches after edits in batches of one size, as shares.

    Returns:
        `success` on the edits' own prompts, `generalization` on all their rephrases, and `locality`: kept prompts still
        answered right, of those that the model without the edit answers right. A share of nothing is missing.
    """
    counts = {"success": [0, 0], "generalization": [0, 0], "locality": [0, 0]}
    stops = model.stops.to(model.device)
    for some in slices(edits, max(size, EDITS_PER_PASS // size * size)):
        batches = [compatible([whole_episode(e) for e in batch]) for batch in slices(some, size)]
        terms = [edit(factors) for factors in batch_factors(model, batches, places)]
        for parts in passes(batches, EDITS_PER_PASS):
            asked = ask(model, [episodes for _, episodes in parts], places)
            labels = asked.reading.labels
            right = row_leads(asked.logits([terms[number] for number, _ in parts]), labels, stops) > 0
            known = row_leads(asked.reading.base, labels, stops) > 0
            kinds = (asked.is_own, asked.is_new & ~asked.is_own, ~asked.is_new & known)
            for name, rows in zip(counts, kinds, strict=True):
                counts[name][0] += int(right[rows].sum())
                counts[name][1] += int(rows.sum())
    return {name: hits / total for name, (hits, total) in counts.items() if total}


def whole_episode(edit: TrainingEdit) -> Episode:
    """A training edit with all its rephrases and all its kept prompts."""
    return Episode(edit, tuple((prompt, edit.request.target_new) for prompt in edit.request.rephrases), edit.kept)


def low_rank_patch(model: EditableModel, updates: Terms, largest_share: float, names: Sequence[str]) -> WeightPatch:
    """A batch's terms as a patch: factors where they are smaller than the matrix.

    Raises:
        EditRefused: an update is not finite, or larger than that share of its weight's norm.
    """
    named = {f"{path}.weight": LowRank(term.left.contiguous(), term.right.contiguous()) for path, term in updates.items()}
    for name, update in named.items():
        check_norm(update, model.parameter(name), largest_share, names)
    return WeightPatch({name: smallest_form(update) for name, update in named.items()})


def slices(items: Sequence[T], size: int) -> list[list[T]]:
    """Consecutive slices; the last may be shorter."""
    return [list(items[at : at + size]) for at in range(0, len(items), size)]
