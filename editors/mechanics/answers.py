"""Requests as training rows: target tokens with their stop as labels, losses and leads over them.

An edit is right when every target token is the argmax and the token after them ends the answer (METRICS: exact match),
so the stop is a label too: the stop token that the model itself likes best there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from editors.asking.calls import PromptPositions
from editors.asking.subjects import place_of
from editors.asking.tokens import continuation_of, encode_rows, pad_right
from editors.errors import InvalidRequest
from editors.model import EditableModel
from warehouse.records import EditRequest

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Bool, Float, Int

#: Most padded tokens in one pass with gradients.
TOKENS_PER_PASS = 4096


@dataclass(frozen=True)
class AnswerRows:
    """`prompt + " " + target` of each request, padded on the right.

    Attributes:
        last_prompt: index of each row's last prompt token.
        targets: target token ids of each row.
    """

    ids: Int[Tensor, "rows tokens"]
    mask: Int[Tensor, "rows tokens"]
    last_prompt: Int[Tensor, " rows"]
    targets: tuple[tuple[int, ...], ...]

    def positions(self) -> PromptPositions:
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        return PromptPositions(self.last_prompt, place <= self.last_prompt[:, None])


@contextmanager
def at_positions(model: EditableModel, positions: PromptPositions) -> Iterator[None]:
    """Tell the hooks of patches below (a codebook's) where the prompts end while their modules are run by hand."""
    model.positions = positions
    try:
        yield
    finally:
        model.positions = None


@dataclass(frozen=True)
class Labels:
    """To be predicted: `token[i]` at position `at[i]` of row `row[i]`; `is_stop` marks the one behind a target."""

    row: Int[Tensor, " labels"]
    at: Int[Tensor, " labels"]
    token: Int[Tensor, " labels"]
    is_stop: Bool[Tensor, " labels"]
    num_rows: int

    def select(self, rows: Int[Tensor, " kept"]) -> Labels:
        """Labels of some rows, renumbered in their order."""
        place = torch.full((self.num_rows,), -1, device=self.row.device)
        place[rows] = torch.arange(len(rows), device=self.row.device)
        kept = place[self.row] >= 0
        return Labels(place[self.row[kept]], self.at[kept], self.token[kept], self.is_stop[kept], len(rows))


def check_request(request: EditRequest) -> None:
    """Refuse what no editor can apply.

    Raises:
        InvalidRequest: empty prompt or target, or a subject that the prompt does not name.
    """
    if not request.target_new.strip():
        raise InvalidRequest(f"request {request.request_id} has an empty target; give the new object")
    try:
        place_of(request.prompt, request.subject)
    except InvalidRequest as error:
        raise InvalidRequest(f"request {request.request_id}: {error}") from error


def answer_rows(model: EditableModel, requests: Sequence[EditRequest]) -> AnswerRows:
    """Tokenise requests on the model's device.

    Raises:
        InvalidRequest: a request fails `check_request`, or its row exceeds the model's context.
    """
    for request in requests:
        check_request(request)
    rows = encode_rows(model.tokenizer, [r.prompt for r in requests], [continuation_of(r.target_new) for r in requests])
    limit = int(getattr(model.hf.config, "max_position_embeddings", 0))
    for request, row in zip(requests, rows, strict=True):
        if limit and len(row.ids) > limit:
            raise InvalidRequest(
                f"request {request.request_id} has {len(row.ids)} tokens, {model.name} reads {limit}; shorten it"
            )
    ids, mask = pad_right([r.ids for r in rows], model.pad_id)
    device = model.device
    return AnswerRows(
        ids.to(device),
        mask.to(device),
        torch.tensor([r.start - 1 for r in rows], device=device),
        tuple(tuple(r.ids[r.start :]) for r in rows),
    )


def label_logits(
    model: EditableModel, normed: Float[Tensor, "rows tokens d_model"], labels: Labels
) -> Float[Tensor, "labels vocab"]:
    """Logits where a label is to be predicted, from final hidden states (after the final norm); fp32."""
    return model.head(normed[labels.row, labels.at]).float()


def answer_labels(model: EditableModel, rows: AnswerRows, final: Float[Tensor, "rows tokens d_model"]) -> Labels:
    """Target tokens of every row, then the stop token that the model as it stands prefers after them."""
    device = rows.ids.device
    stops = model.stops.to(device)
    starts = rows.last_prompt.tolist()
    row, at, token, is_stop = [], [], [], []
    for i, (start, target) in enumerate(zip(starts, rows.targets, strict=True)):
        behind = int(bool(stops.any()))
        row += [i] * (len(target) + behind)
        at += range(start, start + len(target) + behind)
        token += [*target, *[0] * behind]
        is_stop += [False] * len(target) + [True] * behind
    labels = Labels(
        torch.tensor(row, device=device),
        torch.tensor(at, device=device),
        torch.tensor(token, device=device),
        torch.tensor(is_stop, device=device),
        len(starts),
    )
    with torch.no_grad():
        end = labels.is_stop
        ends = Labels(labels.row[end], labels.at[end], labels.token[end], end[end], labels.num_rows)
        preferred = label_logits(model, final, ends).masked_fill(~stops, float("-inf")).argmax(-1)
    return replace(labels, token=labels.token.masked_scatter(labels.is_stop, preferred))


def row_losses(logits: Float[Tensor, "labels vocab"], labels: Labels) -> Float[Tensor, " rows"]:
    """Mean cross-entropy, in nats, over the labels of each row: a long target weighs no more than a short one."""
    losses = F.cross_entropy(logits, labels.token, reduction="none")
    total = torch.zeros(labels.num_rows, device=logits.device).index_add(0, labels.row, losses)
    return total / torch.bincount(labels.row, minlength=labels.num_rows)


@torch.no_grad()
def row_leads(logits: Float[Tensor, "labels vocab"], labels: Labels, stops: Bool[Tensor, " vocab"]) -> Float[Tensor, " rows"]:
    """Smallest lead, in logits, of a row's labels over their best rivals; positive means exact match.

    Behind the target any stop will do: the lead there is that of the best stop over the best other token.
    """
    right = torch.zeros_like(logits, dtype=torch.bool)
    right[torch.arange(len(labels.token)), labels.token] = True
    right[labels.is_stop] = stops.to(logits.device)
    low = float("-inf")
    leads = logits.masked_fill(~right, low).amax(-1) - logits.masked_fill(right, low).amax(-1)
    smallest = torch.full((labels.num_rows,), float("inf"), device=logits.device)
    return smallest.scatter_reduce(0, labels.row, leads, "amin")
