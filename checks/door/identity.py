"""Who and what a record is about, before it is compared: relations by name, missing ids by label, ids used twice.

A record that nothing can be made of without guessing has a *fault*: a reason, and a sentence that says what to give.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from warehouse.database.connection import Reader
from warehouse.keys import clean_text, entity_id, folded, is_property_id, relation_words
from warehouse.nights.conflict_sql import MAX_EVIDENCE
from warehouse.nights.intake import REUSED, request_content, requests_named
from warehouse.records import EditRequest, UpdateRecord
from warehouse.sources.base import decode_object
from warehouse.world.changes import Change, Malformed
from warehouse.world.known_names import Meanings, entities_named, objects_of, relation_names, relations_of

#: A relation that is a wording, not a property (KnowEdit): its subject is a text as well.
WORDING = "text:"
_NAMED = 5


@dataclass(frozen=True)
class Fault:
    """Why a record waits whatever the others say; `related`: the records that it clashes with."""

    reason: str
    sentence: str
    related: tuple[str, ...] = ()


@dataclass
class Identified:
    """Records with the ids that they mean, and what stands against some of them."""

    records: dict[str, Any]
    faults: dict[str, Fault] = field(default_factory=dict)

    def ids_by_label(self) -> dict[str, str]:
        """The one id of each label that tonight's records name by both; for edits and old values that have the label alone."""
        found: dict[str, set[str]] = defaultdict(set)
        for record in self.records.values():
            for known_id, label in _pairs(record):
                if known_id:
                    found[folded(label)].add(known_id)
        return {label: next(iter(ids)) for label, ids in found.items() if len(ids) == 1}


def identified(store: Reader, records: Mapping[str, Any]) -> Identified:
    """The night's readable records with relations and ids in their one form.

    - A relation may be a property id in any spelling, or the label, an alias or the template's phrase of one.
    - A request without an id means the entity of that label, where the store and the night know one only.
    """
    result = Identified(dict(records))
    readable = {i: r for i, r in records.items() if not isinstance(r, Malformed)}
    names = relation_names(store) if any(not is_property_id(r.relation) for r in readable.values()) else {}
    for record_id, record in readable.items():
        result.records[record_id] = _related(result, record_id, _plain(record), names)
    lacking = [
        (i, r)
        for i, r in result.records.items()
        if isinstance(r, EditRequest) and not r.relation.startswith(WORDING) and not (r.subject_id and r.target_new_id)
    ]
    if lacking:
        pairs = [pair for r in result.records.values() for pair in _pairs(r)]
        known = entities_named(store, [text for _, r in lacking for text in (r.subject, r.target_new)], pairs)
        slots = _slot_targets(result.records.values())
        for record_id, request in lacking:
            result.records[record_id] = _named(store, result, record_id, request, known, slots)
    return result


def _plain(record: Change | EditRequest) -> Change | EditRequest:
    """Once more in the form of the door, for records that did not come through it."""
    if isinstance(record, Change):
        return record
    if record.relation.startswith(WORDING):
        return record
    ids = {name: entity_id(getattr(record, name)) for name in ("subject_id", "target_new_id")}
    changed = {name: value for name, value in ids.items() if value != getattr(record, name)}
    return record.model_copy(update=changed) if changed else record


def _related(result: Identified, record_id: str, record: Change | EditRequest, names: Meanings) -> Change | EditRequest:
    if is_property_id(record.relation) or not record.relation or record.relation.startswith(WORDING):
        return record
    if isinstance(record, Change) and record.op in ("set_label", "set_description"):
        return record
    meant = relations_of(record.relation, names)
    if len(meant) > 1:
        result.faults[record_id] = Fault(
            "ambiguous_relation", f"'{record.relation}' may be {_listed(meant)}; name the property by its id."
        )
    elif meant:
        return record.model_copy(update={"relation": next(iter(meant))})
    # A relation of the user's own: nobody knows it, and two spellings of it are one all the same.
    return (
        record.model_copy(update={"relation": relation_words(record.relation) or record.relation})
        if isinstance(record, EditRequest)
        else record
    )


def _named(
    store: Reader,
    result: Identified,
    record_id: str,
    request: EditRequest,
    known: Meanings,
    slots: Mapping[tuple[str, str], Mapping[str, set[str]]],
) -> EditRequest:
    update: dict[str, str] = {}
    if not request.subject_id:
        meant = known.get(folded(request.subject), frozenset())
        if len(meant) > 1:
            sentence = f"'{clean_text(request.subject)}' may be {_listed(meant)}; give the request a subject_id."
            result.faults.setdefault(record_id, Fault("ambiguous_label", sentence))
        elif meant:
            update["subject_id"] = next(iter(meant))
    if not request.target_new_id and request.kind != "erase":
        meant = known.get(folded(request.target_new), frozenset())
        if len(meant) > 1:
            # The answer is a text whichever is meant; its id only matters where the slot or the relation tells it.
            slot = (update.get("subject_id", request.subject_id), request.relation)
            beside = slots.get(slot, {}).get(folded(request.target_new), set())
            meant = frozenset(beside) or objects_of(store, request.relation, meant)
        if len(meant) == 1:
            update["target_new_id"] = next(iter(meant))
    return request.model_copy(update=update) if update else request


def _slot_targets(records: Any) -> dict[tuple[str, str], dict[str, set[str]]]:
    found: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        if isinstance(record, EditRequest) and record.subject_id and record.target_new_id:
            found[record.subject_id, record.relation][folded(record.target_new)].add(record.target_new_id)
        elif isinstance(record, Change) and record.new is not None and record.new.id:
            found[record.subject.id, record.relation][folded(record.new.label)].add(record.new.id)
    return found


def _pairs(record: Any) -> Sequence[tuple[str, str]]:
    if isinstance(record, EditRequest):
        return (record.subject_id, record.subject), (record.target_new_id, record.target_new)
    if isinstance(record, Change):
        values = [value for value in (record.new, record.old) if value is not None and value.type == "item"]
        return (record.subject.id, record.subject.label), *((value.id, value.label) for value in values)
    return ()


def _listed(ids: frozenset[str]) -> str:
    named = sorted(ids)
    return ", ".join(named[:_NAMED]) + (f" or {len(named) - _NAMED} more" if len(named) > _NAMED else "")


def reused_ids(store: Reader, night: str, records: Mapping[str, Any]) -> dict[str, Fault]:
    """Requests whose `request_id` has another content as well: in this night, or of an accepted one of another night."""
    by_id: dict[str, list[str]] = defaultdict(list)
    for record_id, record in records.items():
        if isinstance(record, EditRequest):
            by_id[record.request_id].append(record_id)
    stored = requests_named(store, by_id, night)
    faults: dict[str, Fault] = {}
    for request_id, group in by_id.items():
        contents = {record_id: request_content(records[record_id]) for record_id in group}
        if len(set(contents.values())) > 1:
            named = tuple(sorted(group)[:MAX_EVIDENCE])
            sentence = f"the request id '{request_id}' came with {len(set(contents.values()))} contents; give each its own."
            faults |= {i: Fault("record_id_reused", sentence, tuple(n for n in named if n != i)) for i in group}
        elif request_id in stored and stored[request_id][1] != contents[group[0]]:
            sentence = (
                f"the request id '{request_id}' was used in night {stored[request_id][0]} for another request; "
                "give this one its own."
            )
            faults |= {i: Fault("record_id_reused", sentence) for i in group}
        elif request_id in stored:
            sentence = f"the same request came in night {stored[request_id][0]}."
            faults |= {i: Fault("redelivered_event", sentence) for i in group}
    return faults


def reused_records(records: Sequence[UpdateRecord]) -> dict[str, Fault]:
    """Events that claim an id under which another event came, in this night or before; requests have `reused_ids`."""
    claims: dict[tuple[str, str], list[UpdateRecord]] = defaultdict(list)
    faults: dict[str, Fault] = {}
    for record in records:
        claimed = (decode_object(record.raw) or {}).get("record_id")
        if isinstance(claimed, str) and claimed:
            claims[record.source, claimed].append(record)
            if record.record_id.startswith(claimed + REUSED):
                sentence = f"its record id '{claimed}' came with another content before; a source gives every event its own."
                faults[record.record_id] = Fault("record_id_reused", sentence)
    for (_, claimed), group in claims.items():
        if len({record.raw for record in group}) > 1:
            sentence = (
                f"the record id '{claimed}' came with {len({r.raw for r in group})} contents; a person should say which holds."
            )
            named = sorted(record.record_id for record in group)[:MAX_EVIDENCE]
            faults |= {
                r.record_id: Fault("record_id_reused", sentence, tuple(n for n in named if n != r.record_id)) for r in group
            }
    return faults
