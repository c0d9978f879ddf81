"""Documents to packed token rows, with loss weights and subject spans."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from warehouse.reference.documents import Document

WEIGHTS = {"object": 1.0, "subject": 0.3, "text": 0.3, "given": 0.0}
PROSE_WEIGHT, END_WEIGHT = 0.5, 0.3
BUFFER_DOCUMENTS = 48


@dataclass(frozen=True)
class TokenDocument:
    """ids with, per token, its loss weight and the end index of the masked subject span it is in (-1: none)."""

    ids: list[int]
    weights: list[float]
    span_end: list[int]


@dataclass(frozen=True)
class Rows:
    """A batch of packed rows; every tensor is (rows, tokens)."""

    ids: Tensor
    weights: Tensor
    span_end: Tensor

    def masks(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Additive attention masks (rows, 1, tokens, tokens) for early and for late layers.

        Past a subject, early layers read none of its tokens and late layers only the last one.
        """
        tokens = self.ids.shape[1]
        position = torch.arange(tokens)
        causal = position[None, :] > position[:, None]
        subject = self.span_end >= 0
        after = position[None, :, None] > self.span_end[:, None, :]
        early = causal | (subject[:, None, :] & after)
        late = causal | ((subject & (self.span_end != position))[:, None, :] & after)
        low = torch.finfo(dtype).min
        return tuple(torch.zeros(m.shape, dtype=dtype).masked_fill_(m, low)[:, None] for m in (early, late))  # type: ignore[return-value]


def encode_documents(documents: list[Document], tokenizer: PreTrainedTokenizerFast) -> list[TokenDocument]:
    texts = [d.text for d in documents]
    encodings = tokenizer(texts, return_offsets_mapping=True, add_special_tokens=False)
    end_id: Any = tokenizer.eos_token_id
    encoded = []
    for document, ids, offsets in zip(documents, encodings["input_ids"], encodings["offset_mapping"], strict=True):
        edges, roles, at = [], [], 0
        for role, piece in document.pieces:
            at += len(piece)
            edges.append(at)
            roles.append(role)
        # A token belongs to the piece in which its last character stands.
        piece_of = [min(bisect.bisect_right(edges, end - 1), len(edges) - 1) for _, end in offsets]
        has_object = "object" in roles
        weights = [WEIGHTS[roles[p]] if has_object else PROSE_WEIGHT for p in piece_of]
        span_end = [-1] * len(ids)
        if document.masked:
            last = {p: i for i, p in enumerate(piece_of)}
            span_end = [last[p] if roles[p] == "subject" else -1 for p in piece_of]
        encoded.append(TokenDocument([*ids, end_id], [*weights, END_WEIGHT], [*span_end, -1]))
    return encoded


def pack(documents: Iterable[TokenDocument], length: int, pad_id: int) -> Iterator[TokenDocument]:
    """Best-fit packing: fill each row with the largest document of a small buffer that still fits."""
    source, buffer = iter(documents), []

    def refill() -> None:
        while len(buffer) < BUFFER_DOCUMENTS and (document := next(source, None)) is not None:
            bisect.insort(buffer, document, key=lambda d: len(d.ids))

    refill()
    while buffer:
        ids: list[int] = []
        weights: list[float] = []
        span_end: list[int] = []
        # The oldest wait is bounded by the buffer: start from the largest document, cut if it exceeds a row.
        chosen = buffer.pop()
        while True:
            shift = len(ids)
            ids += chosen.ids
            weights += chosen.weights
            span_end += [e + shift if e >= 0 else -1 for e in chosen.span_end]
            refill()
            fit = bisect.bisect_right(buffer, length - len(ids), key=lambda d: len(d.ids))
            if fit == 0:
                break
            chosen = buffer.pop(fit - 1)
        missing = length - len(ids)
        yield TokenDocument(
            (ids + [pad_id] * missing)[:length], (weights + [0.0] * missing)[:length], (span_end + [-1] * missing)[:length]
        )


def stack(rows: list[TokenDocument]) -> Rows:
    return Rows(
        torch.tensor([r.ids for r in rows]),
        torch.tensor([r.weights for r in rows]),
        torch.tensor([r.span_end for r in rows]),
    )
