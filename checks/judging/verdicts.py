"""Validate a night: every record of it gets exactly one verdict, and the accepted ones a change of the store.

Three layers: conflict columns in SQL (`warehouse.nights.conflicts`), verdict rules over them (`checks.judging.conflicts`),
and a Great Expectations suite over what would reach an editor (`checks.judging.expectations`). Nothing is written: the store is
read as it stood before the night, and the caller applies `added` and `ended` in one transaction.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from checks.door.identity import Fault, Identified, identified, reused_ids
from checks.door.text_safety import text_and_likeness
from checks.door.text_safety_policy import DoorPolicy, shipped_door
from checks.door.text_safety_rates import rate_suspicions
from checks.door.trust import TrustPolicy, shipped_trust
from checks.errors import ValidatorBroke
from checks.judging.conflicts import Row, denial_verdict, eq3_verdict, judge
from checks.judging.consistency import mutual_denials, read_logic, rival_targets
from checks.judging.expectations import SUITE_COLUMNS, run_request_suite
from checks.judging.outcome import ACCEPTING, FactAddition, FactEnd, NightVerdicts, accepted_rows, edited_rows, outcome
from checks.judging.requests import Incoming, record_rows, shape_problem
from warehouse.database.connection import Reader
from warehouse.errors import WarehouseError
from warehouse.keys import Slot
from warehouse.nights.conflicts import conflict_columns, held_labels, past_requests, text_key
from warehouse.records import EditRequest, Verdict
from warehouse.world.changes import Change, Malformed
from warehouse.world.queries import stated_relations

logger = logging.getLogger(__name__)

__all__ = ["ACCEPTING", "FactAddition", "FactEnd", "NightVerdicts", "Suite", "validate_night"]

Suite = Callable[[pd.DataFrame], dict[str, Any]]


@dataclass(frozen=True)
class _Options:
    evidence: pd.DataFrame | None
    require_templates: bool
    waived: Mapping[str, Collection[str]]
    door: DoorPolicy | None
    trust: TrustPolicy


def validate_night(
    store: Reader,
    night: str,
    changes: Sequence[Incoming],
    now: datetime,
    *,
    record_ids: Sequence[str] | None = None,
    evidence: pd.DataFrame | None = None,
    require_templates: bool = True,
    suite: Suite = run_request_suite,
    waived: Mapping[str, Collection[str]] | None = None,
    guard_door: bool = True,
    door: DoorPolicy | None = None,
    trust: TrustPolicy | None = None,
    faults: Mapping[str, Fault] | None = None,
) -> NightVerdicts:
    """Judge all records of one night against each other, the store and earlier nights.

    Args:
        store: read only. Its facts must not hold anything of this night yet.
        changes: parsed records. One record id given twice is one record where the contents agree.
        now: the clock of the night; P580 and P582 are held against it.
        record_ids: update record of each change; needed for edit requests, whose own id is the request's.
        evidence: more (subject_id, relation, object_id) triples for typing objects.
        require_templates: hold back changes of properties that no prompt can state.
        suite: what checks the accepted records at the end.
        waived: by record id, the rules that a person has set aside for a released record; no other rule is.
        guard_door: look for suspicious texts and rates (`checks.door.text_safety`).
        door, trust: policies; default the shipped ones.
        faults: what is known to stand against a record before it is compared (`checks.door.receipt`).

    Raises:
        ValidatorBroke: an expectation or a query could not be computed; no verdict may be used.
        ValueError: `record_ids` and `changes` differ in length.
    """
    now = now if now.tzinfo is not None else now.replace(tzinfo=UTC)
    given = [_own_id(c) for c in changes] if record_ids is None else list(record_ids)
    records, verdicts = _fold(list(zip(given, changes, strict=True)))
    policy = (door or shipped_door()) if guard_door else None
    options = _Options(evidence, require_templates, waived or {}, policy, trust or shipped_trust())
    with _our_fault(night):
        known = identified(store, {i: r for i, r in records.items() if i not in verdicts})
        records |= known.records
        known.faults = {**known.faults, **reused_ids(store, night, known.records), **(faults or {})}
        rows = _rows(store, night, known, now, options)
        verdicts |= {record_id: judge(row) for record_id, row in rows.items()}
        _hold_back_contradictions(store, rows, verdicts)
        if policy is not None:
            _hold_back_rates(store, night, rows, verdicts, records, policy)
        _settle(rows, verdicts)
    report = suite(_suite_frame(rows, verdicts))
    if _hold_back_failures(report, rows, verdicts):
        _settle(rows, verdicts)
    with _our_fault(night):
        result = outcome(store, night, records, rows, verdicts, report)
    logger.info("night %s: %d records, %s", night, len(result.verdicts), result.counts())
    return result


@contextmanager
def _our_fault(night: str) -> Iterator[None]:
    """A query that fails says nothing about the data: the night stops, as with a broken expectation."""
    try:
        yield
    except WarehouseError as error:
        raise ValidatorBroke(
            f"night {night}: the validator's own query failed: {error}; the night has no verdicts, repair the query or "
            "the warehouse and run it again"
        ) from error


def _own_id(change: Incoming) -> str:
    return change.request_id if isinstance(change, EditRequest) else change.record_id


def _fold(pairs: list[tuple[str, Incoming]]) -> tuple[dict[str, Incoming], dict[str, Verdict]]:
    """Records by id, and the verdicts that need no comparison: unreadable records and ids used for two contents."""
    records: dict[str, Incoming] = {}
    verdicts: dict[str, Verdict] = {}
    for record_id, change in pairs:
        if records.setdefault(record_id, change) != change:
            sentence = f"Record id {record_id} came with two different contents; a person should say which one holds."
            verdicts[record_id] = _plain(record_id, "quarantine", "record_id_reused", sentence)
        elif isinstance(change, Malformed):
            verdicts[record_id] = _plain(record_id, "reject", change.reason, change.sentence)
    return records, verdicts


def _plain(record_id: str, verdict: Any, reason: str, sentence: str) -> Verdict:
    return Verdict(record_id=record_id, verdict=verdict, reason=reason, rule=reason, sentence=sentence)


def _rows(store: Reader, night: str, known: Identified, now: datetime, options: _Options) -> dict[str, dict[str, Any]]:
    waived, records = options.waived, known.records
    faults = {i: fault for i, fault in known.faults.items() if i in records and fault.reason not in waived.get(i, ())}
    ids = known.ids_by_label()
    slots = record_rows(list(records.items()), now, trust=options.trust, ids=ids, faults=faults)
    if slots.empty:
        return {}
    held = _held_names(store, slots)
    if held or waived:
        slots = record_rows(list(records.items()), now, trust=options.trust, waived=waived, held=held, ids=ids, faults=faults)
    stated = stated_relations(store) if options.require_templates else None
    columns = conflict_columns(store, slots, now, options.evidence, past_requests(store, night, ids))
    odd = {} if options.door is None else text_and_likeness(store, records, options.door, waived)
    rows: dict[str, dict[str, Any]] = {}
    for row in columns:
        record_id = row["record_id"]
        passed, suspicion = frozenset(waived.get(record_id, ())), odd.get(record_id)
        fault = faults.get(record_id)
        rows[record_id] = {
            **row,
            **_labels(records[record_id], passed),
            "waived": passed,
            "suspicion": suspicion,
            "suspicious_of": " ".join(suspicion.related) if suspicion else None,
            "has_template": stated is None or row["relation"] in stated,
            "fault": fault and fault.reason,
            "fault_sentence": fault and fault.sentence,
            "fault_of": " ".join(fault.related) if fault else None,
        }
        if row["is_closing"] and "retraction_without_replacement" in passed:
            # Released as a withdrawal: nothing is asserted any more, whatever the record's own value was.
            rows[record_id] |= {"asserts": False, "kind": "erase"}
    return rows


def _held_names(store: Reader, frame: pd.DataFrame) -> dict[Slot, dict[str, str]]:
    """Object id by `text_key` of its label, in the slots of the night's requests."""
    asked = frame.loc[frame["is_request"].astype(bool) & frame["old_key"].notna(), ["subject_key", "relation"]]
    if asked.empty:
        return {}
    names: dict[Slot, dict[str, str]] = defaultdict(dict)
    for subject, relation, object_id, label in held_labels(store, pd.DataFrame(asked)):
        names[subject, relation][text_key(label)] = object_id
    return names


def _labels(record: Incoming, waived: Collection[str]) -> dict[str, Any]:
    assert not isinstance(record, Malformed)
    common: dict[str, Any] = {"shape_reason": shape_problem(record, waived)}
    if isinstance(record, EditRequest):
        return common | {
            "subject_label": record.subject,
            "relation_label": record.relation,
            "new_label": record.target_new,
            "old_label": record.target_true or "",
            "request_id": record.request_id,
            "kind": record.kind,
        }
    erases = record.new is None
    return common | {
        "subject_label": record.subject.label,
        "relation_label": record.relation_label or record.relation,
        "new_label": record.new.label if record.new is not None else "",
        "old_label": record.old.label if record.old is not None else "",
        "request_id": None,
        "kind": "erase" if erases else "insert" if record.old is None else "modify",
    }


# ---------------------------------------------------------------- what one record's verdict means for another


def _hold_back_contradictions(store: Reader, rows: Mapping[str, Row], verdicts: dict[str, Verdict]) -> None:
    """By construction: whatever the rules let through or a person released, no two records of a batch disagree."""
    for record_id, rivals in rival_targets(accepted_rows(rows, verdicts)).items():
        verdicts[record_id] = eq3_verdict(rows[record_id], rivals)
    for record_id, others in mutual_denials(accepted_rows(rows, verdicts), read_logic(store)).items():
        verdicts[record_id] = denial_verdict(rows[record_id], others)


def _hold_back_rates(
    store: Reader,
    night: str,
    rows: dict[str, dict[str, Any]],
    verdicts: dict[str, Verdict],
    records: Mapping[str, Incoming],
    policy: DoorPolicy,
) -> None:
    changes = {i: record for i, record in records.items() if isinstance(record, Change)}
    asserting = [r for r in accepted_rows(rows, verdicts) if r["asserts"] and r["record_id"] in changes]
    for record_id, suspicion in rate_suspicions(store, night, asserting, changes, policy).items():
        row = rows[record_id]
        if suspicion.rule not in row["waived"]:
            row |= {"suspicion": suspicion, "suspicious_of": " ".join(suspicion.related)}
            verdicts[record_id] = judge(row)


def _settle(rows: dict[str, dict[str, Any]], verdicts: dict[str, Verdict]) -> None:
    """Closings and removals lean on other records; where those were held back, judge them again without."""
    for row in rows.values():
        if not row["is_closing"] or verdicts[row["record_id"]].reason == "failed_expectation":
            continue
        for column in ("replaced_by", "inverse_moved"):
            partners = (row[column] or "").split()
            standing = [i for i in partners if i == "store" or verdicts[i].verdict in ACCEPTING]
            row[column] = " ".join(standing) or None
        verdicts[row["record_id"]] = judge(row)


def _hold_back_failures(report: dict[str, Any], rows: Mapping[str, Row], verdicts: dict[str, Verdict]) -> bool:
    """Rows that fail an expectation are quarantined under its name; returns whether there were any."""
    failures: dict[str, list[str]] = defaultdict(list)
    for result in report["results"]:
        name = f"{result['expectation']}({result['column']})"
        for record_id in result["failing"]:
            if name not in rows[record_id]["waived"]:
                failures[record_id].append(name)
    for record_id, rules in failures.items():
        verdicts[record_id] = Verdict(
            record_id=record_id,
            verdict="quarantine",
            reason="failed_expectation",
            rule=rules[0],
            sentence=f"Record {record_id} passed the rules but failed {', '.join(rules)}; a person should look.",
            request_id=rows[record_id]["request_id"],
        )
    return bool(failures)


#: Column of the suite that must be zero, and the rule which a person may have waived for a record.
_SUITE_REASONS = {
    "in_store": "already_in_store", "stale": "stale_revision", "type_conflict": "type_violation",
    "contradicts": "contradiction_within_night", "contradicts_store": "contradiction_with_store",
    "inverse_conflict": "inverse_conflict", "composite_conflict": "logical_conflict",
}  # fmt: skip


def _suite_frame(rows: Mapping[str, Row], verdicts: Mapping[str, Verdict]) -> pd.DataFrame:
    edits = edited_rows(rows, verdicts)
    targets: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in edits:
        targets[row["subject_key"], row["relation"]].add(row["new_key"] or "")
    given = Counter(v.record_id for v in verdicts.values())
    frame = [
        {
            "record_id": row["record_id"],
            "subject_key": row["subject_key"],
            "subject": row["subject_label"],
            "relation": row["relation"],
            "target_key": row["new_key"],
            "target": row["new_label"],
            "kind": row["kind"],
            "is_request": int(row["is_request"]),
            "relation_known": int(row["property_known"]),
            "self_reference": int(row["subject_key"] == row["new_key"]),
            "no_change": int(row["asserts"] and row["new_key"] == row["old_key"]),
            "num_targets": len(targets[row["subject_key"], row["relation"]]),
            "num_verdicts": given[row["record_id"]],
            "repeats": int(row["redelivered_of"] is not None or row["same_triple_of"] is not None),
            **{name: int(bool(row[name]) and reason not in row["waived"]) for name, reason in _SUITE_REASONS.items()},
        }
        for row in edits
    ]
    return pd.DataFrame(frame, columns=list(SUITE_COLUMNS))
