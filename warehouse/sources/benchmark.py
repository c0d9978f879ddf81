"""Editing benchmarks in the shapes they are published in: rows become update records, edit requests and probes.

The format is found by what is in the file, not by its name; `benchmark_shapes` knows the fields. One row may ask for several
edits (MQuAKE): each is a record of its own. A row that cannot be read is a record all the same, and its verdict says why.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from warehouse.digests import digest_of, sha256_bytes
from warehouse.errors import SourceError
from warehouse.probe_identity import make_probe
from warehouse.records import EditRequest, Probe, UpdateRecord
from warehouse.sources.base import check_night, files_in, one_file_a_night
from warehouse.sources.benchmark_fields import Asked, spelled_in
from warehouse.sources.benchmark_shapes import READERS, format_of
from warehouse.sources.formats import BROKEN, opened
from warehouse.sources.parquet import parquet_rows

#: A row larger than this is kept as received but never parsed.
MAX_ROW_BYTES = 1024 * 1024
#: Keys under which a document may hold its rows.
WRAPPERS = ("data", "rows", "examples", "records", "train", "validation", "test")
SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
#: Relations longer than this are texts; they go by their digest.
MAX_RELATION_CHARS = 200


class BenchmarkSource:
    """One file, or a folder with such files in it; each file is one night, named after it."""

    name = "benchmark"

    def __init__(self, path: Path, task: str = "") -> None:
        """`task` names the format where content cannot tell: `zsre-answers` edits towards `answers`, as ROME does.

        Raises:
            SourceError: no format has that name.
        """
        if task and task not in READERS:
            raise SourceError(f"no benchmark format {task!r}; there are: {', '.join(READERS)}")
        self.path, self.task = path, task

    def nights(self) -> tuple[str, ...]:
        return tuple(self._files())

    def records(self, night: str) -> Iterator[UpdateRecord]:
        """A record for each edit that a row asks for, and one for each row that cannot be read.

        Raises:
            SourceError: no such night; the file is missing, no JSON, cut off, or no row of it is of a known format.
        """
        files = self._files()
        check_night(self.name, night, tuple(files), self.path)
        return self._read(night, files[night])

    def _files(self) -> dict[str, Path]:
        if not self.path.is_dir():
            if not self.path.is_file():
                raise SourceError(f"{self.path}: no such file or folder; give a benchmark's file or a folder of them")
            return {_night_of(self.path): self.path}
        paths = files_in(self.path)
        found = one_file_a_night(paths, lambda path: _night_of(path) if _plain_name(path).lower().endswith(SUFFIXES) else None)
        if not found:
            names = ", ".join(path.name for path in paths[:5]) or "nothing"
            raise SourceError(f"{self.path}: no benchmark file there (*{', *'.join(SUFFIXES)}); found {names}")
        return found

    def _read(self, night: str, path: Path) -> Iterator[UpdateRecord]:
        rows = list(_rows(path))
        name = self.task or _format_of_file(path, rows)
        seen: Counter[str] = Counter()
        for row in rows:
            # Escaped: half a surrogate pair in a row is its fault alone, and the text can be stored.
            line = json.dumps(row, default=str)
            digest = sha256_bytes(line.encode())
            count, seen[digest] = seen[digest], seen[digest] + 1
            for edit in range(_num_edits(name, row)):
                yield UpdateRecord(
                    record_id=f"bm-{digest_of(name, night, digest, count, edit)[:16]}",
                    source=f"{self.name}:{name}",
                    night=night,
                    received_at=None,
                    raw=f'{{"edit": {edit}, "row": {line}}}',
                )


def to_request(record: UpdateRecord) -> EditRequest:
    """The edit that a record asks for.

    Where the format names no property, `relation` is the prompt with the subject taken out (`text:The spouse of {s} is`):
    equal wordings about one subject are one slot.

    Raises:
        SourceError: the row has another shape; the message names the field.
    """
    asked = _asked(record)
    prompt, subject = asked.prompt.rstrip(), spelled_in(asked.prompt, asked.subject)
    return EditRequest(
        request_id=_request_id(record),
        prompt=prompt,
        subject=subject,
        relation=asked.relation or f"text:{_wording(prompt, subject)}",
        target_new=asked.new,
        target_true=asked.old,
        rephrases=tuple(dict.fromkeys(one for one in asked.rephrases if one != prompt)),
        source=record.source,
        received_at=record.received_at,
        subject_id=asked.subject_id,
        target_new_id=asked.new_id,
        kind=asked.kind,
    )


def to_probes(record: UpdateRecord) -> tuple[Probe, ...]:
    """The benchmark's own questions about a record's edit: locality, portability, multi-hop.

    Raises:
        SourceError: the row has another shape; the message names the field.
    """
    request_id = _request_id(record)
    return tuple(make_probe(kind, prompt, right, request_id) for kind, prompt, right in _asked(record).questions)


# ---------------------------------------------------------------- one record


def _asked(record: UpdateRecord) -> Asked:
    name = record.source.partition(":")[2]
    if name not in READERS:
        raise SourceError(f"record {record.record_id}: source {record.source!r}; expected benchmark:FORMAT")
    data = record.raw.encode("utf-8", "surrogatepass")
    if len(data) > MAX_ROW_BYTES:
        raise SourceError(f"the row has {len(data)} bytes; the limit is {MAX_ROW_BYTES}")
    try:
        # Not `json.loads`: it meets deep nesting with RecursionError.
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise SourceError(f"the row is no text that can be stored, or not JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("edit"), int) or "row" not in value:
        raise SourceError("expected an object with 'edit' and 'row'")
    edits = _read_row(name, value["row"])
    if not 0 <= value["edit"] < len(edits):
        raise SourceError(f"the row asks for {len(edits)} edits; there is no edit {value['edit']}")
    return edits[value["edit"]]


def _read_row(name: str, row: Any) -> list[Asked]:
    if isinstance(row, str):
        raise SourceError(f"the row is not JSON, or a bare text: {row[:80]!r}")
    if not isinstance(row, dict):
        raise SourceError(f"the row is a {type(row).__name__}; expected an object")
    found = format_of(row)
    # The two readings of zsRE have the same fields.
    if found != name.removesuffix("-answers"):
        raise SourceError(f"the row has the fields of {found or 'no known format'} ({', '.join(list(row)[:8])}), not of {name}")
    return READERS[name](row)


def _num_edits(name: str, row: Any) -> int:
    """How many records a row becomes; one where it cannot be read."""
    try:
        return max(1, len(_read_row(name, row)))
    except SourceError:
        return 1


def _wording(prompt: str, subject: str) -> str:
    wording = prompt.replace(subject, "{s}")
    return wording if len(wording) <= MAX_RELATION_CHARS else sha256_bytes(wording.encode("utf-8"))[:16]


def _request_id(record: UpdateRecord) -> str:
    return f"rq-{digest_of(record.source, record.record_id)[:16]}"


# ---------------------------------------------------------------- one file


def _plain_name(path: Path) -> str:
    return path.name.removesuffix(path.suffix) if path.suffix.lower() in (".gz", ".bz2", ".xz") else path.name


def _night_of(path: Path) -> str:
    return Path(_plain_name(path)).stem


def _format_of_file(path: Path, rows: list[Any]) -> str:
    """The format that most rows have.

    Raises:
        SourceError: no row has a known one.
    """
    counts = Counter(name for row in rows if (name := format_of(row)) is not None)
    if not counts:
        fields = next((", ".join(list(row)[:8]) for row in rows if isinstance(row, dict)), f"a {type(rows[0]).__name__}")
        raise SourceError(
            f"{path}: no row has the fields of a known benchmark ({', '.join(READERS)}); the first one has {fields}. "
            "Other files of KnowEdit are read by source.kind = 'knowedit'"
        )
    return counts.most_common(1)[0][0]


def _rows(path: Path) -> Iterator[Any]:
    """The rows of a JSON document, of JSON lines, or of a Parquet file; a line that is no JSON comes as its text.

    Raises:
        SourceError: the file is empty, cut off, or holds no rows.
    """
    with path.open("rb") as handle:
        if handle.read(4) == b"PAR1":
            yield from (_finite(row) for row in parquet_rows(path))
            return
    with opened(path, "a benchmark in JSON, JSON lines or Parquet") as (handle, _):
        try:
            data = handle.read()
        except BROKEN as error:
            raise SourceError(f"{path}: the file breaks off or is damaged: {error}; get it again") from error
    # Half a surrogate pair, or a byte that is no UTF-8, is the fault of the row it stands in.
    content = data.decode("utf-8", "surrogateescape")
    if not content.strip():
        raise SourceError(f"{path}: the file is empty; expected a benchmark's rows")
    try:
        document = _loads(content)
    except ValueError as error:
        yield from _lines(path, content, error)
        return
    rows = _unwrapped(document)
    if rows is None:
        what = ", ".join(list(document)[:8]) if isinstance(document, dict) else type(document).__name__
        raise SourceError(f"{path}: one JSON document without a list of rows ({what}); expected a list of objects")
    if not rows:
        raise SourceError(f"{path}: the list of rows is empty")
    yield from (_finite(row) for row in rows)


def _lines(path: Path, content: str, error: ValueError) -> Iterator[Any]:
    lines = [line for line in content.splitlines() if line.strip()]
    first = lines[0].strip()
    try:
        is_lines = isinstance(_loads(first), dict) or (len(lines) > 1 and isinstance(_loads(lines[1]), dict))
    except ValueError:
        is_lines = False
    if not is_lines:
        raise SourceError(f"{path}: neither a JSON document nor JSON lines, or cut off ({error}); get it again")
    for line in lines:
        try:
            yield _finite(_loads(line))
        except ValueError:
            yield line


def _loads(content: str) -> Any:
    """Raises:
    ValueError: no JSON, or nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unwrapped(document: Any) -> list[Any] | None:
    """The rows of a list, of an object that holds one, of a dataset viewer's answer, or of one row alone."""
    if isinstance(document, dict) and format_of(document) is not None:
        return [document]
    if isinstance(document, dict):
        lists = [document[name] for name in WRAPPERS if isinstance(document.get(name), list)]
        document = lists[0] if len(lists) == 1 else None
    if not isinstance(document, list):
        return None
    if document and all(isinstance(one, dict) and "row_idx" in one and "row" in one for one in document):
        return [one["row"] for one in document]
    return document


def _finite(value: Any) -> Any:
    """The value with None for NaN and infinities, which frames write where a field is missing."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(name): _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value
