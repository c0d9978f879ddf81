"""Conflict columns of a night: its records joined in DuckDB with each other, with the store and with earlier nights.

The input frame has one row per record (`RECORD_COLUMNS`); the answer has the same rows with the columns below added.
Nothing is judged here: `checks.judging.conflicts` turns the columns into verdicts. A *key* is a Q-id, or the folded label
where a source has text only; a *slot* is subject + relation. The ledger of past edits is read in two places: in
`facts` (what a night made the store believe) and, for sources without ids, in `edit_requests` (`past_requests`).
A column names at most `MAX_EVIDENCE` records.

Added columns (ids are joined by a space, NULL means none):
    type_by_spelling    it is by the spelling of its label alone
    type_conflict       the proposed object is only known in roles that this property's value type excludes
    single              the slot holds one value at a time
    redelivered_of      earlier record of the night with the same event;  known_revision: the store has it already
    same_triple_of      earlier record of the night that asserts the same triple
    chain               alone | superseded | final | reverted | net_noop: place in the night's changes of one statement
    replaced_key        value that stood before the chain;  chain_of: the chain's other records
    is_addition         the chain opens a statement (and does not change one that stood before the night)
    slot_objects        current objects of the slot;  in_store: the new one is among them
    stale               a newer revision has been applied to the slot
    held_before         an earlier night ended this very value here;  changed_before: an earlier night wrote the slot
    contradicts         records adding another value to the same single-valued slot
    closing_of          records of the night that close the value which this one replaces
    contradicts_store   added without reference to a single-valued slot that keeps another value
    low_trust           an untrusted record replaces a value, or brings one that was taken back later
    inverse_conflict, composite_conflict   records that disagree with this one, or 'store': an edit of an earlier night
    inverse_is_hard     the inverse is strict and one side of it holds one value at a time
    replaced_by         for a closing record: the records that bring the new value
    inverse_moved       for a removal: its inverse statement has moved to another value
    supported_by        record, or 'store', which asserts the inverse;  num_targets: live targets of the slot
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

import pandas as pd

from warehouse.database.connection import Reader
from warehouse.keys import folded, relation_key, text_key
from warehouse.nights.conflict_sql import DISAGREEMENTS, MAX_EVIDENCE, REPEATS
from warehouse.nights.conflict_types import MIN_SHARED_ENTITIES, RECORD_COLUMNS, TYPE_FAMILIES, TYPES
from warehouse.reference import HERE

__all__ = [
    "MAX_EVIDENCE",
    "MIN_SHARED_ENTITIES",
    "RECORD_COLUMNS",
    "TYPE_FAMILIES",
    "conflict_columns",
    "folded",
    "held_labels",
    "logic_rules",
    "past_requests",
    "slot_labels",
    "text_key",
]

RULES_FILE = HERE / "rules.csv"
_PAST_COLUMNS = ["subject_key", "relation", "old_key", "new_key", "is_latest", "in_facts"]


_SLOT_LABELS = """
SELECT DISTINCT f.subject_id, f.relation, f.object_id, f.object FROM facts f
WHERE f.known_to_night IS NULL
  AND EXISTS (SELECT 1 FROM night_records n
              WHERE CAST(n.subject_key AS VARCHAR) = f.subject_id AND CAST(n.relation AS VARCHAR) = f.relation)
"""

_HELD_LABELS = """
WITH slots AS (SELECT DISTINCT CAST(subject_key AS VARCHAR) AS subject_key, CAST(relation AS VARCHAR) AS relation
               FROM night_records),
stated AS (SELECT pid, unnest(string_split(inverse_pid, '|')) AS inverse FROM properties WHERE inverse_pid <> ''),
inv AS (SELECT pid, inverse FROM stated UNION SELECT inverse, pid FROM stated)
SELECT s.subject_key, s.relation, f.subject_id AS object_id, f.subject AS label
FROM slots s JOIN inv ON inv.pid = s.relation JOIN facts f ON f.relation = inv.inverse AND f.object_id = s.subject_key
WHERE f.known_to_night IS NULL
UNION SELECT s.subject_key, s.relation, f.object_id, f.object
FROM slots s JOIN facts f ON f.subject_id = s.subject_key AND f.relation = s.relation WHERE f.known_to_night IS NULL
ORDER BY ALL
"""

# One statement, so that no column loses its type on the way through a frame.
_ALL = f"""
WITH typed_records AS MATERIALIZED ({TYPES}), repeat_records AS MATERIALIZED ({REPEATS})
SELECT * FROM ({DISAGREEMENTS}) ORDER BY seq
"""


@cache
def logic_rules() -> tuple[dict[str, str], ...]:
    """Rows of `rules.csv`: quasi-inverses beside those of `properties`, and compositions X p A, A v B => X c B."""
    with RULES_FILE.open(encoding="utf-8", newline="") as handle:
        return tuple(csv.DictReader(handle))


def past_requests(store: Reader, night: str, ids: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Requests of the nights before `night` that say by label only what `facts` holds by id.

    Args:
        ids: id by `folded` label, of what this night names by both: an earlier request that had the label alone is about it.

    Returns:
        (requests, subject_key | relation | old_key | new_key | is_latest | in_facts); `new_key` None: an erasure;
        `in_facts`: all its parts have ids, so `facts` tells what became of it, and only the old value is news.
    """
    rows = store.rows(
        """SELECT subject_id, subject, relation, prompt, target_new_id, target_new, target_true, kind FROM edit_requests
           WHERE place_of(night) < place_of(?)
             AND (subject_id = '' OR target_new_id = '' OR relation = '' OR target_true IS NOT NULL)
           ORDER BY place_of(night), night, request_id""",
        [night],
    )
    known = {text_key(label): known_id for label, known_id in (ids or {}).items()}

    def key(given: str, label: str) -> str:
        return given or known.get(text_key(label), text_key(label))

    found = [
        {
            "subject_key": key(row["subject_id"], row["subject"]),
            "relation": relation_key(row["relation"], row["prompt"]),
            "old_key": None if row["target_true"] is None else text_key(row["target_true"]),
            "new_key": None if row["kind"] == "erase" else key(row["target_new_id"], row["target_new"]),
            "is_latest": False,
            "in_facts": bool(row["subject_id"] and row["target_new_id"] and row["relation"]),
        }
        for row in rows
    ]
    latest = {(row["subject_key"], row["relation"]): row for row in found}
    for row in latest.values():
        row["is_latest"] = True
    return pd.DataFrame(found, columns=_PAST_COLUMNS)


def conflict_columns(
    store: Reader,
    records: pd.DataFrame,
    now: datetime,
    evidence: pd.DataFrame | None = None,
    past: pd.DataFrame | None = None,
) -> list[dict[str, Any]]:
    """The records of one night, each a dict with the conflict columns of the module's head; the store is only read.

    Args:
        store: the warehouse, its facts as they stood before the night.
        records: (records, RECORD_COLUMNS), `record_id` unique, `seq` in order of arrival.
        now: a fact whose `valid_to` lies before it no longer counts as current.
        evidence: more (subject_id, relation, object_id) triples to learn from in which roles an entity appears.
        past: edits of earlier nights that `facts` does not hold; see `past_requests`.

    Raises:
        ValueError: a column is missing, or two rows have one `record_id`.
    """
    if "new_form" not in records.columns:
        records = records.assign(new_form=None)
    missing = set(RECORD_COLUMNS) - set(records.columns)
    if missing:
        raise ValueError(f"night frame lacks columns {sorted(missing)}; it needs {sorted(RECORD_COLUMNS)}")
    if records["record_id"].duplicated().any():
        twice = sorted(records.loc[records["record_id"].duplicated(), "record_id"].unique())[:5]
        raise ValueError(f"night frame has several rows for record_id {twice}; fold them first")
    if evidence is None:
        evidence = pd.DataFrame({"subject_id": [], "relation": [], "object_id": []}, dtype="string")
    if past is None:
        past = pd.DataFrame(columns=_PAST_COLUMNS)
    return store.rows(
        _ALL,
        [now, now],
        night_records=records,
        more_evidence=evidence,
        past_request_rows=past,
        logic_rules=pd.DataFrame(logic_rules()),
    )


def held_labels(store: Reader, records: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """(subject key, relation, object id, label) of what the night's slots hold, by themselves or by an inverse fact."""
    rows = store.rows(_HELD_LABELS, None, night_records=records)
    return [(row["subject_key"], row["relation"], row["object_id"], row["label"]) for row in rows]


def slot_labels(store: Reader, records: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """(subject id, relation, object id) -> object label of every value that the store holds in the night's slots."""
    rows = store.rows(_SLOT_LABELS, None, night_records=records)
    return {(row["subject_id"], row["relation"], row["object_id"]): row["object"] for row in rows}
