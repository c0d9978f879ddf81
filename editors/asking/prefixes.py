"""Prompts of a call that begin alike: what they share is found as tokens and run through the model once.

Examples before a question make two thirds of a few-shot prompt and are the same for every question of a relation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from editors.asking.tokens import EncodedRow

#: Shared tokens of an example or two; shorter beginnings are a template's, and their rows are run as they always were.
LEAST_TOKENS = 24
#: Tokens that a group must save. What a prefix costs (a small pass of its own, fuller passes broken up) was as much as 50
#: tokens on one CPU core, for the reference model (prefixes of 16 to 32, 3 or 4 rows) and for SmolLM2-135M alike.
LEAST_SAVED = 64


@dataclass(frozen=True)
class Group:
    """Rows of a call whose first `length` tokens are the same."""

    length: int
    rows: tuple[int, ...]


@dataclass
class _Open:
    """A run of sorted rows that share `length` tokens, still growing: the best way found to share inside of it."""

    length: int
    first: int
    saved: int = 0
    groups: list[tuple[int, int, int]] = field(default_factory=list)


def prefix_groups(rows: Sequence[EncodedRow], limit: int) -> tuple[list[Group], list[int]]:
    """Rows that share a prefix, and all other rows in their order.

    Groups are chosen for the tokens that they save in all: of relations with examples of their own each becomes a group,
    not all of them for a start token or an instruction that they have in common. A group depends on the rows' tokens
    alone, so two models of one tokenizer, asked the same call, compute it alike.

    Args:
        limit: the model's context. Rows beyond it lose their left end, and with it the prefix: they share nothing.
    """
    # The last prompt token stays with the rest: it predicts the first of the answer, and hooks act on it.
    able = [i for i, row in enumerate(rows) if row.start > LEAST_TOKENS and len(row.ids) <= limit]
    heads = {i: rows[i].ids[: rows[i].start - 1] for i in able}
    able.sort(key=lambda i: heads[i])
    shared = [_common(heads[a], heads[b]) for a, b in pairwise(able)]
    groups = [Group(length, tuple(able[first : last + 1])) for length, first, last in _best(shared)]
    inside = {i for group in groups for i in group.rows}
    return groups, [i for i in range(len(rows)) if i not in inside]


def _best(shared: Sequence[int]) -> list[tuple[int, int, int]]:
    """(length, first, last) of the runs that save most, from how much each sorted row shares with the next.

    Runs of rows with a common prefix are a tree, longer prefixes inside shorter ones; it is walked once, from its leaves.
    """
    stack = [_Open(0, 0)]
    for last, length in enumerate([*shared, 0]):
        first = last
        inner: list[_Open] = []
        while stack[-1].length > length:
            done = _closed(stack.pop(), last)
            first = done.first
            if stack[-1].length >= length:
                _take(stack[-1], done)
            else:
                inner = [done]
        if stack[-1].length < length:
            stack.append(_Open(length, first))
            for done in inner:
                _take(stack[-1], done)
    return stack[0].groups


def _closed(run: _Open, last: int) -> _Open:
    """The run with its end known: one group, where that saves more than the groups inside of it."""
    saved = (last - run.first) * run.length - LEAST_SAVED
    if run.length >= LEAST_TOKENS and saved > max(0, run.saved):
        return _Open(run.length, run.first, saved, [(run.length, run.first, last)])
    return run


def _take(run: _Open, inner: _Open) -> None:
    run.saved += inner.saved
    run.groups += inner.groups


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many first tokens are the same."""
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


class _SharedLayer(DynamicLayer):
    """Keys and values of one prefix (1, heads, tokens, width), shown before those of any number of rows.

    It keeps nothing of the rows, so that one prefix serves batch after batch.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return _before(self.keys, key_states), _before(self.values, value_states)


def _before(prefix: Tensor | None, states: Tensor) -> Tensor:
    assert prefix is not None
    return torch.cat([prefix.expand(len(states), -1, -1, -1), states], dim=-2)


def shared_cache(filled: Cache) -> Cache:
    """The cache of one row's pass as a prefix of any number of rows."""
    layers: list[Any] = filled.layers
    shared: list[Any] = [_SharedLayer(layer.keys, layer.values) for layer in layers]
    return Cache(layers=shared)
