"""Writing files that may not fit: the disk's own error, with the folder and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from editors.errors import NotWritten


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raises NotWritten where a write inside fails: the disk is full, or the folder may not be written to."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise NotWritten(f"{folder} could not be written: {error}; check space and rights, then run again") from error
