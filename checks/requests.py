"""The shape of one record, before it is compared with any other: labels, data types, times, and its row in the frame.

Rules 1 and 2 of the update policy. Everything here looks at one record alone; `warehouse.conflicts` compares.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

import pandas as pd

from warehouse.changes import Change, Malformed
from warehouse.conflicts import RECORD_COLUMNS
from warehouse.records import EditRequest

Incoming = Change | EditRequest | Malformed

#: Wikidata's own limit for labels.
MAX_LABEL_CHARS = 250
#: Targets of a user's request may be sentences (KnowEdit's WikiBio), not whole documents.
MAX_TEXT_CHARS = 4_000
#: Accounts without a history; they count as untrusted while nobody has patrolled the edit.
UNTRUSTED_CLASSES = frozenset({"newcomer", "temporary_account", "anonymous", "ip", "unknown", ""})

_BARE_ID = re.compile(r"[QPL]\d+\Z")
_MARKUP = re.compile(r"[<>]|\{\{|\}\}|\$\{|</|&[a-z]+;", re.I)
_ADDRESS = re.compile(r"\b(?:https?|ftp)://|\bwww\.|\S+@\S+\.\w+", re.I)
_CODE = re.compile(r"""["')]\s*;|;\s*--|\b(?:drop|alter)\s+table\b|\b(?:insert\s+into|delete\s+from)\b""", re.I)
_LONG_RUN = re.compile(r"(.)\1{5,}", re.S)
_PLACEHOLDERS = frozenset(
    {"null", "none", "nil", "n/a", "undefined", "unknown", "no label", "test", "todo", "tbd", "xxx",
     "lorem ipsum", "(empty)", "nan"}
)  # fmt: skip
_KEYBOARD_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "1234567890")
_HIDDEN = frozenset("\u200b\u2060\ufeff\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_TIME = re.compile(r"([+-]?)(\d{1,16})-(\d{2})-(\d{2})")


# ---------------------------------------------------------------- labels


def has_control_characters(text: str) -> bool:
    """Control, unassigned or private characters, lone surrogates, zero-width and direction marks."""
    return any(char in _HIDDEN or unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn") for char in text)


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


def shape_problem(record: Change | EditRequest) -> str | None:
    """Reason code of rule 1 for one record alone, or None. Types and no-change need more than the record."""
    return _request_problem(record) if isinstance(record, EditRequest) else _change_problem(record)


def _change_problem(change: Change) -> str | None:
    if change.op in ("set_label", "set_description"):
        return "not_a_statement"
    kinds = {value.type for value in (change.new, change.old) if value is not None}
    if kinds & {"string", "text"}:
        return "unsupported_datatype"
    if change.new is not None and change.new.type == "none":
        return "no_value"
    if change.new is None and change.op in ("set_value", "add_statement"):
        return "no_value"
    if change.new is not None:
        problem = label_problem(change.new.label)
        if problem is not None:
            return problem
        if change.new.id == change.subject.id:
            return "self_reference"
    subject = label_problem(change.subject.label)
    return "no_english_label" if subject == "empty_label" else subject


def _request_problem(request: EditRequest) -> str | None:
    for text in (request.subject, request.prompt, request.target_new):
        problem = text_problem(text)
        if problem is not None:
            return problem
    if request.subject not in request.prompt:
        return "prompt_without_subject"
    same_item = request.target_new_id != "" and request.target_new_id == request.subject_id
    if same_item or request.target_new.casefold().strip() == request.subject.casefold().strip():
        return "self_reference"
    return None


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def record_rows(records: Sequence[tuple[str, Incoming]], now: datetime) -> pd.DataFrame:
    """One row of `RECORD_COLUMNS` for each readable record, numbered in order of arrival."""
    readable = [(record_id, r) for record_id, r in records if not isinstance(r, Malformed)]
    readable.sort(key=lambda pair: pair[1].received_at or now)
    rows = [
        {"record_id": record_id, "seq": i, "shape_ok": shape_problem(record) is None, **_columns(record, now)}
        for i, (record_id, record) in enumerate(readable)
    ]
    return pd.DataFrame(rows, columns=list(RECORD_COLUMNS))


def _columns(record: Change | EditRequest, now: datetime) -> dict[str, object]:
    if isinstance(record, EditRequest):
        new_key = record.target_new_id or "text:" + _folded(record.target_new)
        old_key = None if record.target_true is None else "text:" + _folded(record.target_true)
        if record.kind != "erase" and old_key == "text:" + _folded(record.target_new):
            old_key = new_key
        # A request without relation is about its prompt: the survey's eq. 3 then compares equal prompts.
        return {
            "op": "request", "is_request": True, "relation": record.relation or "prompt:" + _folded(record.prompt),
            "subject_key": record.subject_id or "text:" + _folded(record.subject),
            "old_key": old_key, "new_key": new_key, "new_is_item": True,
            "rank": "normal", "ends_past": False, "starts_future": False, "num_references": 0, "statement_id": None,
            "revision": None, "untrusted": False,
        }  # fmt: skip
    ends, starts = (earliest(record.qualifiers.get(pid, ())) for pid in ("P582", "P580"))
    old, new = record.old, record.new
    return {
        "op": record.op, "is_request": False, "relation": record.relation, "subject_key": record.subject.id,
        "old_key": old.id if old is not None and old.type == "item" else None,
        "new_key": new.id if new is not None and new.type == "item" else None,
        "new_is_item": new is not None and new.type == "item", "rank": record.rank,
        "ends_past": bool(ends) and max(ends) <= _today(now),
        "starts_future": bool(starts) and min(starts) > _today(now),
        "num_references": record.references, "statement_id": record.statement_id or None,
        "revision": record.revision_new,
        "untrusted": not record.patrolled and record.editor_class in UNTRUSTED_CLASSES,
    }  # fmt: skip
