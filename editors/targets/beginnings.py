"""What rows begin with before they name their subject, run once for all: the examples of a few-shot form, a chat's frame.

A beginning is found in its row alone and run alone, so that no row shows what else was run: its last bits are the same whether
it was run for this row or for an earlier one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from editors.asking.prefixes import LEAST_TOKENS
from editors.asking.tokens import pad_right
from editors.mechanics.contexts import LookupRow
from editors.mechanics.trace import Trace, trace
from editors.model import EditableModel

#: What is kept of beginnings for later rows, as a share of the model's bytes.
MOST_KEPT = 0.05
#: Arguments of a block that are not joined as the others are.
OWN_FORM = ("hidden_states", "attention_mask")
#: Keys and values of one beginning, (1, heads, tokens, width) each, for every layer.
Filled = list[tuple[Tensor, Tensor]]


class Beginnings:
    """The beginnings that were asked for last, with their keys and values; for one model, which stays as it is meanwhile."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, ...], Filled] = OrderedDict()
        self._ends_line: dict[int, bool] = {}

    def length(self, model: EditableModel, row: LookupRow) -> int:
        """Tokens of the row up to the last end of a line before its subject; 0 where those are too few to be worth it."""
        before = row.ids[: row.first]
        at = next((i for i in range(len(before), 0, -1) if self._is_line_end(model, before[i - 1])), 0)
        return at if at >= LEAST_TOKENS else 0

    def cache(self, model: EditableModel, beginning: tuple[int, ...], rows: int) -> DynamicCache | None:
        """What so many rows find behind them that begin so; None for an empty beginning."""
        if not beginning:
            return None
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._filled(model, beginning)):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache

    def _filled(self, model: EditableModel, beginning: tuple[int, ...]) -> Filled:
        if beginning not in self._kept:
            ids = torch.tensor([beginning])
            layers: list[Any] = trace(model, ids, torch.ones_like(ids), use_cache=True).cache.layers
            self._kept[beginning] = [(layer.keys, layer.values) for layer in layers]
        self._kept.move_to_end(beginning)
        while len(self._kept) > 1 and sum(map(_bytes, self._kept.values())) > MOST_KEPT * model.num_bytes:
            self._kept.popitem(last=False)
        return self._kept[beginning]

    def _is_line_end(self, model: EditableModel, token: int) -> bool:
        if token not in self._ends_line:
            self._ends_line[token] = str(model.tokenizer.decode([token])).endswith("\n")
        return self._ends_line[token]


def _bytes(filled: Filled) -> int:
    return sum(part.numel() * part.element_size() for layer in filled for part in layer)


def trace_rows(
    model: EditableModel, rows: Sequence[LookupRow], beginnings: Beginnings, *, outputs: Sequence[str], calls: Sequence[str]
) -> Trace:
    """`trace` of whole rows, right-padded, with their keys and values; in their beginnings outputs and calls hold zeros.

    Raises:
        EditRefused: see `trace`.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        cut = beginnings.length(model, row) if model.shares_prefixes else 0
        alike.setdefault(tuple(row.ids[:cut]), []).append(number)
    parts = []
    for beginning, own in alike.items():
        ids, mask = pad_right([rows[i].ids[len(beginning) :] for i in own], model.pad_id)
        past = beginnings.cache(model, beginning, len(own))
        seen = trace(model, ids, mask, outputs=outputs, calls=calls, use_cache=True, past=past)
        parts.append(_Part(torch.tensor(own), len(beginning), ids.shape[1], seen))
    return parts[0].seen if len(parts) == 1 and not parts[0].cut else _whole(parts)


@dataclass(frozen=True)
class _Part:
    """A pass over the rows of one beginning: their numbers among all, its tokens, and how many tokens followed it."""

    rows: Tensor
    cut: int
    width: int
    seen: Trace

    @property
    def own(self) -> slice:
        """Its tokens among those of whole rows."""
        return slice(self.cut, self.cut + self.width)


class _Joined:
    """Tensors of several parts, given in the parts' order, as one of whole rows (rows, tokens, ..)."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.parts = parts
        self.rows, self.tokens = sum(len(p.rows) for p in parts), max(p.own.stop for p in parts)
        self._masks: dict[tuple[int, ...], Tensor] = {}

    def states(self, found: Sequence[Tensor]) -> Tensor:
        """Of tensors (part's rows or 1, part's tokens, ..)."""
        whole = found[0].new_zeros(self.rows, self.tokens, *found[0].shape[2:])
        for part, states in zip(self.parts, found, strict=True):
            whole[part.rows, part.own] = states
        return whole

    def keys(self, found: Sequence[Tensor]) -> Tensor:
        """Of keys or values (part's rows, heads, beginning and part's tokens, width)."""
        whole = found[0].new_zeros(self.rows, found[0].shape[1], self.tokens, found[0].shape[3])
        for part, keys in zip(self.parts, found, strict=True):
            whole[part.rows, :, : part.own.stop] = keys
        return whole

    def mask(self, found: Sequence[Tensor | None]) -> Tensor | None:
        """Of masks (part's rows, 1, part's tokens, beginning and part's tokens); a part without one hides nothing."""
        given = [(part, mask) for part, mask in zip(self.parts, found, strict=True) if mask is not None]
        if not given:
            return None
        key = tuple(id(mask) for _, mask in given)
        # Blocks share a mask.
        if key not in self._masks:
            first = given[0][1]
            whole = first.new_full((self.rows, 1, self.tokens, self.tokens), first.dtype == torch.bool)
            for part, mask in given:
                whole[part.rows, :, part.own, : part.own.stop] = mask.expand(len(part.rows), -1, -1, -1)
            self._masks[key] = whole
        return self._masks[key]

    def argument(self, found: Sequence[Any]) -> Any:
        """Of a block's argument: what has the tokens for its second axis is joined, all else is the first part's."""
        first = found[0]
        if isinstance(first, tuple):
            return tuple(self.argument(of) for of in zip(*found, strict=True))
        has_tokens = isinstance(first, Tensor) and first.ndim in (2, 3) and first.shape[1] == self.parts[0].width
        return self.states(found) if has_tokens else first


def _whole(parts: Sequence[_Part]) -> Trace:
    joined, seen = _Joined(parts), [part.seen for part in parts]
    outputs = {path: joined.states([s.outputs[path] for s in seen]) for path in seen[0].outputs}
    calls: dict[str, dict[str, Any]] = {}
    for path, named in seen[0].calls.items():
        # Not the hidden states: they are the widest, and the blocks get others.
        calls[path] = {n: joined.argument([s.calls[path][n] for s in seen]) for n in named if n not in OWN_FORM}
        calls[path]["attention_mask"] = joined.mask([s.calls[path].get("attention_mask") for s in seen])
    cache = DynamicCache()
    while seen[0].cache.layers:
        # Let go as they are joined: together they are the largest tensors of an edit.
        layers: list[Any] = [s.cache.layers.pop(0) for s in seen]
        keys, values = joined.keys([layer.keys for layer in layers]), joined.keys([layer.values for layer in layers])
        cache.update(keys, values, len(cache.layers))
    return Trace({}, outputs, calls, joined.states([s.final for s in seen if s.final is not None]), cache)
