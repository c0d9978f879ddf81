"""Recorded Wikidata nights: a folder of `night-NN.events.jsonl`, by default the embedded ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from warehouse.errors import SourceError
from warehouse.records import UpdateRecord
from warehouse.reference.world import NIGHTS
from warehouse.sources.base import RecordIds, check_night, decode_object, line_files, parse_time, read_lines

SUFFIX = ".events.jsonl"


class RecordedSource:
    """One file is one night; its name without `.events.jsonl` is the name of the night ("night-01")."""

    name = "recorded"

    def __init__(self, folder: Path = NIGHTS) -> None:
        self.folder = folder

    def nights(self) -> tuple[str, ...]:
        return tuple(self._files())

    def records(self, night: str) -> Iterator[UpdateRecord]:
        files = self._files()
        check_night(self.name, night, tuple(files), self.folder)
        return self._read(night, files[night])

    def _files(self) -> dict[str, Path]:
        if not self.folder.is_dir():
            raise SourceError(f"{self.folder}: no such folder; expected one with files night-NN{SUFFIX}")
        return line_files(self.folder, SUFFIX.removesuffix(".jsonl"))

    def _read(self, night: str, path: Path) -> Iterator[UpdateRecord]:
        ids = RecordIds(night)
        for raw in read_lines(path):
            event = decode_object(raw) or {}
            yield UpdateRecord(
                record_id=ids.assign(raw, event.get("record_id")),
                source=self.name,
                night=night,
                received_at=parse_time(event.get("received_at")),
                raw=raw,
            )
