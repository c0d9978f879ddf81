"""What changed between two revisions of an entity, and each change as the text of an update record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from warehouse.digests import digest_of
from warehouse.wikidata.entity_model import END, START, EntityDocument, EntityValue, Snak, Statement, written_time

#: A longer plain text (a formula, a quotation) is cut in the record: it can be no answer, and a record has a size.
MAX_TEXT_CHARS = 1000
#: More start or end times of one statement than this say nothing about when it holds.
MAX_TIMES = 20
ChangeKind = Literal["added", "removed", "value", "rank", "qualifiers", "references"]


@dataclass(frozen=True, slots=True)
class StatementChange:
    """One statement before and after. `kinds` is one of ("added",), ("removed",) or any others, in this order:
    value, rank, qualifiers, references."""

    statement_id: str
    pid: str
    kinds: tuple[ChangeKind, ...]
    old: Statement | None
    new: Statement | None

    @property
    def datatype(self) -> str:
        """The property's datatype, as the newer side names it."""
        sides = [side.snak.datatype for side in (self.new, self.old) if side is not None]
        return next((name for name in sides if name), "")

    @property
    def touches_belief(self) -> bool:
        """Whether Wikidata stands behind one side at least: a deprecated statement is kept there as known to be wrong."""
        return any(side is not None and side.rank != "deprecated" for side in (self.old, self.new))


@dataclass(frozen=True, slots=True)
class TermChange:
    """The English label or description before and after; "" where there is none."""

    term: Literal["label", "description"]
    old: str
    new: str


def diff_statements(
    old: EntityDocument | None, new: EntityDocument | None, *, references: bool = True
) -> tuple[StatementChange, ...]:
    """The statements that differ, by statement id, in the order of the new document, then those that are gone.

    Args:
        old: the entity before; None where there was none (every statement is new).
        new: the entity after; None where it is gone (every statement is removed).
        references: also report statements of which only the references changed.

    Equal values written in two ways are no change: order of qualifiers and references, hashes, numeric ids,
    case of the statement id. The ids of the two entities are not compared: a redirect keeps its statements' ids.
    """
    before = {s.key: s for s in old.statements} if old is not None else {}
    after = {s.key: s for s in new.statements} if new is not None else {}
    # A statement that is there but cannot be read on one side is neither added nor removed.
    unread_before, unread_after = _unread(old), _unread(new)
    changes = []
    for key, statement in after.items():
        earlier = before.get(key)
        if earlier is None and key in unread_before:
            continue
        kinds = ("added",) if earlier is None else _kinds(earlier, statement)
        if kinds and (references or kinds != ("references",)):
            changes.append(StatementChange(statement.id, statement.pid, kinds, earlier, statement))
    gone = (s for key, s in before.items() if key not in after and key not in unread_after)
    changes += [StatementChange(s.id, s.pid, ("removed",), s, None) for s in gone]
    return tuple(changes)


def _unread(entity: EntityDocument | None) -> set[str]:
    return set() if entity is None else {left.place.casefold() for left in entity.left_out}


def _kinds(old: Statement, new: Statement) -> tuple[ChangeKind, ...]:
    kinds: list[ChangeKind] = []
    if _meaning(old.snak) != _meaning(new.snak):
        kinds.append("value")
    if old.rank != new.rank:
        kinds.append("rank")
    if Counter(map(_meaning, old.qualifiers)) != Counter(map(_meaning, new.qualifiers)):
        kinds.append("qualifiers")
    if sorted(old.references) != sorted(new.references):
        kinds.append("references")
    return tuple(kinds)


def _meaning(snak: Snak) -> tuple[str, ...]:
    # Not the datatype: properties change it (string became external-id in 2016) and Commons leaves it out.
    return (snak.pid, snak.snaktype) if snak.value is None else (snak.pid, snak.value.type, *snak.value.parts)


def diff_terms(old: EntityDocument | None, new: EntityDocument | None) -> tuple[TermChange, ...]:
    """English label and description that differ."""
    blank = EntityDocument(id="", type="item")
    before, after = old or blank, new or blank
    found = [TermChange("label", before.label, after.label), TermChange("description", before.description, after.description)]
    return tuple(change for change in found if change.old != change.new)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who changed what when, as far as the source knows; goes into the record as it is."""

    received_at: datetime
    revision_old: int | None = None
    revision_new: int | None = None
    editor_class: str = "unknown"
    patrolled: bool = False
    comment: str = ""
    tags: tuple[str, ...] = ()


def change_record(
    change: StatementChange | TermChange,
    entity: EntityDocument,
    record_id: str,
    night: str,
    provenance: Provenance,
    labels: Mapping[str, str],
) -> str:
    """A change as the JSON text that `warehouse.world.changes.parse_change` reads.

    Args:
        change: of `diff_statements` or `diff_terms`.
        entity: the newer side (the older one where the entity is gone): its id and label are the record's subject;
            where the document has no label, `labels` may have one.
        record_id: unique within the source.
        night: the night the record belongs to.
        provenance: when, by which class of editor, between which revisions.
        labels: English labels by id, for properties and values; an id without one has a null label in the record.

    `valid_from` and `valid_to` stand beside the qualifiers as ISO times. Only the qualifiers P580 and P582 are written;
    an end at an unknown time is written as `somevalue`. A plain text longer than
    MAX_TEXT_CHARS is cut.
    """
    body = _term(change, entity) if isinstance(change, TermChange) else _statement(change, labels)
    record: dict[str, Any] = {
        "record_id": record_id,
        "night": night,
        "received_at": provenance.received_at.isoformat(),
        "subject": {"id": entity.id, "label": entity.label or labels.get(entity.id)},
        **body,
        "editor": {"class": provenance.editor_class, "patrolled": provenance.patrolled},
        "comment": provenance.comment,
        "tags": list(provenance.tags),
        "revision": {"old": provenance.revision_old, "new": provenance.revision_new},
    }
    return json.dumps(record, ensure_ascii=False)


def record_id_of(entity_id: str, change: StatementChange | TermChange, revision: int | None) -> str:
    """A name for the change that is the same whenever and wherever it is found: entity, statement, revision."""
    what = change.term if isinstance(change, TermChange) else change.statement_id.casefold()
    return f"wd-{digest_of(entity_id, what, revision)[:24]}"


def _term(change: TermChange, entity: EntityDocument) -> dict[str, Any]:
    old, new = ({"type": "text", "label": _cut(text)} if text else None for text in (change.old, change.new))
    return {
        "op": f"set_{change.term}",
        "property": {"id": change.term, "label": change.term},
        "old_value": old,
        "new_value": new,
        "rank": "normal",
        "qualifiers": {},
        "references": 0,
        "statement_id": "",
    }


def _statement(change: StatementChange, labels: Mapping[str, str]) -> dict[str, Any]:
    statement = change.new or change.old
    assert statement is not None
    old = None if change.old is None else _value(change.old.snak, labels)
    new = None if change.new is None else _value(change.new.snak, labels)
    op = _op(change)
    if op == "set_rank" and change.old is not None:
        # A deprecated statement is not believed: deprecation leaves nothing, its end brings the value in anew.
        new = None if statement.rank == "deprecated" else new
        old = None if change.old.rank == "deprecated" else old
    return {
        "op": op,
        "property": {"id": change.pid, "label": labels.get(change.pid)},
        "old_value": old,
        "new_value": new,
        "rank": statement.rank,
        "qualifiers": _validity(statement.qualifiers),
        "valid_from": _iso(statement.valid_from),
        "valid_to": _iso(statement.valid_to),
        "references": len(statement.references),
        "statement_id": change.statement_id,
    }


def _op(change: StatementChange) -> str:
    if change.kinds == ("added",):
        return "add_statement"
    if change.kinds == ("removed",):
        return "remove_statement"
    assert change.old is not None and change.new is not None
    if (change.old.rank == "deprecated") != (change.new.rank == "deprecated"):
        return "set_rank"
    if "value" in change.kinds:
        return "set_value"
    if "rank" in change.kinds:
        return "set_rank"
    # References alone are a `set_value` from a value to itself: the format has no op of their own.
    return "add_qualifier" if "qualifiers" in change.kinds else "set_value"


def _value(snak: Snak, labels: Mapping[str, str]) -> dict[str, Any]:
    value = snak.value
    if value is None:
        return {"type": "none", "snaktype": snak.snaktype}
    if value.type == "item":
        return {"type": "item", "id": value.id, "label": labels.get(value.id)}
    return {"type": "text" if value.type == "text" else "string", "label": _cut(value.text)}


def _validity(qualifiers: Sequence[Snak]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for snak in qualifiers:
        if snak.pid in (START, END) and len(found.get(snak.pid, ())) < MAX_TIMES:
            found.setdefault(snak.pid, []).append(_time(snak.value) or snak.snaktype)
    return found


def _time(value: EntityValue | None) -> str:
    return written_time(value) if value is not None and value.type == "time" else ""


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 3] + "..."
