"""What an update record says: a change of one Wikidata statement, or a ready edit request, or nothing readable."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from warehouse.digests import digest_of
from warehouse.errors import SourceError
from warehouse.keys import clean_text, entity_id
from warehouse.records import EditRequest, Entity, Record, UpdateRecord
from warehouse.sources import benchmark, knowedit
from warehouse.sources.base import MAX_RECORD_BYTES
from warehouse.world.placeholders import is_placeholder

Op = Literal["set_value", "add_statement", "remove_statement", "set_rank", "add_qualifier", "set_label", "set_description"]
Rank = Literal["preferred", "normal", "deprecated"]
MalformedReason = Literal["too_large", "undecodable", "malformed_record"]
#: Revision ids and counts must fit a BIGINT column.
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Value(Record):
    """One side of a change: an item, a plain text, or `none` with the snak type (somevalue, novalue)."""

    type: Literal["item", "string", "text", "none"]
    id: str = ""
    label: str = ""
    snaktype: str = ""


class Change(Record):
    """One edit of one statement, label or description. `old` None: nothing was there; `new` None: nothing is left."""

    record_id: str
    night: str
    received_at: datetime
    op: Op
    subject: Entity
    relation: str
    relation_label: str
    old: Value | None
    new: Value | None
    rank: Rank
    qualifiers: dict[str, tuple[str, ...]]
    references: int
    statement_id: str
    editor_class: str
    patrolled: bool
    comment: str
    tags: tuple[str, ...]
    revision_old: int | None
    revision_new: int | None
    source: str = "recorded"


class Malformed(Record):
    """A record that says nothing readable, with the reason for machines and a sentence for people."""

    record_id: str
    reason: MalformedReason
    sentence: str


def parse_change(record: UpdateRecord) -> Change | EditRequest | Malformed:
    """Read a record by the source that received it. Never raises: whatever cannot be read comes back as `Malformed`.

    Ids and labels come out in their one form (`warehouse.keys`), times in UTC.
    """
    if record.source.startswith("benchmark:"):
        try:
            return benchmark.to_request(record)
        except (SourceError, ValidationError) as error:
            return _malformed(record, "malformed_record", str(error))
    data = record.raw.encode("utf-8", "surrogatepass")
    # A benchmark's record carries its own questions, and its file was read as a whole.
    if len(data) > MAX_RECORD_BYTES and not record.source.startswith("knowedit:"):
        return _malformed(record, "too_large", f"it has {len(data)} bytes; the limit is {MAX_RECORD_BYTES}")
    try:
        # Not `json.loads`: it meets deep nesting with RecursionError.
        item = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        return _malformed(record, "undecodable", f"it is not JSON: {error}")
    if not isinstance(item, dict):
        return _malformed(record, "malformed_record", f"it is a {type(item).__name__}; expected a JSON object")
    try:
        if record.source.startswith("knowedit:"):
            return knowedit.to_request(record)
        # A user's file holds requests alone; other sources may bring both.
        if record.source != "requests" and ("op" in item or "property" in item):
            return _change(record, _Event.model_validate_json(data))
        return _request(record, item)
    except ValidationError as error:
        return _malformed(record, "malformed_record", _first_problem(error))
    except OverflowError as error:
        return _malformed(record, "malformed_record", f"field 'received_at': no calendar holds that moment in UTC ({error})")
    except SourceError as error:
        return _malformed(record, "malformed_record", str(error))


# ---------------------------------------------------------------- the wire format of updates/POLICY.md


class _Wire(BaseModel):
    """Strict types; fields that we do not read may be there, the format can grow."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


Id = Annotated[str, Field(min_length=1, max_length=200)]


class _Labelled(_Wire):
    id: Id
    label: str | None = None


class _Item(_Wire):
    type: Literal["item"]
    id: Id
    label: str | None = None


class _Text(_Wire):
    type: Literal["string", "text"]
    label: str | None = None


class _Absent(_Wire):
    type: Literal["none"]
    snaktype: str = ""


_Value = Annotated[_Item | _Text | _Absent, Field(discriminator="type")]


class _EditorInfo(_Wire):
    # An editor we know nothing about is trusted least.
    editor_class: str = Field(default="unknown", alias="class")
    patrolled: bool = False


class _Revision(_Wire):
    old: Count | None = None
    new: Count | None = None


class _Time(_Wire):
    """A time as Wikibase gives it, for sources that do not write the precision behind a slash."""

    time: str
    precision: Annotated[int, Field(ge=0, le=14)] = 11


class _Event(_Wire):
    received_at: datetime
    op: Op
    subject: _Labelled
    property: _Labelled
    old_value: _Value | None
    new_value: _Value | None
    rank: Rank = "normal"
    qualifiers: dict[str, tuple[str | _Time, ...]] = {}
    references: Count = 0
    statement_id: str = ""
    editor: _EditorInfo = _EditorInfo()
    comment: str = ""
    tags: tuple[str, ...] = ()
    revision: _Revision = _Revision()


def _change(record: UpdateRecord, event: _Event) -> Change:
    return Change(
        record_id=record.record_id,
        night=record.night,
        received_at=_aware(event.received_at),
        op=event.op,
        subject=Entity(id=entity_id(event.subject.id), label=clean_text(event.subject.label or "")),
        relation=entity_id(event.property.id),
        relation_label=clean_text(event.property.label or ""),
        old=_value(event.old_value),
        new=_value(event.new_value),
        rank=event.rank,
        qualifiers={entity_id(pid): tuple(map(_written, times)) for pid, times in event.qualifiers.items()},
        references=event.references,
        statement_id=event.statement_id,
        editor_class=event.editor.editor_class,
        patrolled=event.editor.patrolled,
        comment=event.comment,
        tags=event.tags,
        revision_old=event.revision.old,
        revision_new=event.revision.new,
        source=record.source,
    )


def _written(time: str | _Time) -> str:
    return time if isinstance(time, str) else f"{time.time}/{time.precision}"


def _value(value: _Item | _Text | _Absent | None) -> Value | None:
    if value is None:
        return None
    if isinstance(value, _Absent):
        return Value(type="none", snaktype=value.snaktype)
    if isinstance(value, _Text):
        return Value(type=value.type, label=value.label or "")
    return Value(type="item", id=entity_id(value.id), label=clean_text(value.label or ""))


def _request(record: UpdateRecord, item: dict[str, Any]) -> EditRequest:
    """A user's request, with the fields that he may leave out filled in."""
    # What a frame writes for a missing value: null in an optional field, a placeholder in place of an id or an old value.
    given = {name: value for name, value in item.items() if value is not None}
    for name in ("request_id", "subject_id", "target_new_id", "target_true"):
        value = given.get(name)
        if isinstance(value, str) and (not value.strip() or is_placeholder(value)):
            del given[name]
    if isinstance(number := given.get("request_id"), int) and not isinstance(number, bool):
        given["request_id"] = str(number)
    filled = {"request_id": f"rq-{digest_of(record.source, record.record_id)[:16]}", "source": record.source, **given}
    filled.setdefault("kind", "insert" if filled.get("target_true") is None else "modify")
    request = EditRequest.model_validate_json(json.dumps(filled), strict=True)
    received_at = request.received_at or record.received_at
    rephrases = [clean_text(text) for text in request.rephrases]
    return request.model_copy(
        update={
            "received_at": None if received_at is None else _aware(received_at),
            "prompt": clean_text(request.prompt),
            "subject": clean_text(request.subject),
            "relation": entity_id(clean_text(request.relation)),
            "target_new": clean_text(request.target_new),
            "target_true": None if request.target_true is None else clean_text(request.target_true),
            "rephrases": tuple(dict.fromkeys(text for text in rephrases if text and not is_placeholder(text))),
            "subject_id": entity_id(request.subject_id),
            "target_new_id": entity_id(request.target_new_id),
        }
    )


def _aware(time: datetime) -> datetime:
    """In UTC, so that no later step meets a moment that has no place in the calendar there."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False)[0]
    # A tag of the union is a step of the path, but no field of the record.
    path = [str(part) for part in problem["loc"] if part not in ("item", "string", "text", "none")]
    found = repr(problem["input"])
    found = found if len(found) <= 80 else found[:77] + "..."
    return f"field '{'.'.join(path)}': {problem['msg']}; found {found}"


def _malformed(record: UpdateRecord, reason: MalformedReason, what: str) -> Malformed:
    return Malformed(
        record_id=record.record_id,
        reason=reason,
        sentence=f"Record {record.record_id} of night {record.night} was kept but cannot be used: {what}.",
    )
