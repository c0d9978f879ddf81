"""The shape of one record, before it is compared with any other: labels, data types, times, and its row in the frame.

Rules 1 and 2 of the update policy. Everything here looks at one record alone; `warehouse.conflicts` compares.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pandas as pd

from checks.trust import TrustPolicy, is_untrusted, shipped_trust, was_reverted
from warehouse.changes import Change, Malformed
from warehouse.conflicts import RECORD_COLUMNS, folded, text_key
from warehouse.records import EditRequest

Incoming = Change | EditRequest | Malformed

#: Wikidata's own limit for labels.
MAX_LABEL_CHARS = 250
#: Targets of a user's request may be sentences (KnowEdit's WikiBio), not whole documents.
MAX_TEXT_CHARS = 4_000
#: Key of a slot's subject and of its relation.
Slot = tuple[str, str]

_BARE_ID = re.compile(r"[QPL]\d+\Z")
_MARKUP = re.compile(r"[<>]|</|&[a-z]+;", re.I)
_ADDRESS = re.compile(r"\b(?:https?|ftp)://|\bwww\.|\S+@\S+\.\w+", re.I)
_CODE = re.compile(r"""["')]\s*;|;\s*--|\b(?:drop|alter)\s+table\b|\b(?:insert\s+into|delete\s+from)\b""", re.I)
_LONG_RUN = re.compile(r"(.)\1{5,}", re.S)
_PLACEHOLDERS = frozenset(
    {"null", "none", "nil", "n/a", "undefined", "unknown", "no label", "test", "todo", "tbd", "xxx",
     "lorem ipsum", "(empty)", "nan"}
)  # fmt: skip
_KEYBOARD_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "1234567890")
_TIME = re.compile(r"([+-]?)(\d{1,16})-(\d{2})-(\d{2})")


# ---------------------------------------------------------------- labels


def has_control_characters(text: str) -> bool:
    """Control, unassigned or private characters and lone surrogates; invisible marks are `checks.door`'s."""
    return any(unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn") for char in text)


def _is_keyboard_run(word: str) -> bool:
    return len(word) >= 3 and any(word in row or word[::-1] in row for row in _KEYBOARD_ROWS)


def _is_mashed(label: str) -> bool:
    """Keys pressed in their order on the keyboard, or a long lower-case word without a vowel."""
    words = [word for word in re.split(r"[\s,;.\-_/]+", label.casefold()) if word]
    runs = [word for word in words if word.isalpha() and _is_keyboard_run(word)]
    if any(len(run) >= 6 for run in runs) or (len(words) >= 2 and len(runs) == len(words)):
        return True
    plain = "".join(c for c in unicodedata.normalize("NFKD", label) if c.isalpha())
    return len(plain) >= 7 and plain.isascii() and plain.islower() and not re.search("[aeiouy]", plain)


@lru_cache(maxsize=1 << 16)  # a night names the same entities again and again
def label_problem(label: str) -> str | None:
    """Reason code for a label that no statement should carry, or None; see rule 1 of the policy."""
    text = label.strip()
    if not text:
        return "empty_label"
    if (
        len(text) > MAX_LABEL_CHARS
        or has_control_characters(text)
        or not any(char.isalnum() for char in text)
        or text.casefold() in _PLACEHOLDERS
        or any(pattern.search(text) for pattern in (_MARKUP, _ADDRESS, _CODE, _LONG_RUN))
        or _is_mashed(text)
    ):
        return "malformed_label"
    if _BARE_ID.match(text) or not _is_latin(text):
        return "no_english_label"
    return None


def _is_latin(text: str) -> bool:
    letters = [char for char in text if char.isalpha()]
    latin = sum(unicodedata.name(char, "").startswith(("LATIN", "FULLWIDTH LATIN", "MODIFIER")) for char in letters)
    # A label without letters (a year, a number) reads the same in English.
    return not letters or latin * 2 >= len(letters)


def text_problem(text: str) -> str | None:
    """The same for a user's request: sentences in any script are his own affair, control characters are not."""
    if not text.strip():
        return "empty_label"
    controls = has_control_characters(text.replace("\n", " ").replace("\t", " ").replace("\r", " "))
    return "malformed_label" if controls or len(text) > MAX_TEXT_CHARS else None


# ---------------------------------------------------------------- times


def earliest(times: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """(year, month, day) of each readable Wikibase time, its first day where only year or month is known."""
    found = []
    for text in times:
        match = _TIME.match(text)
        if match:
            sign, year, month, day = match.groups()
            found.append((-int(year) if sign == "-" else int(year), max(int(month), 1), max(int(day), 1)))
    return tuple(found)


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
    for text in (request.subject, request.prompt, request.target_new):
        problem = text_problem(text)
        if problem is not None:
            yield problem
    if request.subject not in request.prompt:
        yield "prompt_without_subject"
    same_item = request.target_new_id != "" and request.target_new_id == request.subject_id
    if same_item or request.target_new.casefold().strip() == request.subject.casefold().strip():
        yield "self_reference"


def record_rows(
    records: Sequence[tuple[str, Incoming]], now: datetime, *, trust: TrustPolicy | None = None,
    waived: Mapping[str, Collection[str]] | None = None, held: Mapping[Slot, Mapping[str, str]] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """One row of `RECORD_COLUMNS` for each readable record, numbered in order of arrival.

    Args:
        trust: weighs the signals of a change; default the shipped policy.
        waived: reasons that a person has set aside for a record, by record id.
        held: object id by `text_key` of its label, for what the store holds in a slot: requests name old values by
            label only.
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
            "shape_ok": shape_problem(record, passed) is None,
            **(_request_columns(record) if isinstance(record, EditRequest) else _change_columns(record, now, policy)),
        }
        # The columns of a waived rule are cleared here, so that everything that rests on them agrees.
        row |= {name: False for name, reason in _WAIVABLE.items() if reason in passed}
        rows.append(row)
    _link_requests(rows, [r for _, r in readable], held or {})
    return pd.DataFrame(rows, columns=list(RECORD_COLUMNS))


_WAIVABLE = {"starts_future": "not_yet_valid", "untrusted": "low_trust"}


def _request_columns(request: EditRequest) -> dict[str, object]:
    new_key = request.target_new_id or text_key(request.target_new)
    old_key = None if request.target_true is None else text_key(request.target_true)
    if request.kind != "erase" and old_key == text_key(request.target_new):
        old_key = new_key
    # A request without relation is about its prompt: the survey's eq. 3 then compares equal prompts.
    return {
        "op": "request", "is_request": True, "relation": request.relation or "prompt:" + folded(request.prompt),
        "subject_key": request.subject_id or text_key(request.subject),
        "old_key": old_key, "new_key": new_key, "new_text": text_key(request.target_new), "new_is_item": True,
        "rank": "normal", "ends_past": False, "starts_future": False, "num_references": 0, "statement_id": None,
        "revision": None, "untrusted": False, "reverted_later": False,
    }  # fmt: skip


def _change_columns(change: Change, now: datetime, policy: TrustPolicy) -> dict[str, object]:
    ends, starts = (earliest(change.qualifiers.get(pid, ())) for pid in ("P582", "P580"))
    old, new = change.old, change.new
    return {
        "op": change.op, "is_request": False, "relation": change.relation, "subject_key": change.subject.id,
        "old_key": old.id if old is not None and old.type == "item" else None,
        "new_key": new.id if new is not None and new.type == "item" else None, "new_text": None,
        "new_is_item": new is not None and new.type == "item", "rank": change.rank,
        # A statement that ended nobody knows when, or that is stated as deprecated, is no more believed than one with a date.
        "ends_past": (bool(ends) and max(ends) <= _today(now)) or "somevalue" in change.qualifiers.get("P582", ())
        or (change.rank == "deprecated" and change.op in ("add_statement", "set_value")),
        "starts_future": bool(starts) and min(starts) > _today(now),
        "num_references": change.references, "statement_id": change.statement_id or None,
        "revision": change.revision_new, "untrusted": is_untrusted(change, policy),
        "reverted_later": was_reverted(change, policy),
    }  # fmt: skip


def _link_requests(rows: Sequence[dict[str, Any]], records: Sequence[Incoming], held: Mapping[Slot, Mapping[str, str]]) -> None:
    """Give requests that go on from each other (A to B, then B to C or back to A) one statement id, as changes have.

    A request names its old value by label, so the label is first looked up among what the slot holds or was given.
    """
    asked = [(row, record) for row, record in zip(rows, records, strict=True) if isinstance(record, EditRequest)]
    names: dict[Slot, dict[str, str]] = {}
    for row, record in asked:
        slot = (row["subject_key"], row["relation"])
        names.setdefault(slot, dict(held.get(slot, {}))).setdefault(text_key(record.target_new), row["new_key"])
    last: dict[Slot, dict[str, dict[str, Any]]] = {}
    for row, record in asked:
        slot = (row["subject_key"], row["relation"])
        row["old_key"] = names[slot].get(row["old_key"], row["old_key"])
        if record.kind == "erase":
            continue
        ends = last.setdefault(slot, {})
        old: str = row["old_key"] or ""
        before = ends.pop(old, None) if old != row["new_key"] else None
        if before is not None:
            before["statement_id"] = before["statement_id"] or f"request:{before['record_id']}"
            row["statement_id"] = before["statement_id"]
        ends[row["new_key"]] = row
