"""The layers above an edit, re-run on cached states from the lookup token on.

By causality nothing before the lookup token depends on the edit: its keys and values are taken once and stay. What an
optimisation step costs is then proportional to the layers above and to the few tokens from the subject's end on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from editors.mechanics.behind import Behind, behind
from editors.mechanics.trace import Trace, hidden_of
from editors.model import EditableModel

#: Two passes are taken for one where they run at most this share of its tokens. More than two gave their gain away again to
#: smaller products (SmolLM2: 5.2 s in one, 4.3 s in two, 4.7 s in four).
WORTH_A_CUT = 0.7


class FrozenPrefix:
    """Stands in for a KV cache inside a block: puts the fixed keys and values before the fresh ones, stores nothing."""

    def __init__(self, layers: dict[int, tuple[Tensor, Tensor]]) -> None:
        self.layers = layers

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        before_keys, before_values = self.layers[layer_idx]
        return torch.cat([before_keys, keys], dim=-2), torch.cat([before_values, values], dim=-2)

    def select(self, rows: Tensor) -> FrozenPrefix:
        # A block's keys and values lie where it is computed.
        return FrozenPrefix({i: (k[rows.to(k.device)], v[rows.to(v.device)]) for i, (k, v) in self.layers.items()})


@dataclass(frozen=True)
class Suffix:
    """Cached rows above one layer; token 0 of each row is its lookup token.

    Attributes:
        hidden: (rows, tokens, d_model) output of the layer.
        blocks: the blocks above it.
        calls: each block's further arguments; tensors among them have the rows first.
        prefix: keys and values of the tokens before the lookup token.
        cache: the argument of a block that `prefix` is handed in by.
        behind: where changes are counted at the feed-forward's output and a norm stands behind it, that norm.
        marked: (rows, tokens) the tokens that are changed, where some rows name their subject more than once; None where
            only token 0 is.
    """

    hidden: Tensor
    blocks: tuple[nn.Module, ...]
    calls: tuple[dict[str, Any], ...]
    prefix: FrozenPrefix
    cache: str
    behind: Behind | None = None
    marked: Tensor | None = None

    def run(self, change: Tensor) -> Tensor:
        """Output of the last block (rows, tokens, d_model) with `change` (rows, d_model) added at the lookup token."""
        if self.marked is not None:
            spread = change[:, None].expand(-1, self.hidden.shape[1], -1)
            spread = spread if self.behind is None else self.behind(spread)
            h = self.hidden + spread.to(self.hidden.dtype) * self.marked[:, :, None]
        else:
            change = change if self.behind is None else self.behind(change)
            h = torch.cat([self.hidden[:, :1] + change.to(self.hidden.dtype)[:, None], self.hidden[:, 1:]], dim=1)
        for block, call in zip(self.blocks, self.calls, strict=True):
            h = hidden_of(block(h, **{self.cache: self.prefix}, **call))
        return h

    def select(self, rows: Tensor) -> Suffix:
        """The same for some of the rows."""
        calls = tuple({name: _select(value, rows) for name, value in call.items()} for call in self.calls)
        passed = None if self.behind is None else self.behind.select(rows)
        marked = None if self.marked is None else self.marked[rows]
        return Suffix(self.hidden[rows], self.blocks, calls, self.prefix.select(rows), self.cache, passed, marked)

    def narrow(self, tokens: int) -> Suffix:
        """The same rows without what lies behind their first so many tokens."""
        width = self.hidden.shape[1]
        passed = self.behind
        if passed is not None and self.marked is not None:
            passed = Behind(passed.norm, passed.outputs[:, :tokens])
        return replace(
            self,
            hidden=self.hidden[:, :tokens],
            calls=tuple({name: _narrowed(value, width, tokens) for name, value in call.items()} for call in self.calls),
            behind=passed,
            marked=None if self.marked is None else self.marked[:, :tokens],
        )


@dataclass(frozen=True)
class SuffixParts:
    """Rows that run in parts of like width; stands in for one `Suffix`.

    A chat names its subject a dozen tokens before its end, a statement one or two: padded to the widest, most of what is
    computed is padding.

    Attributes:
        parts: each with the rows that it runs.
        order: (rows,) where each row stands among the parts' rows, one part behind the other.
        width: tokens of the widest.
    """

    parts: tuple[tuple[Tensor, Suffix], ...]
    order: Tensor
    width: int

    @property
    def hidden(self) -> Tensor:
        """Of the first part; for its dtype and device."""
        return self.parts[0][1].hidden

    def run(self, change: Tensor) -> Tensor:
        """As `Suffix.run`; zeros behind a part's own width."""
        found = [part.run(change[rows]) for rows, part in self.parts]
        padded = [nn.functional.pad(h, (0, 0, 0, self.width - h.shape[1])) for h in found]
        return torch.cat(padded)[self.order]

    def select(self, rows: Tensor) -> SuffixParts:
        """The same for some of the rows, given in ascending order."""
        number = torch.full((len(self.order),), -1, dtype=torch.long, device=rows.device)
        number[rows] = torch.arange(len(rows), device=rows.device)
        kept: list[tuple[Tensor, Suffix]] = []
        for own, part in self.parts:
            still = (number[own] >= 0).nonzero()[:, 0]
            if len(still):
                kept.append((number[own[still]], part.select(still)))
        return _parted(kept, self.width)


def in_parts(suffix: Suffix, tokens: Tensor) -> Suffix | SuffixParts:
    """The suffix cut in two by the width of its rows, where that spares enough; or as it is.

    Args:
        tokens: (rows,) how many of its tokens each row needs.
    """
    widths, order = tokens.sort()
    rows, widest = len(widths), int(widths[-1])
    narrow = torch.arange(1, rows, device=widths.device)
    held = narrow * widths[:-1] + (rows - narrow) * widest
    if rows < 2 or int(held.min()) > WORTH_A_CUT * rows * widest:
        return suffix
    cut = int(held.argmin()) + 1
    chosen = [order[:cut].sort().values, order[cut:].sort().values]
    return _parted([(own, suffix.select(own).narrow(int(tokens[own].max()))) for own in chosen], widest)


def _parted(parts: Sequence[tuple[Tensor, Suffix]], width: int) -> SuffixParts:
    return SuffixParts(tuple(parts), torch.cat([own for own, _ in parts]).argsort(), width)


def suffix_of(
    model: EditableModel,
    traced: Trace,
    layer: int,
    lookup: Tensor,
    ends: Tensor,
    written: Tensor | None = None,
    marked: Tensor | None = None,
) -> Suffix:
    """Cut a traced pass (outputs of `layer`, calls of the blocks above, cache) to tokens `lookup .. ends - 1`.

    Args:
        lookup, ends: (rows,) index of the lookup token, and the length of each row.
        written: the feed-forward's output, where changes are changes of that: (rows, d_model) at the lookup token, or
            (rows, whole tokens, d_model) where `marked` is given; None where they are changes of the block's output.
        marked: (rows, whole tokens) the tokens to change; None where only the lookup token is.
    """
    anatomy, depth = model.anatomy, model.anatomy.num_layers(model.hf)
    hidden = traced.outputs[anatomy.block.format(layer=layer)]
    device = hidden.device
    lookup, ends = lookup.to(device), ends.to(device)
    tokens, width, before = hidden.shape[1], int((ends - lookup).max()), int(lookup.max())
    # Rows shorter than the widest repeat their last token; causality keeps that from every position that is read.
    place = (lookup[:, None] + torch.arange(width, device=device)).clamp(max=tokens - 1)
    low = torch.finfo(hidden.dtype).min
    sees_prefix = torch.arange(before, device=device)[None, None, :] < lookup[:, None, None]
    sees_own = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    sees = torch.cat([sees_prefix.expand(-1, width, -1), sees_own.expand(len(lookup), -1, -1)], dim=2)[:, None]
    mask = torch.zeros(sees.shape, dtype=hidden.dtype, device=device).masked_fill_(~sees, low)
    blocks, calls, prefix = [], [], {}
    cuts: dict[int, Tensor] = {}
    for index in range(layer + 1, depth):
        path = anatomy.block.format(layer=index)
        named = {n: _follow(v, place, tokens) for n, v in traced.calls[path].items()}
        given = named.pop("attention_mask", None)
        named = {n: v for n, v in named.items() if n not in ("hidden_states", anatomy.cache)}
        if id(given) not in cuts:
            cuts[id(given)] = _as_given(mask, given, place, before)
        blocks.append(model.hf.get_submodule(path))
        calls.append(named | {"attention_mask": cuts[id(given)], "use_cache": True})
        cached = traced.cache.layers[index]
        prefix[index] = (cached.keys[:, :, :before], cached.values[:, :, :before])
    at_tokens = place[:, :, None].expand(-1, -1, hidden.shape[2])
    if marked is not None:
        marked, written = marked.to(device).gather(1, place), None if written is None else written.gather(1, at_tokens)
    passed = None if written is None else behind(model, layer, written)
    picked = hidden.gather(1, at_tokens)
    return Suffix(picked, tuple(blocks), tuple(calls), FrozenPrefix(prefix), anatomy.cache, passed, marked)


def _as_given(mask: Tensor, given: Any, place: Tensor, before: int) -> Tensor:
    """The suffix's mask (rows, 1, width, before + width) without what the block's own hides: beyond a sliding window."""
    if not isinstance(given, Tensor) or given.ndim != 4:
        return mask
    hidden = ~given if given.dtype == torch.bool else given < 0
    hidden = hidden[:, :1].expand(place.shape[0], -1, -1, -1)
    rows = hidden.gather(2, place[:, None, :, None].expand(-1, -1, -1, hidden.shape[3]))
    own = rows.gather(3, place[:, None, None, :].expand(-1, -1, place.shape[1], -1))
    return mask.masked_fill(torch.cat([rows[..., :before], own], dim=3), torch.finfo(mask.dtype).min)


def _follow(value: Any, place: Tensor, tokens: int) -> Any:
    """Tensors with a token axis (position ids, rotary embeddings) at the chosen places, one row each."""
    if isinstance(value, tuple):
        return tuple(_follow(v, place, tokens) for v in value)
    if isinstance(value, Tensor) and value.ndim in (2, 3) and value.shape[1] == tokens:
        rows = value.expand(place.shape[0], *value.shape[1:])
        index = place if value.ndim == 2 else place[:, :, None].expand(-1, -1, value.shape[2])
        return rows.gather(1, index)
    return value


def _narrowed(value: Any, width: int, tokens: int) -> Any:
    """Tensors with a token axis, and masks (rows, 1, width, before + width), without what lies behind."""
    if isinstance(value, tuple):
        return tuple(_narrowed(v, width, tokens) for v in value)
    if isinstance(value, Tensor) and value.ndim == 4:
        return value[:, :, :tokens, : value.shape[3] - width + tokens]
    if isinstance(value, Tensor) and value.ndim in (2, 3) and value.shape[1] == width:
        return value[:, :tokens]
    return value


def _select(value: Any, rows: Tensor) -> Any:
    if isinstance(value, tuple):
        return tuple(_select(v, rows) for v in value)
    return value[rows] if isinstance(value, Tensor) else value
