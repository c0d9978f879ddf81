"""Token positions of subjects and targets, found by the tokenizer's offsets of the full string.

Lengths of separately tokenised pieces are never added up: merges across the boundary differ and BOS counts twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from editors.errors import InvalidRequest


@dataclass(frozen=True)
class EncodedRow:
    """One tokenised `prompt + continuation`: the continuation begins at token `start`."""

    ids: list[int]
    start: int


def continuation_of(target: str) -> str:
    """The target as text behind a prompt: exactly one leading space."""
    return " " + target.strip()


def encode_rows(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], continuations: Sequence[str]) -> list[EncodedRow]:
    """Tokenise each prompt with its continuation and find where the continuation starts.

    An empty prompt is read as the beginning-of-text token alone.
    """
    if not prompts:
        return []
    texts = [p + c for p, c in zip(prompts, continuations, strict=True)]
    encoded = tokenizer(texts, return_offsets_mapping=True)
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows = []
    for prompt, ids, offsets in zip(prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ids = list(ids)
        # Special tokens have the empty span (0, 0) and belong to the prompt. A lone space token has an empty span too
        # where offsets are trimmed, but one that ends behind the prompt.
        start = next((i for i, (_, b) in enumerate(offsets) if b > len(prompt)), len(ids))
        if start == 0:
            ids, start = [begin, *ids], 1
        rows.append(EncodedRow(ids, start))
    return rows


def last_subject_token(tokenizer: PreTrainedTokenizerBase, text: str, subject: str) -> int:
    """Index of the last token of the last occurrence of `subject` in `text` (the lookup token).

    The last occurrence: a context put before the prompt may mention the subject as well.

    Raises:
        InvalidRequest: the subject is not in the text.
    """
    at = text.rfind(subject)
    if not subject or at < 0:
        raise InvalidRequest(f"subject {subject!r} is not in the prompt {text!r}; a prompt must name its subject")
    end = at + len(subject)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    inside = [i for i, (a, b) in enumerate(offsets) if b > a and a < end and b > at]
    return inside[-1]


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(rows, tokens) ids and attention mask; padding stands on the right."""
    longest = max(len(r) for r in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if isinstance(candidate, int):
            return candidate
    return 0
