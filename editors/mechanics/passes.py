"""Rows of like length in one pass, what a token of a pass holds, and what is freed between passes given back."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

from editors.asking.tokens import pad_right
from editors.mechanics.contexts import LookupRow
from editors.mechanics.trace import Trace, trace
from editors.model import EditableModel

#: Models with so many bytes of weights have blocks that are worth a walk through the heap, which takes milliseconds.
WORTH_GIVING_BACK = 64 << 20


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


def give_back(model: EditableModel) -> None:
    """Between two parts of an edit: what the first has freed goes back to the system, where the C library can (glibc).

    It keeps freed blocks below its heap's last one in use, and matrices of the next part seldom fit into the holes: on
    SmolLM2 a tenth of the model stood free beside memit's solves. Told to map large blocks on their own (`mallopt`), every
    pass pays for fresh pages: two fifths more time. An accelerator's allocator is torch's; a small model is not worth it.
    """
    if model.num_bytes >= WORTH_GIVING_BACK:
        trim_heap()


def trim_heap() -> None:
    """Free memory of the allocator goes to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
