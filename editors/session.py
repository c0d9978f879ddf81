"""Modes: slice requests, call the editor, push the patch, yield. No editor knows of modes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from editors.base import Editor, Mode, Patch, Prepared
from editors.errors import UnsupportedMode
from editors.model import EditableModel
from warehouse.digests import digest_of
from warehouse.records import EditBatch, EditRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EditStep:
    """One patch, pushed; the model shows it while the step is in hand. `seconds` covers the edit alone."""

    batch: EditBatch
    patch: Patch
    seconds: float


def batch_of(requests: Sequence[EditRequest]) -> EditBatch:
    """A batch named by its requests, in order."""
    return EditBatch(batch_id=digest_of([r.request_id for r in requests])[:24], requests=tuple(requests))


def slices(requests: Sequence[EditRequest], size: int) -> list[list[EditRequest]]:
    """Consecutive slices; the last may be shorter."""
    return [list(requests[at : at + size]) for at in range(0, len(requests), size)]


def run_edits(
    editor: Editor,
    model: EditableModel,
    requests: Sequence[EditRequest],
    prepared: Prepared,
    *,
    mode: Mode,
    batch_size: int | None = None,
) -> Iterator[EditStep]:
    """Edit in one of the survey's modes, yielding after each patch so that the caller can measure between edits.

    `single` (SNS) and `batch` (BNS) take their patch off again before the next; `sequential` (SSE) and
    `sequential-batch` (BSE) keep it. `batch_size` is for the two batch modes; by default all requests are one batch.

    Raises:
        UnsupportedMode: the card does not grant the mode, or the batch exceeds `card.max_batch`.
    """
    card = editor.card
    if mode in card.experimental:
        log.warning("%s in mode %s is experimental: %s", card.name, mode, card.why_not)
    elif mode not in card.modes:
        raise UnsupportedMode(
            f"{card.name} has no mode {mode!r} ({card.why_not or 'its card grants ' + ', '.join(card.modes)})"
        )
    size = (batch_size or max(1, len(requests))) if mode in ("batch", "sequential-batch") else 1
    largest = min(size, len(requests))
    if card.max_batch is not None and largest > card.max_batch:
        raise UnsupportedMode(f"{card.name} edits at most {card.max_batch} at once, not {largest}; use mode 'sequential'")
    keep, depth = mode in ("sequential", "sequential-batch"), len(model.patches)
    for chunk in slices(requests, size):
        batch = batch_of(chunk)
        start = time.perf_counter()
        patch = editor.edit(model, batch, prepared)
        seconds = time.perf_counter() - start
        model.push(patch)
        try:
            yield EditStep(batch, patch, seconds)
        finally:
            # Also where the caller stops half way: a mode that keeps nothing must leave nothing.
            if not keep:
                model.rollback(depth)
