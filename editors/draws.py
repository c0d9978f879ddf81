"""Random numbers that are equal on every device: drawn on the CPU, and nobody else's stream is moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's own stream of the CPU begins at `seed`, for code that takes no generator; afterwards it is where it was.

    Streams of other devices are left alone, where `torch.manual_seed` would begin them all anew.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
