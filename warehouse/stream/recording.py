"""A recorded stream with its entity documents, read from a folder.

*.sse                    frames as they came over the wire, files in the order of their names
*.entitydata.jsonl       for each edit: `entity`, `old_revision`, `new_revision` (envelopes), `labels`
entities/**/*.json       documents or API answers; `ANY__Q1.json` answered a request for Q1
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from warehouse.errors import SourceError
from warehouse.sources.base import parse_time
from warehouse.stream.events import ITEM
from warehouse.stream.sse import recorded_frames

#: Name of the element that a replayed id has beside those recorded: it says where in the recording one is.
TOPIC = "replay"


@dataclass(frozen=True)
class RecordedFrame:
    """One frame; `time_ms` is the event's own time, 0 where it has none."""

    event: str
    id: str
    data: str
    time_ms: int


@dataclass
class Recording:
    """Frames in order, and what the other addresses answer.

    Attributes:
        revisions: (entity id, revision) -> entity body.
        current: entity id -> newest body.
        labels: English labels of entities without a document.
        redirects: id asked for -> id answered.
    """

    frames: list[RecordedFrame] = field(default_factory=list)
    revisions: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    current: dict[str, dict[str, Any]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)

    def add(self, body: dict[str, Any]) -> None:
        """Add an entity body under its id and revision."""
        entity_id, revision = str(body["id"]), body.get("lastrevid")
        revision = revision if isinstance(revision, int) else 0
        self.revisions[entity_id, revision] = body
        held = self.current.get(entity_id)
        if held is None or int(held.get("lastrevid") or 0) <= revision:
            self.current[entity_id] = body

    def position(self, last_event_id: str) -> int | None:
        """Index of the frame behind the one with that id; None where the recording has no such id."""
        try:
            elements = from_json(last_event_id)
        except ValueError:
            elements = None
        for element in elements if isinstance(elements, list) else []:
            if isinstance(element, dict) and element.get("topic") == TOPIC and isinstance(element.get("offset"), int):
                return min(max(0, element["offset"] + 1), len(self.frames))
        # Behind the first one of that id: what comes twice does no harm, what is left out does.
        return next((i + 1 for i, frame in enumerate(self.frames) if frame.id == last_event_id), None)

    def since(self, moment_ms: int) -> int:
        """Index of the first frame of that time or later."""
        return next((i for i, frame in enumerate(self.frames) if frame.time_ms >= moment_ms), len(self.frames))

    def wire_id(self, index: int) -> str:
        """The recorded id with one element more, which makes a resume exact where a recording repeats an id."""
        try:
            elements = from_json(self.frames[index].id)
        except ValueError:
            elements = []
        own = {"topic": TOPIC, "partition": 0, "offset": index}
        return json.dumps([*(elements if isinstance(elements, list) else []), own], separators=(",", ":"))


def load_recording(folder: Path, entities: Path | None = None) -> Recording:
    """Read a folder.

    Args:
        entities: folder of documents; default: `entities` in the folder, or beside it.

    Raises:
        SourceError: there is no stream in the folder, or a document file is broken.
    """
    streams = sorted(folder.glob("*.sse"))
    if not streams:
        raise SourceError(f"{folder}: no recorded stream there; expected files *.sse")
    recording = Recording()
    recording.frames = [RecordedFrame(f.event, f.id, f.data, time_of_event(f.data)) for f in recorded_frames(streams)]
    places = [entities] if entities is not None else [folder / "entities", folder.parent / "entities"]
    for place in [place for place in places if place.is_dir()][:1]:
        for path in sorted(place.rglob("*.json")):
            _add_document(recording, path)
    for path in sorted(folder.glob("*.entitydata.jsonl")):
        _add_edits(recording, path)
    return recording


def time_of_event(data: str) -> int:
    """Milliseconds since the epoch of `meta.dt`, 0 where there is none."""
    try:
        event = from_json(data)
    except ValueError:
        return 0
    meta = event.get("meta") if isinstance(event, dict) else None
    moment = parse_time(meta.get("dt")) if isinstance(meta, dict) else None
    return int(moment.timestamp() * 1000) if moment is not None else 0


def _add_document(recording: Recording, path: Path) -> None:
    try:
        document = from_json(path.read_bytes())
    except ValueError as error:
        raise SourceError(f"{path}: no JSON: {error}") from error
    for body in _bodies(document):
        recording.add(body)
        asked = path.stem.rpartition("__")[2]
        if ITEM.fullmatch(asked) and asked != body["id"] and len(_bodies(document)) == 1:
            recording.redirects[asked] = body["id"]


def _bodies(document: Any) -> list[dict[str, Any]]:
    """Entity bodies of an envelope or of a bare document; a file of something else (an index) has none."""
    if not isinstance(document, dict):
        return []
    entities = document.get("entities")
    found = list(entities.values()) if isinstance(entities, dict) else [document]
    return [body for body in found if isinstance(body, dict) and isinstance(body.get("id"), str) and "missing" not in body]


def _add_edits(recording: Recording, path: Path) -> None:
    """Edits whose documents may hold only the touched statement: the others are filled in, so that revisions chain."""
    edits = list(_edits(path))
    whole: dict[str, dict[str, tuple[str, Any]]] = {}
    made: dict[str, set[str]] = {}
    for old, new in edits:
        # What an item had before its first edit here: every statement that no earlier edit has brought.
        held, brought = whole.setdefault(new["id"], {}), made.setdefault(new["id"], set())
        for key, statement in _statements(old).items():
            if key not in brought:
                held.setdefault(key, statement)
        brought |= set(_statements(new))
    for old, new in edits:
        before, after, held = _statements(old), _statements(new), whole[new["id"]]
        if (new["id"], old.get("lastrevid")) not in recording.revisions:
            recording.add(_with(old, held))
        for key in before.keys() - after.keys():
            held.pop(key, None)
        held.update(after)
        recording.add(_with(new, held))
    with path.open(encoding="utf-8") as handle:
        for line in handle:
            recording.labels |= json.loads(line).get("labels") or {}


def _edits(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            try:
                item = json.loads(line)
                old, new = (next(iter(item[name]["entities"].values())) for name in ("old_revision", "new_revision"))
            except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
                raise SourceError(
                    f"{path}, line {number}: expected old_revision and new_revision, each with entities: {error!r}"
                ) from error
            yield old, new


def _statements(body: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Statement id -> (property, statement)."""
    claims = body.get("claims") or {}
    return {one["id"]: (pid, one) for pid, many in claims.items() for one in many}


def _with(body: dict[str, Any], statements: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    claims: dict[str, list[Any]] = {}
    for pid, statement in statements.values():
        claims.setdefault(pid, []).append(statement)
    return {**body, "claims": claims}
