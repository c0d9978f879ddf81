"""Wikidata JSON dumps, whole or a slice: one entity a line, plain, gzip or bzip2, read line by line.

A dump is a JSON array with one element a line, so its lines begin with `[`, end with a comma or are `]`. A line that
cannot be read is given back with its number and the reason; a file that breaks off gives what came before.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from warehouse.errors import SourceError
from warehouse.sources.entities import MAX_DOCUMENT_BYTES, Entity, SetAside, parse_entity

_MAGIC = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}
#: What the decompressors raise on a file that is cut off or damaged.
_BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError)
_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class DumpLine:
    """One line: its number from 1, its bytes without array signs (none where it was too long), what it says."""

    number: int
    data: bytes
    entity: Entity | SetAside


def read_dump(path: Path, progress: Callable[[int], None] | None = None) -> Iterator[DumpLine]:
    """The entities of a dump, in its order; memory holds one line at a time.

    Args:
        path: the compression is known by the first bytes, not by the name.
        progress: called after each line with the number of bytes of the file read so far (compressed ones).

    Raises:
        SourceError: the file is missing or cannot be opened.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file; give a Wikidata JSON dump (.json, .json.gz or .json.bz2)")
    try:
        with path.open("rb") as raw:
            open_as = _MAGIC.get(raw.read(2))
            raw.seek(0)
            handle = cast(IO[bytes], raw if open_as is None else open_as(raw, "rb"))
            for line in _lines(handle):
                yield line
                if progress is not None:
                    progress(raw.tell())
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error


def _lines(handle: IO[bytes]) -> Iterator[DumpLine]:
    number = 0
    while True:
        number += 1
        try:
            data, is_whole = _line(handle)
        except _BROKEN as error:
            reason = f"line {number}: the file breaks off or is damaged here: {error}"
            yield DumpLine(number, b"", SetAside("", "undecodable", reason))
            return
        if not data:
            return
        data = data.strip().removesuffix(b",") if is_whole else b""
        if not is_whole:
            reason = f"line {number}: longer than {MAX_DOCUMENT_BYTES} bytes"
            yield DumpLine(number, b"", SetAside("", "too_large", reason))
        elif data not in (b"", b"[", b"]"):
            # Some slices are written on one line with the array's own signs around a single entity.
            data = data.removeprefix(b"[").removesuffix(b"]") if data.startswith(b"[{") else data
            yield DumpLine(number, data, _named(number, parse_entity(data)))


def _line(handle: IO[bytes]) -> tuple[bytes, bool]:
    """The next line, and whether it is within the limit; the rest of one that is not is skipped in pieces."""
    data = handle.readline(MAX_DOCUMENT_BYTES + 1)
    if len(data) <= MAX_DOCUMENT_BYTES or data.endswith(b"\n"):
        return data, True
    while (piece := handle.readline(_PIECE)) and not piece.endswith(b"\n"):
        continue
    return data[:1], False


def _named(number: int, found: Entity | SetAside) -> Entity | SetAside:
    """What was set aside says where it stands."""
    if isinstance(found, Entity):
        return found
    return SetAside(found.entity_id, found.reason, f"line {number}: {found.sentence}", found.target)
