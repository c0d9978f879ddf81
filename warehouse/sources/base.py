"""Where updates come from: one protocol, and the line reader that every file source shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pydantic_core import from_json

from warehouse.digests import sha256_bytes
from warehouse.errors import SourceError
from warehouse.night_names import natural
from warehouse.records import UpdateRecord
from warehouse.sources.formats import BROKEN, HEAD_BYTES, LINE_SUFFIXES, opened, refuse_no_lines

#: A record larger than this is kept as received but never parsed.
MAX_RECORD_BYTES = 64 * 1024
#: Longer ids are not ids; such a record is named by its digest.
MAX_ID_CHARS = 200


class Source(Protocol):
    """A stream of update records cut into nights. Reading a night again gives the same records with the same ids."""

    @property
    def name(self) -> str:
        """Stored with every record; a record id is unique within its source."""
        ...

    def nights(self) -> tuple[str, ...]:
        """Names of the nights that can be read, in order of time.

        Raises:
            SourceError: the file or folder is missing.
        """
        ...

    def records(self, night: str) -> Iterator[UpdateRecord]:
        """Every record of a night as received, broken ones included.

        Raises:
            SourceError: no such night, or its file is missing or empty.
        """
        ...


def read_lines(path: Path) -> Iterator[str]:
    """The non-blank lines of a file one by one, without their line ends; gzip, bzip2 and xz are unpacked.

    Bytes that are no UTF-8 come as `\\xNN`, so that the text can be stored and still shows what was received.

    Raises:
        SourceError: the file is missing, is no file, has no line in it, breaks off inside its compression, or is of a format
            that holds no lines of JSON.
    """
    found = 0
    with opened(path, "newline-delimited JSON") as (handle, _):
        refuse_no_lines(path, handle.peek(HEAD_BYTES))
        try:
            for line in handle:
                text = line.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
                if text.strip():
                    found += 1
                    yield text
        except BROKEN as error:
            raise SourceError(f"{path}: the file breaks off or is damaged after {found} lines: {error}") from error
    if not found:
        raise SourceError(f"{path}: the file is empty; expected one JSON object on each line")


def decode_object(raw: str) -> dict[str, Any] | None:
    """The JSON object in a line, or None where it is too large, no JSON, or no object. Never raises."""
    data = raw.encode("utf-8", "surrogatepass")
    if len(data) > MAX_RECORD_BYTES:
        return None
    try:
        # Not `json.loads`: it meets deep nesting with RecursionError.
        value = from_json(data, allow_inf_nan=False)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class RecordIds:
    """Ids for the records of one file, the same at every reading.

    A record keeps its own id. A line without a usable one is named by the digest of night, line and how often the
    same line came before; so is a second line that claims an id already taken, because nothing may be lost.
    """

    def __init__(self, night: str) -> None:
        self._night = night
        self._taken: set[str] = set()
        self._seen: Counter[str] = Counter()

    def assign(self, raw: str, own_id: object = None) -> str:
        record_id = own_id
        if not isinstance(own_id, str) or not own_id.strip() or len(own_id) > MAX_ID_CHARS or own_id in self._taken:
            line = sha256_bytes(raw.encode("utf-8", "surrogatepass"))
            record_id = f"{self._night}-{sha256_bytes(f'{self._night}|{line}|{self._seen[line]}'.encode())[:16]}"
            self._seen[line] += 1
        assert isinstance(record_id, str)
        self._taken.add(record_id)
        return record_id


def read_time(value: object) -> datetime | None:
    """A time with zone (UTC where none is given), or None where the value is no ISO time."""
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
        return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    except ValueError:
        return None


def parse_time(value: object) -> datetime | None:
    """A time in UTC, or None where the value is no ISO time or UTC has no such moment (`0001-01-01T00:00:00+01:00`)."""
    time = read_time(value)
    try:
        return None if time is None else time.astimezone(UTC)
    except OverflowError:
        return None


def night_of_lines(path: Path, suffix: str = "") -> str | None:
    """The night that a file's name stands for: without the endings of JSON lines and of a compression, in any case.

    Args:
        suffix: what stands before those endings and does not belong to the night's name.

    Returns:
        None where the name has none of the endings.
    """
    endings = (suffix + ending + packed for ending in LINE_SUFFIXES for packed in ("", ".gz", ".bz2", ".xz"))
    return next((path.name[: -len(ending)] for ending in endings if path.name.lower().endswith(ending)), None)


def line_files(folder: Path, suffix: str = "") -> dict[str, Path]:
    """Night -> file of newline-delimited JSON in a folder, in natural order; capitals in the ending do not count.

    Args:
        suffix: what stands before `.jsonl` or `.ndjson` and does not belong to the night's name.

    Raises:
        SourceError: two files would be one night, or there are files and none of them is such a file.
    """
    paths = files_in(folder)
    found = one_file_a_night(paths, lambda path: night_of_lines(path, suffix))
    if paths and not found:
        names = ", ".join(path.name for path in paths[:5])
        raise SourceError(f"{folder}: no file there is newline-delimited JSON by its name (*{suffix}.jsonl); found {names}")
    return found


def files_in(folder: Path) -> list[Path]:
    """The files of a folder by name, hidden ones left out."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def one_file_a_night(paths: Iterable[Path], night_of: Callable[[Path], str | None]) -> dict[str, Path]:
    """Night -> file, in natural order of the nights.

    Args:
        night_of: the night that a file stands for; None where it is none of the source's.

    Raises:
        SourceError: two files would be one night.
    """
    found: dict[str, Path] = {}
    for path in sorted(paths):
        if (night := night_of(path)) is None:
            continue
        if night in found:
            raise SourceError(f"{path}: night {night!r} is {found[night].name} already; give one of them another name")
        found[night] = path
    return dict(sorted(found.items(), key=lambda item: natural(item[0])))


def check_night(name: str, night: str, nights: tuple[str, ...], where: Path) -> None:
    """Raises:
    SourceError: the source has no night of that name; lists those it has.
    """
    if night not in nights:
        raise SourceError(f"{name}: no night {night!r} in {where}; there are: {', '.join(nights) or 'none'}")
