"""One piece of work for many items on copies of a small model, one core each; bit for bit as one after another.

What a matrix product gives depends, in its last bits, on how many threads share it. Work that must not show what is
done beside it therefore has one thread, whatever the process is set to; the other cores take other items.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from editors.model import EditableModel

Item = TypeVar("Item")
Result = TypeVar("Result")
#: A larger model is worth its threads more than its copies: it takes the items in turn, with all threads.
MAX_COPIED_BYTES = 1 << 30


def side_by_side(model: EditableModel, items: Sequence[Item], work: Callable[[EditableModel, Item], Result]) -> list[Result]:
    """`work(model, item)` for each item, in their order.

    As many items at once as torch has threads. Which of the two ways is taken depends on the model alone, so an item
    gives the same result alone and beside others. `work` must leave the model as it found it.

    Raises:
        Exception: whatever `work` raises, once the items that are under way have come to an end.
    """
    if model.device.type != "cpu" or model.is_spread or model.num_bytes > MAX_COPIED_BYTES:
        return [work(model, item) for item in items]
    with _one_thread() as threads:
        workers = max(1, min(threads, len(items)))
        # The first worker has the model itself, so that a single item costs no copy.
        models = [model, *(copy.deepcopy(model) for _ in range(workers - 1))]
        if workers == 1:
            return [work(model, item) for item in items]

        def share(number: int) -> list[Result]:
            # The number of threads is each thread's own.
            torch.set_num_threads(1)
            return [work(models[number], item) for item in items[number::workers]]

        with ThreadPoolExecutor(workers) as pool:
            shares = list(pool.map(share, range(workers)))
    return [shares[at % workers][at // workers] for at in range(len(items))]


@contextmanager
def _one_thread() -> Iterator[int]:
    """One thread for torch; yields how many it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
