"""Rows of like length in one pass, so that little is padded, and what a token of a pass holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from editors.asking.tokens import pad_right
from editors.mechanics.contexts import LookupRow
from editors.mechanics.trace import Trace, trace
from editors.model import EditableModel


def length_groups(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Indices of the rows, shortest first, cut into groups of at most so many padded tokens; at least one row each."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    at = 0
    while at < len(order):
        # Sorted by length, so the last row of a group is its longest.
        size = 1
        while at + size < len(order) and (size + 1) * lengths[order[at + size]] <= most_tokens:
            size += 1
        yield order[at : at + size]
        at += size


def activation_bytes(model: EditableModel, blocks: int) -> int:
    """About what a token holds for a backward pass through so many blocks, fp32: twelve states and three of a feed-forward."""
    anatomy = model.anatomy
    d_mlp = model.weight(anatomy.mlp_out, 0).shape[1]
    return 4 * max(1, blocks) * (12 * anatomy.d_model(model.hf) + 3 * d_mlp)


def trace_lookups(
    model: EditableModel, rows: Sequence[LookupRow], most_tokens: int, place: str, *, outputs: Sequence[str] = ()
) -> Iterator[tuple[list[int], Trace]]:
    """Passes over rows cut behind their lookup tokens, up to the module `place`, whose input is kept.

    Yields:
        Indices of the rows of one pass, and what it showed, in their order.
    """
    for chosen in length_groups([row.lookup + 1 for row in rows], most_tokens):
        ids, mask = pad_right([rows[i].ids[: rows[i].lookup + 1] for i in chosen], model.pad_id)
        yield chosen, trace(model, ids, mask, inputs=(place,), outputs=outputs, stop_after=place)
