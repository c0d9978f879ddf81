"""What kind of file this is, by its first bytes: three compressions are read, and everything else that is no text is refused.

A file in a wrong format looks to a line reader like a file without anything in it. So each is known by name, and the error
says how to make of it what is read here.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from warehouse.errors import SourceError

#: What the decompressors raise on a file that is cut off or damaged.
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError)
BOM = b"\xef\xbb\xbf"
#: File name endings of newline-delimited JSON, in lower case.
LINE_SUFFIXES = (".jsonl", ".ndjson")
#: Bytes looked at to tell a format.
HEAD_BYTES = 1 << 16

_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
#: First bytes, name, and how to get on.
_FOREIGN = (
    (b"\xff\xfe\x00\x00", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\x28\xb5\x2f\xfd", "Zstandard", "unpack it first: zstd -d"),
    (b"\x04\x22\x4d\x18", "LZ4", "unpack it first: lz4 -d"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it first"),
    (b"PAR1", "Parquet", "write it as JSON lines first"),
    (b"SQLite format 3\x00", "an SQLite database", "write it as JSON lines first"),
    (b"%PDF", "a PDF", "write it as JSON lines first"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the file: git lfs pull"),
    (b"<", "HTML or XML, perhaps an error page saved instead of the file", "fetch the file again"),
)  # fmt: skip
_SEPARATORS = {b"\t": "tab-separated", b",": "comma-separated", b";": "semicolon-separated"}


@contextmanager
def opened(path: Path, wanted: str) -> Iterator[tuple[io.BufferedReader[Any], IO[bytes]]]:
    """(the text behind the compression and a byte-order mark, the file itself, whose `tell` counts the bytes read).

    Args:
        wanted: what is expected there, for messages.

    Raises:
        SourceError: the file is missing or cannot be opened, or is of a format that is not read.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file; give the path of {wanted}")
    try:
        raw = path.open("rb")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    with raw:
        start = raw.read(8)
        raw.seek(0)
        opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
        unpacked = cast(io.BufferedReader, raw if opener is None else opener(raw, "rb"))
        # Looks ahead without moving on: a bzip2 or xz stream cannot be wound back cheaply.
        handle = io.BufferedReader(_Unpacked(unpacked), HEAD_BYTES)
        try:
            head = handle.peek(HEAD_BYTES)
        except BROKEN as error:
            raise SourceError(f"{path}: the file breaks off or is damaged at its start: {error}; get it again") from error
        refuse_foreign(path, head, wanted)
        if head.startswith(BOM):
            handle.read(len(BOM))
        yield handle, raw


class _Unpacked(io.RawIOBase):
    """A decompressed stream as a raw one, read in single steps: what comes before a break is given out before the error."""

    def __init__(self, inner: io.BufferedReader[Any]) -> None:
        self._inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        data = self._inner.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def refuse_foreign(path: Path, head: bytes, wanted: str) -> None:
    """Raises:
    SourceError: these first bytes are of a known format that is no UTF-8 text; names it and the way out.
    """
    # One bad first line before JSON is one bad record.
    has_objects = b"\n{" in head
    for magic, name, way_out in _FOREIGN:
        if head.startswith(magic) or (magic == b"<" and head.lstrip().startswith(magic)):
            if magic == b"<" and has_objects:
                continue
            raise SourceError(f"{path}: this is {name}; expected {wanted}. {way_out[0].upper()}{way_out[1:]}")
    start = head[:4]
    if 0 in start and not has_objects:
        # Without a mark: every other byte of Latin text in UTF-16 is zero.
        zeros = tuple(byte == 0 for byte in start)
        if zeros in ((False, True, False, True), (True, False, True, False)):
            raise SourceError(
                f"{path}: this is UTF-16 text without a byte-order mark; expected {wanted}. Convert it: iconv -t UTF-8"
            )
        raise SourceError(f"{path}: this is no text, it begins with {start!r}; expected {wanted}. Get the file again")


def refuse_no_lines(path: Path, head: bytes) -> None:
    """Refuse what has no JSON object at the beginning of any of its first lines.

    Raises:
        SourceError: names what it looks like.
    """
    lines = [line for line in (line.strip() for line in head.split(b"\n")) if line]
    if not lines:
        return
    first, second = lines[0], lines[1] if len(lines) > 1 else b""
    wanted = "expected one JSON object on each line"
    has_objects = any(line.startswith(b"{") for line in lines)
    # One broken record at the beginning is no reason to refuse a night: the next line has to belong to the same document.
    goes_on = second == b"{" or second.endswith(b",") or b"]" in lines
    is_array = goes_on if first == b"[" else first.startswith(b"[") and (first.endswith((b",", b"{")) or not has_objects)
    if is_array or (first.replace(b" ", b"").startswith(b"[{") and len(lines) == 1):
        raise SourceError(f"{path}: this is one JSON array; {wanted}. Write its elements on lines: jq -c '.[]'")
    if first == b"{" and second.startswith(b'"'):
        raise SourceError(f"{path}: this is JSON over many lines (pretty-printed); {wanted}. Write it on lines: jq -c .")
    if not has_objects:
        separator = next((name for sign, name in _SEPARATORS.items() if sign in first), None)
        what = f"a {separator} table (CSV)" if separator and b"\x00" not in first else "no JSON"
        raise SourceError(f"{path}: this is {what}, its first line is {first[:60].decode('utf-8', 'replace')!r}; {wanted}")
