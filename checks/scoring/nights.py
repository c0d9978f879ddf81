"""Score the validator on labelled nights: replay them in order and hold each verdict against its truth.

A folder holds `night-NN.events.jsonl` and `night-NN.truth.jsonl`, and `base_facts.jsonl` for the store before the
first night; without that file the embedded world's own base facts are taken.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from checks.errors import ChecksError
from checks.judging.expectations import run_request_suite
from checks.judging.verdicts import Suite, validate_night
from warehouse.database.connection import Warehouse
from warehouse.night_names import natural
from warehouse.records import UpdateRecord
from warehouse.reference.roles import read_roles
from warehouse.reference.world import HERE, facts
from warehouse.world.changes import parse_change
from warehouse.world.facts import BASE_NIGHT, FACT_IDENTITY, apply_fact_changes, fact_id
from warehouse.world.queries import held_objects

#: Verdict of the truth, verdict given.
Pair = tuple[str, str]


class ScoringError(ChecksError):
    """A folder of labelled nights cannot be scored: names the file and what it lacks."""


def night_clock(number: int) -> datetime:
    """'Now' of night N of the recorded nights (POLICY.md)."""
    return datetime(2026, 10, number, 22, tzinfo=UTC)


def score_nights(folder: Path, suite: Suite = run_request_suite) -> dict[str, Any]:
    """Replay all nights of a folder from its base facts.

    Returns:
        JSON-able: `hard` and `soft`, each with `macro_f1` over the verdicts that the truth has, `accuracy`, `n` and
        `by_verdict` (precision, recall, f1, n); `by_kind` (n, right, recall); `confusion` (truth -> given -> n);
        `reasons` (share of right verdicts with the truth's own reason); `after` (share of slots that hold what they
        should when the night is over); `errors`, every wrong record; `suite_failures`.

    Raises:
        ScoringError: the folder has no nights, or a night has no truth, or they do not join.
    """
    nights = sorted(folder.glob("night-*.events.jsonl"), key=lambda path: natural(path.name))
    if not nights:
        raise ScoringError(f"{folder} has no night-NN.events.jsonl; name a folder of labelled nights")
    judged: list[dict[str, Any]] = []
    after: list[bool] = []
    suite_failures = 0
    with Warehouse.open(":memory:") as store:
        _fill(store, folder)
        for path in nights:
            events, truth = _read(path), _truth(path)
            number = _number(path)
            night = f"night-{number:02d}"
            records = [_record(event, night) for event in events]
            result = validate_night(
                store,
                night,
                [parse_change(r) for r in records],
                night_clock(number),
                record_ids=[r.record_id for r in records],
                evidence=_known_roles(),
                require_templates=False,
                suite=suite,
            )
            apply_fact_changes(store, night, result.added_frame(), result.ended_triples())
            suite_failures += sum(not item["success"] for item in result.suite["results"])
            by_id = {event["record_id"]: event for event in events}
            for verdict in result.verdicts:
                expected = truth.get(verdict.record_id)
                if expected is None:
                    raise ScoringError(f"{path}: record {verdict.record_id} has no truth beside it")
                judged.append({**expected, "given": verdict.verdict, "given_reason": verdict.reason})
            after += _slots_after(store, by_id, truth)
    return _summary(judged, after, suite_failures)


# ---------------------------------------------------------------- reading


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise ScoringError(f"{path} cannot be read: {error}; expected one JSON object on each line") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ScoringError(f"{path}: a line is no JSON object")
    return rows


def _number(events: Path) -> int:
    """The number of a night, which is its day of the month."""
    text = events.name.removeprefix("night-").split(".")[0]
    if not text.isdecimal() or not 1 <= int(text) <= 31:
        raise ScoringError(f"{events}: night {text!r}; labelled nights are numbered 01 to 31")
    return int(text)


def _truth(events: Path) -> dict[str, dict[str, Any]]:
    path = events.with_name(events.name.replace(".events.", ".truth."))
    if not path.exists():
        raise ScoringError(f"{events} has no {path.name} beside it; a night without labels cannot be scored")
    return {row["record_id"]: row for row in _read(path)}


def _record(event: Mapping[str, Any], night: str) -> UpdateRecord:
    raw = json.dumps(event, ensure_ascii=False)
    # The time is read by `parse_change`; a record keeps none of its own here.
    return UpdateRecord(record_id=event["record_id"], source="recorded", night=night, received_at=None, raw=raw)


def _fill(store: Warehouse, folder: Path) -> None:
    path = folder / "base_facts.jsonl"
    if path.exists():
        rows = [
            _base_row(r["subject"], r["property"]["id"], r["object"], r["rank"], r["statement_id"], r["revision"])
            for r in _read(path)
        ]
    else:
        rows = [
            _base_row({"id": f.subject_id, "label": f.subject}, f.relation, {"id": f.object_id, "label": f.object})
            for f in facts()
            if f.origin == "update_nights"
        ]
    store.append("facts", [{**row, "fact_id": fact_id(row)} for row in rows])
    fill_properties(store)


def fill_properties(store: Warehouse) -> None:
    """The shipped property table, for a store that holds nothing else of the embedded world."""
    with (HERE / "properties.csv").open(encoding="utf-8", newline="") as handle:
        store.append("properties", [_property(row) for row in csv.DictReader(handle)])


def _base_row(
    subject: Any, relation: str, obj: Any, rank: str = "normal", statement_id: str | None = None, revision: int | None = None
) -> dict[str, Any]:
    row = {
        "subject_id": subject["id"],
        "subject": subject["label"],
        "relation": relation,
        "object_id": obj["id"],
        "object": obj["label"],
        "rank": rank,
        "statement_id": statement_id,
        "revision": revision,
        "source": "base",
        "valid_from": None,
        "valid_to": None,
        "known_from_night": BASE_NIGHT,
    }
    assert set(row) == set(FACT_IDENTITY)
    return row


def _property(row: Mapping[str, str]) -> dict[str, Any]:
    flags = {name: row[name] == "True" for name in ("single_in_practice", "symmetric", "temporal")}
    texts = {name: row[name] or None for name in ("inverse_pid", "value_type", "subject_type")}
    return {"pid": row["pid"], "label": row["label"], "cardinality": row["cardinality"], **flags, **texts}


def _known_roles() -> pd.DataFrame:
    """The embedded world as evidence for typing: a running store holds it, the few base facts of a folder do not."""
    world = pd.DataFrame(
        [(f.subject_id, f.relation, f.object_id) for f in facts()], columns=["subject_id", "relation", "object_id"]
    )
    return pd.concat([world, read_roles()], ignore_index=True)


# ---------------------------------------------------------------- counting


def _slots_after(
    store: Warehouse, events: Mapping[str, Mapping[str, Any]], truth: Mapping[str, Mapping[str, Any]]
) -> list[bool]:
    held = held_objects(store)
    return [
        held[events[record_id]["subject"]["id"], events[record_id]["property"]["id"]] == set(row["after"])
        for record_id, row in truth.items()
        if row.get("after") is not None and record_id in events
    ]


def verdict_scores(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Precision, recall and F1 of each verdict that the truth has, and their unweighted mean (macro F1).

    A verdict that was given but that the truth never has costs precision elsewhere, so it needs no class of its own.
    """
    expected, given = Counter(e for e, _ in pairs), Counter(g for _, g in pairs)
    right = Counter(e for e, g in pairs if e == g)
    table = {}
    for name in sorted(expected):
        precision = right[name] / given[name] if given[name] else 0.0
        recall = right[name] / expected[name]
        f1 = 2 * precision * recall / (precision + recall) if right[name] else 0.0
        table[name] = {"precision": precision, "recall": recall, "f1": f1, "n": expected[name]}
    return {
        "macro_f1": _mean(row["f1"] for row in table.values()),
        "accuracy": _mean(float(e == g) for e, g in pairs),
        "n": len(pairs),
        "by_verdict": table,
    }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def _summary(judged: Sequence[Mapping[str, Any]], after: Sequence[bool], suite_failures: int) -> dict[str, Any]:
    kinds: dict[str, list[Pair]] = defaultdict(list)
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    for row in judged:
        kinds[row["kind"]].append((row["verdict"], row["given"]))
        confusion[row["verdict"]][row["given"]] += 1
    parts = {
        confidence: verdict_scores([(r["verdict"], r["given"]) for r in judged if r["confidence"] == confidence])
        for confidence in ("hard", "soft")
    }
    return {
        **parts,
        "by_kind": {
            kind: {"n": len(pairs), "right": sum(e == g for e, g in pairs), "recall": _mean(float(e == g) for e, g in pairs)}
            for kind, pairs in sorted(kinds.items())
        },
        "confusion": {verdict: dict(row) for verdict, row in sorted(confusion.items())},
        "reasons": _mean(float(r["reason"] == r["given_reason"]) for r in judged if r["verdict"] == r["given"]),
        "after": _mean(float(ok) for ok in after),
        "errors": [
            {key: r[key] for key in ("record_id", "kind", "verdict", "reason", "given", "given_reason")}
            for r in judged
            if r["verdict"] != r["given"]
        ],
        "suite_failures": suite_failures,
    }
