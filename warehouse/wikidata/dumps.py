"""Wikidata JSON dumps, whole or a slice: one entity a line, plain, gzip, bzip2 or xz, read line by line.

A dump is a JSON array with one element a line, so its lines begin with `[`, end with a comma or are `]`; JSON lines are read
too. A line that cannot be read is given back with its number and the reason. A file that ends in the middle (of its
compression, its array or its last line) is an error: whoever compares it would take what is missing for what is gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic_core import from_json

from warehouse.errors import SourceError
from warehouse.sources.formats import BROKEN, opened
from warehouse.wikidata.entities import MAX_DOCUMENT_BYTES, EntityDocument, SetAside, parse_entity

WANTED = "a Wikidata JSON dump (.json, .json.gz, .json.bz2 or .json.xz), one entity a line"
_PIECE = 1024 * 1024


class BrokenDump(SourceError):
    """A dump that ends in the middle: names the file, the line, and how many bytes and items were read."""


@dataclass(frozen=True, slots=True)
class DumpLine:
    """One line: its number from 1, its bytes without array signs (none where it was too long), what it says."""

    number: int
    data: bytes
    entity: EntityDocument | SetAside


def read_dump(path: Path, progress: Callable[[int], None] | None = None) -> Iterator[DumpLine]:
    """The entities of a dump, in its order; memory holds one line at a time.

    Args:
        path: the compression is known by the first bytes, not by the name.
        progress: called after each line with the number of bytes of the file read so far (compressed ones).

    Raises:
        BrokenDump: after what came before, the file ends in the middle or is damaged.
        SourceError: the file is missing or cannot be opened, or is of another format than a dump; names the format.
    """
    items = 0
    with opened(path, WANTED) as (handle, raw):
        lines = _Lines(path, handle)
        try:
            for line in lines:
                items += isinstance(line.entity, EntityDocument)
                yield line
                if progress is not None:
                    progress(raw.tell())
            lines.check_end()
        except _Ended as ended:
            raise BrokenDump(
                f"{path}: {ended}; {raw.tell()} bytes and {items} items were read and nothing of them is kept. "
                "Get the file again"
            ) from ended.__cause__


class _Ended(Exception):
    """The file ends in the middle; says where."""


class _Lines:
    """The lines of a dump, and whether they come to a proper end."""

    def __init__(self, path: Path, handle: IO[bytes]) -> None:
        self._path, self._handle = path, handle
        self._number = self._depth = self._num_found = 0
        self._has_array = False
        self._last: bytes = b""

    def __iter__(self) -> Iterator[DumpLine]:
        while True:
            self._number += 1
            try:
                data, is_whole = _line(self._handle)
            except BROKEN as error:
                raise _Ended(f"line {self._number}: the file breaks off or is damaged here: {error}") from error
            if not data:
                return
            if not is_whole:
                self._last, self._num_found = b"", self._num_found + 1
                reason = f"line {self._number}: longer than {MAX_DOCUMENT_BYTES} bytes"
                yield DumpLine(self._number, b"", SetAside("", "too_large", reason))
            elif stripped := data.strip():
                self._last = data
                yield from self._found(stripped)

    def _found(self, line: bytes) -> Iterator[DumpLine]:
        if self._num_found == 0 and self._depth == 0:
            _refuse(self._path, line)
        starts, ends = line.startswith(b"["), line.endswith(b"]")
        self._depth += starts - ends
        self._has_array |= starts
        # Some slices are written on one line with the array's own signs around the entities.
        inner = line[starts : len(line) - ends].strip() if line != b"[" else b""
        inner = inner.removeprefix(b",").strip().removesuffix(b",").strip()
        if not inner:
            return
        for data in _elements(inner) if starts and ends else (inner,):
            found = parse_entity(data)
            if self._num_found == 0:
                self._refuse_spread(data, found)
            self._num_found += 1
            yield DumpLine(self._number, data, _named(self._number, found))

    def _refuse_spread(self, data: bytes, found: EntityDocument | SetAside) -> None:
        """Raises:
        SourceError: the first element is no entity but the beginning of one, or something around entities.
        """
        if not isinstance(found, SetAside):
            return
        if data == b"{":
            raise SourceError(
                f"{self._path}: this is JSON over many lines (pretty-printed); expected {WANTED}. "
                "Write it on lines: jq -c '.[]' for an array, jq -c . for documents"
            )
        try:
            value = from_json(data)
        except ValueError:
            return
        if isinstance(value, dict) and "id" not in value:
            way_out = "Take the entities out: jq -c '.entities[]'" if "entities" in value else "It names no entity"
            names = ", ".join(list(value)[:5])
            raise SourceError(
                f"{self._path}: this is an answer of an API or another document ({names}); expected {WANTED}. {way_out}"
            )

    def check_end(self) -> None:
        """Raises:
        SourceError: there was nothing in the file.
        _Ended: the array is not closed, or the last line is the beginning of an entity.
        """
        where = f"line {self._number - 1}"
        if self._num_found == 0 and not self._has_array:
            raise SourceError(f"{self._path}: the file is empty; expected {WANTED}")
        if self._depth < 0:
            raise _Ended(f"{where}: an array ends (`]`) that has no beginning, so the file's own beginning is missing")
        if self._depth > 0:
            raise _Ended(f"{where}: the array that the file begins with has no end (`]`), so the file breaks off")
        if not self._has_array and self._last and not self._last.endswith(b"\n"):
            try:
                from_json(self._last.strip().removesuffix(b","))
            except ValueError as error:
                raise _Ended(f"{where}: the file breaks off in the middle of it: {error}") from error


def _refuse(path: Path, line: bytes) -> None:
    """Raises:
    SourceError: the first line is no line of a dump.
    """
    if line[:1] not in (b"{", b"[", b"]"):
        what = "a table (CSV or the like)" if any(sign in line for sign in (b",", b"\t", b";")) else "no JSON"
        shown = line[:60].decode("utf-8", "backslashreplace")
        raise SourceError(f"{path}: this is {what}, its first line is {shown!r}; expected {WANTED}")


def _elements(inner: bytes) -> list[bytes]:
    """The elements of an array on one line; the line itself where it holds one, or is broken."""
    try:
        values = from_json(b"[" + inner + b"]")
    except ValueError:
        return [inner]
    if len(values) == 1:
        return [inner]
    return [json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") for value in values]


def _line(handle: IO[bytes]) -> tuple[bytes, bool]:
    """The next line, and whether it is within the limit; the rest of one that is not is skipped in pieces."""
    data = handle.readline(MAX_DOCUMENT_BYTES + 1)
    if len(data) <= MAX_DOCUMENT_BYTES or data.endswith(b"\n"):
        return data, True
    while (piece := handle.readline(_PIECE)) and not piece.endswith(b"\n"):
        continue
    return data[:1], False


def _named(number: int, found: EntityDocument | SetAside) -> EntityDocument | SetAside:
    """What was set aside says where it stands."""
    if isinstance(found, EntityDocument):
        return found
    return SetAside(found.entity_id, found.reason, f"line {number}: {found.sentence}", found.target)
