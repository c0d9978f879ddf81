"""The shape of one record, before it is compared with any other: labels, data types, times, and its row in the frame.

Rules 1 and 2 of the update policy. Everything here looks at one record alone; `warehouse.nights.conflicts` compares.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from checks.door.labels import (
    label_form,
    label_problem,
    plain_text_problem,
    text_problem,
)
from checks.door.trust import TrustPolicy, is_untrusted, shipped_trust, was_reverted
from warehouse.keys import Slot, folded, relation_key, subject_key, text_key
from warehouse.nights.conflicts import RECORD_COLUMNS
from warehouse.records import EditRequest
from warehouse.wikidata.entity_model import date_of
from warehouse.world.changes import Change, Malformed
from warehouse.world.placeholders import is_placeholder

Incoming = Change | EditRequest | Malformed


# ---------------------------------------------------------------- times


def earliest(times: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """(year, month, day) of the first day that each readable Wikibase time can mean, by its precision."""
    return tuple(date for date in map(date_of, times) if date is not None)


def _today(now: datetime) -> tuple[int, int, int]:
    now = now.astimezone(UTC)
    return now.year, now.month, now.day


# ---------------------------------------------------------------- one record


def shape_problem(record: Change | EditRequest, waived: Collection[str] = ()) -> str | None:
    """Reason code of rule 1 for one record alone, or None; a `waived` reason is passed over, no other is.

    Types and no-change need more than the record.
    """
    problems = _request_problems(record) if isinstance(record, EditRequest) else _change_problems(record)
    return next((problem for problem in problems if problem not in waived), None)


def _change_problems(change: Change) -> Iterator[str]:
    if change.op in ("set_label", "set_description"):
        yield "not_a_statement"
    kinds = {value.type for value in (change.new, change.old) if value is not None}
    if kinds & {"string", "text"}:
        yield "unsupported_datatype"
    if change.new is not None and change.new.type == "none":
        yield "no_value"
    if change.new is None and change.op in ("set_value", "add_statement"):
        yield "no_value"
    if change.new is not None:
        problem = label_problem(change.new.label)
        if problem is not None:
            yield problem
        if change.new.id == change.subject.id:
            yield "self_reference"
    subject = label_problem(change.subject.label)
    if subject is not None:
        yield "no_english_label" if subject == "empty_label" else subject


def _request_problems(request: EditRequest) -> Iterator[str]:
    # An erasure's target is the word for nothing.
    names = (request.subject,) if request.kind == "erase" else (request.subject, request.target_new)
    problems = [*map(text_problem, names), *map(plain_text_problem, (request.prompt, request.target_new))]
    yield from filter(None, problems)
    if is_placeholder(request.prompt) or is_placeholder(request.relation):
        yield "malformed_label"
    if request.subject not in request.prompt:
        yield "prompt_without_subject"
    same_item = request.target_new_id != "" and request.target_new_id == request.subject_id
    if same_item or folded(request.target_new) == folded(request.subject):
        yield "self_reference"


def record_rows(
    records: Sequence[tuple[str, Incoming]],
    now: datetime,
    *,
    trust: TrustPolicy | None = None,
    waived: Mapping[str, Collection[str]] | None = None,
    held: Mapping[Slot, Mapping[str, str]] | None = None,
    ids: Mapping[str, str] | None = None,
    faults: Collection[str] = (),
) -> pd.DataFrame:
    """One row of `RECORD_COLUMNS` for each readable record, numbered in order of arrival.

    Args:
        trust: weighs the signals of a change; default the shipped policy.
        waived: reasons that a person has set aside for a record, by record id.
        held: object id by `text_key` of its label, for what the store holds in a slot: requests name old values by
            label only.
        ids: id by `folded` label of what the night names by both, for labels that the slot does not hold: who is no longer
            somebody's father may be given a child beside it.
        faults: records that something else than their shape stands against, so that no other record rests on them.
    """
    policy, waived = trust or shipped_trust(), waived or {}
    readable = [(record_id, r) for record_id, r in records if not isinstance(r, Malformed)]
    readable.sort(key=lambda pair: pair[1].received_at or now)
    rows: list[dict[str, Any]] = []
    for i, (record_id, record) in enumerate(readable):
        passed = waived.get(record_id, ())
        row = {
            "record_id": record_id,
            "seq": i,
            "shape_ok": record_id not in faults and shape_problem(record, passed) is None,
            **(_request_columns(record) if isinstance(record, EditRequest) else _change_columns(record, now, policy)),
        }
        # The columns of a waived rule are cleared here, so that everything that rests on them agrees.
        row |= {name: False for name, reason in _WAIVABLE.items() if reason in passed}
        rows.append(row)
    _link_requests(rows, [r for _, r in readable], held or {}, ids or {})
    return pd.DataFrame(rows, columns=list(RECORD_COLUMNS))


_WAIVABLE = {"starts_future": "not_yet_valid", "untrusted": "low_trust"}


def _request_columns(request: EditRequest) -> dict[str, object]:
    new_key = request.target_new_id or text_key(request.target_new)
    old_key = None if request.target_true is None else text_key(request.target_true)
    if request.kind != "erase" and old_key == text_key(request.target_new):
        old_key = new_key
    return {
        "op": "request",
        "is_request": True,
        "relation": relation_key(request.relation, request.prompt),
        "subject_key": subject_key(request.subject_id, request.subject),
        "old_key": old_key,
        "new_key": new_key,
        "new_text": text_key(request.target_new),
        "new_is_item": True,
        "new_form": None,
        "rank": "normal",
        "ends_past": False,
        "starts_future": False,
        "num_references": 0,
        "statement_id": None,
        "revision": None,
        "untrusted": False,
        "reverted_later": False,
    }


def _change_columns(change: Change, now: datetime, policy: TrustPolicy) -> dict[str, object]:
    ends, starts = (earliest(change.qualifiers.get(pid, ())) for pid in ("P582", "P580"))
    old, new = change.old, change.new
    return {
        "op": change.op,
        "is_request": False,
        "relation": change.relation,
        "subject_key": change.subject.id,
        "old_key": old.id if old is not None and old.type == "item" else None,
        "new_key": new.id if new is not None and new.type == "item" else None,
        "new_text": None,
        "new_is_item": new is not None and new.type == "item",
        "rank": change.rank,
        "new_form": None if new is None or new.type != "item" else label_form(new.label),
        # A statement that ended nobody knows when, or that is stated as deprecated, is no more believed than one with a date.
        "ends_past": (bool(ends) and max(ends) <= _today(now))
        or "somevalue" in change.qualifiers.get("P582", ())
        or (change.rank == "deprecated" and change.op in ("add_statement", "set_value")),
        "starts_future": bool(starts) and min(starts) > _today(now),
        "num_references": change.references,
        "statement_id": change.statement_id or None,
        "revision": change.revision_new,
        "untrusted": is_untrusted(change, policy),
        "reverted_later": was_reverted(change, policy),
    }


def _link_requests(
    rows: Sequence[dict[str, Any]],
    records: Sequence[Incoming],
    held: Mapping[Slot, Mapping[str, str]],
    ids: Mapping[str, str],
) -> None:
    """Give requests that go on from each other (A to B, then B to C or back to A) one statement id, as changes have.

    A request names its old value by label, so the label is first looked up among what the slot holds or was given, then among
    all that the night names by label and id.
    """
    asked = [(row, record) for row, record in zip(rows, records, strict=True) if isinstance(record, EditRequest)]
    names: dict[Slot, dict[str, str]] = {}
    for row, record in asked:
        slot = (row["subject_key"], row["relation"])
        names.setdefault(slot, dict(held.get(slot, {}))).setdefault(text_key(record.target_new), row["new_key"])
    last: dict[Slot, dict[str, dict[str, Any]]] = {}
    elsewhere = {text_key(label): known_id for label, known_id in ids.items()}
    for row, record in asked:
        slot = (row["subject_key"], row["relation"])
        row["old_key"] = names[slot].get(row["old_key"]) or elsewhere.get(row["old_key"], row["old_key"])
        if record.kind == "erase":
            continue
        ends = last.setdefault(slot, {})
        old: str = row["old_key"] or ""
        before = ends.pop(old, None) if old != row["new_key"] else None
        if before is not None:
            before["statement_id"] = before["statement_id"] or f"request:{before['record_id']}"
            row["statement_id"] = before["statement_id"]
        ends[row["new_key"]] = row
