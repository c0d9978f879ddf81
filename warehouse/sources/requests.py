"""A user's own edit requests: newline-delimited JSON with the fields of `EditRequest`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from warehouse.errors import SourceError
from warehouse.records import UpdateRecord
from warehouse.sources.base import RecordIds, check_night, decode_object, line_files, night_of_lines, parse_time, read_lines


class RequestsSource:
    """A `.jsonl` or `.ndjson` file is one night named after it; a folder has one night for each such file in it.

    A line needs `prompt`, `subject`, `relation` and `target_new`; the other fields of `EditRequest` may be left out.
    """

    name = "requests"

    def __init__(self, path: Path) -> None:
        self.path = path

    def nights(self) -> tuple[str, ...]:
        return tuple(self._files())

    def records(self, night: str) -> Iterator[UpdateRecord]:
        files = self._files()
        check_night(self.name, night, tuple(files), self.path)
        return self._read(night, files[night])

    def _files(self) -> dict[str, Path]:
        if self.path.is_dir():
            return line_files(self.path)
        if not self.path.is_file():
            raise SourceError(f"{self.path}: no such file or folder; give a .jsonl file of edit requests")
        return {night_of_lines(self.path) or self.path.stem: self.path}

    def _read(self, night: str, path: Path) -> Iterator[UpdateRecord]:
        ids = RecordIds(night)
        for raw in read_lines(path):
            request = decode_object(raw) or {}
            yield UpdateRecord(
                record_id=ids.assign(raw, request.get("request_id")),
                source=self.name,
                night=night,
                received_at=parse_time(request.get("received_at")),
                raw=raw,
            )
