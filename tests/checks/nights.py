"""Small nights for tests: a store with a dozen facts, and changes of it with sensible defaults."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from checks.judging.verdicts import NightVerdicts, validate_night
from warehouse.database.connection import Warehouse
from warehouse.records import EditRequest, Entity
from warehouse.world.changes import Change, Value
from warehouse.world.facts import fact_id

NOW = datetime(2026, 10, 3, 22, tzinfo=UTC)
LABELS = {
    "Q1": "Anna Berg", "Q2": "Bern", "Q3": "Oslo", "Q4": "Lima", "Q5": "Karl Berg", "Q6": "Eva Holm", "Q7": "Ida Berg",
    "Q8": "midfielder", "Q9": "Tom Lund", "Q10": "Rosa Vik", "Q11": "Ada Sund", "Q12": "guitar award",
    "Q13": "goalkeeper",
}  # fmt: skip
#: pid: label, cardinality, inverse, symmetric, value type, subject type
PROPERTIES = {
    "P19": ("place of birth", "single", None, False, "place", "human"),
    "P20": ("place of death", "single", None, False, "place", "human"),
    "P22": ("father", "single", "P40", False, "human", "human"),
    "P25": ("mother", "single", "P40", False, "human", "human"),
    "P26": ("spouse", "multi", "P26", True, "human", "human"),
    "P40": ("child", "multi", "P22|P25", False, "human", "human"),
    "P166": ("award received", "multi", None, False, "award", "human"),
    "P413": ("position played", "multi", None, False, "sports position", "human"),
}
FACTS = (
    ("Q1", "P19", "Q2"), ("Q9", "P19", "Q3"), ("Q10", "P20", "Q4"), ("Q1", "P413", "Q8"), ("Q9", "P413", "Q13"),
    ("Q1", "P22", "Q5"), ("Q1", "P25", "Q6"), ("Q5", "P26", "Q6"), ("Q5", "P40", "Q1"), ("Q9", "P166", "Q12"),
)  # fmt: skip


def no_suite(frame: pd.DataFrame) -> dict[str, Any]:
    """In place of Great Expectations, which takes seconds to import."""
    return {"success": True, "rows": len(frame), "results": []}


def small_store() -> Warehouse:
    store = Warehouse.open(":memory:")
    store.append("properties", [
        {"pid": pid, "label": label, "cardinality": cardinality, "single_in_practice": cardinality == "single",
         "inverse_pid": inverse, "symmetric": symmetric, "value_type": value, "subject_type": subject,
         "temporal": False}
        for pid, (label, cardinality, inverse, symmetric, value, subject) in PROPERTIES.items()
    ])  # fmt: skip
    store.append("templates", [
        {"relation": pid, "idx": 0, "prompt": "The " + PROPERTIES[pid][0] + " of {s} is", "phrase": "x",
         "inverse": None}
        for pid in PROPERTIES
    ])  # fmt: skip
    for i, (s, p, o) in enumerate(FACTS):
        add_fact(store, s, p, o, statement_id=f"{s}${p}-base", revision=100 + i)
    return store


def add_fact(store: Warehouse, s: str, p: str, o: str, *, revision: int = 100, night: str = "",
             until: str | None = None, statement_id: str | None = None) -> None:  # fmt: skip
    row = {"subject_id": s, "subject": LABELS[s], "relation": p, "object_id": o, "object": LABELS[o], "rank": "normal",
           "statement_id": statement_id, "revision": revision, "valid_from": None, "valid_to": None, "source": "test",
           "known_from_night": night}  # fmt: skip
    store.append("facts", [{**row, "fact_id": fact_id(row), "known_to_night": until}])


def item(qid: str, label: str | None = None) -> Value:
    return Value(type="item", id=qid, label=LABELS.get(qid, "") if label is None else label)


def change(record_id: str, op: str, s: str, p: str, old: str | Value | None, new: str | Value | None, **other: Any) -> Change:
    """A referenced, patrolled change; its number in the night is the number in its record id."""
    number = int("".join(c for c in record_id if c.isdigit()) or 0)
    old, new = (item(v) if isinstance(v, str) else v for v in (old, new))
    base = op != "add_statement"
    fields: dict[str, Any] = {
        "record_id": record_id, "night": "night-03", "received_at": NOW + timedelta(minutes=number), "op": op,
        "subject": Entity(id=s, label=LABELS[s]), "relation": p, "relation_label": PROPERTIES.get(p, (p,))[0],
        "old": old, "new": new, "rank": "normal", "qualifiers": {}, "references": 1,
        "statement_id": f"{s}${p}-base" if base else f"{s}${record_id}", "editor_class": "autoconfirmed",
        "patrolled": True, "comment": "", "tags": (), "revision_old": 999, "revision_new": 1000 + number,
    }  # fmt: skip
    return Change(**(fields | other))


def request(request_id: str, subject: str = "Anna Berg", target: str = "Oslo", **other: Any) -> EditRequest:
    fields: dict[str, Any] = {
        "request_id": request_id, "prompt": f"The birthplace of {subject} is", "subject": subject, "relation": "P19",
        "target_new": target, "received_at": NOW,
    }  # fmt: skip
    return EditRequest(**(fields | other))


def judged(store: Warehouse, changes: Sequence[Any], **options: Any) -> NightVerdicts:
    return validate_night(store, "night-03", changes, NOW, **({"suite": no_suite} | options))


def outcomes(result: NightVerdicts) -> dict[str, tuple[str, str]]:
    return {v.record_id: (v.verdict, v.reason) for v in result.verdicts}
