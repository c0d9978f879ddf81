"""Validate a night: every record of it gets exactly one verdict, and the accepted ones a change of the store.

Three layers: conflict columns in SQL (`warehouse.conflicts`), verdict rules over them (`checks.conflicts`), and a
Great Expectations suite over what would reach an editor (`checks.suites.requests`). Nothing is written: the store is
read as it stood before the night, and the caller applies `added` and `ended` in one transaction.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from checks.conflicts import Row, eq3_verdict, ids, judge
from checks.requests import Incoming, earliest, record_rows, shape_problem
from checks.suites.requests import SUITE_COLUMNS, run_request_suite
from warehouse.changes import Change, Malformed, Value
from warehouse.conflicts import Store, conflict_columns, slot_labels
from warehouse.records import EditRequest, Fact, Record, Verdict

logger = logging.getLogger(__name__)

ACCEPTING = ("accept", "supersede")
Suite = Callable[[pd.DataFrame], dict[str, Any]]


class FactAddition(Record):
    """A fact that the store believes from this night on; `fact` has no place for rank, statement and revision."""

    record_id: str
    fact: Fact
    rank: str = "normal"
    statement_id: str | None = None
    revision: int | None = None


class FactEnd(Record):
    """A triple that the store holds and ceases to believe with this night."""

    record_id: str
    subject_id: str
    relation: str
    object_id: str


class NightVerdicts(Record):
    """What became of a night.

    Attributes:
        verdicts: one per record, in the order given.
        accepted: accepted and superseding records in order of arrival, with `old` set to what the store held.
        edits: those of `accepted` that may share a batch: at most one for each subject and relation (eq. 3), so of
            several new values of a multi-valued slot only the last; all are in `added`.
        edit_ids: record id of each entry of `edits`;  accepted_ids: of each entry of `accepted`.
        added, ended: what the store learns and what it ceases to believe.
        suite: result of the Great Expectations suite, ready for JSON.
    """

    night: str
    verdicts: tuple[Verdict, ...]
    accepted: tuple[Change | EditRequest, ...]
    accepted_ids: tuple[str, ...]
    edits: tuple[Change | EditRequest, ...]
    edit_ids: tuple[str, ...]
    added: tuple[FactAddition, ...]
    ended: tuple[FactEnd, ...]
    suite: dict[str, Any]

    def added_frame(self) -> pd.DataFrame:
        """(added, columns of Fact with rank, statement_id, revision), as `apply_fact_changes` reads it."""
        extra = ("rank", "statement_id", "revision")
        rows = [a.fact.model_dump() | {name: getattr(a, name) for name in extra} for a in self.added]
        return pd.DataFrame(rows, columns=[*Fact.model_fields, *extra])

    def ended_triples(self) -> list[tuple[str, str, str]]:
        return [(e.subject_id, e.relation, e.object_id) for e in self.ended]

    def counts(self) -> dict[str, int]:
        return dict(Counter(v.verdict for v in self.verdicts))


def validate_night(
    store: Store, night: str, changes: Sequence[Incoming], now: datetime, *,
    record_ids: Sequence[str] | None = None, evidence: pd.DataFrame | None = None, require_templates: bool = True,
    suite: Suite = run_request_suite,
) -> NightVerdicts:  # fmt: skip
    """Judge all records of one night against each other, the store and earlier nights.

    Args:
        store: read only. Its facts must not hold anything of this night yet.
        changes: parsed records. One record id given twice is one record where the contents agree.
        now: the clock of the night; P580 and P582 are held against it.
        record_ids: update record of each change; needed for edit requests, whose own id is the request's.
        evidence: more (subject_id, relation, object_id) triples for typing objects.
        require_templates: hold back changes of properties that no prompt can state.
        suite: what checks the accepted records at the end.

    Raises:
        ValidatorBroke: an expectation could not be computed; no verdict may be used.
        ValueError: `record_ids` and `changes` differ in length.
    """
    now = now if now.tzinfo is not None else now.replace(tzinfo=UTC)
    given = [_own_id(c) for c in changes] if record_ids is None else list(record_ids)
    records, verdicts = _fold(list(zip(given, changes, strict=True)))
    rows = _rows(store, {i: r for i, r in records.items() if i not in verdicts}, now, evidence, require_templates)
    verdicts |= {record_id: judge(row) for record_id, row in rows.items()}
    _hold_back_rivals(rows, verdicts)
    _settle(rows, verdicts)
    report = suite(_suite_frame(rows, verdicts))
    if _hold_back_failures(report, rows, verdicts):
        _settle(rows, verdicts)
    result = _outcome(store, night, records, rows, verdicts, report)
    logger.info("night %s: %d records, %s", night, len(result.verdicts), result.counts())
    return result


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


def _rows(
    store: Store, records: Mapping[str, Incoming], now: datetime, evidence: pd.DataFrame | None, require_templates: bool
) -> dict[str, dict[str, Any]]:
    frame = record_rows(list(records.items()), now)
    if frame.empty:
        return {}
    templates = store.rows("SELECT DISTINCT relation FROM templates") if require_templates else None
    known = None if templates is None else {row["relation"] for row in templates}
    columns = conflict_columns(store, frame, now, evidence)
    rows: dict[str, dict[str, Any]] = {}
    for row in columns:
        record = records[row["record_id"]]
        rows[row["record_id"]] = {**row, **_labels(record), "has_template": known is None or row["relation"] in known}
    return rows


def _labels(record: Incoming) -> dict[str, Any]:
    assert not isinstance(record, Malformed)
    common: dict[str, Any] = {"shape_reason": shape_problem(record)}
    if isinstance(record, EditRequest):
        return common | {
            "subject_label": record.subject, "relation_label": record.relation, "new_label": record.target_new,
            "old_label": record.target_true or "", "request_id": record.request_id, "kind": record.kind,
        }  # fmt: skip
    erases = record.new is None
    return common | {
        "subject_label": record.subject.label, "relation_label": record.relation_label or record.relation,
        "new_label": record.new.label if record.new is not None else "",
        "old_label": record.old.label if record.old is not None else "",
        "request_id": None, "kind": "erase" if erases else "insert" if record.old is None else "modify",
    }  # fmt: skip


# ---------------------------------------------------------------- what one record's verdict means for another


def _accepted(rows: Mapping[str, Row], verdicts: Mapping[str, Verdict]) -> list[Row]:
    return [row for record_id, row in rows.items() if verdicts[record_id].verdict in ACCEPTING]


def _hold_back_rivals(rows: Mapping[str, Row], verdicts: dict[str, Verdict]) -> None:
    """Eq. 3 by construction: whatever the rules let through, one single-valued slot gets one target a night."""
    slots: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in _accepted(rows, verdicts):
        if row["asserts"]:
            slots[row["subject_key"], row["relation"]].append(row)
    for rivals in slots.values():
        if len({row["new_key"] for row in rivals}) > 1 and any(row["single"] for row in rivals):
            for row in rivals:
                others = tuple(sorted(r["record_id"] for r in rivals if r["new_key"] != row["new_key"]))
                verdicts[row["record_id"]] = eq3_verdict(row, others)


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
        for record_id in result["failing"]:
            failures[record_id].append(f"{result['expectation']}({result['column']})")
    for record_id, rules in failures.items():
        verdicts[record_id] = Verdict(
            record_id=record_id, verdict="quarantine", reason="failed_expectation", rule=rules[0],
            sentence=f"Record {record_id} passed the rules but failed {', '.join(rules)}; a person should look.",
            request_id=rows[record_id]["request_id"],
        )  # fmt: skip
    return bool(failures)


def _edits(rows: Mapping[str, Row], verdicts: Mapping[str, Verdict]) -> list[Row]:
    """Accepted rows, the last of each subject and relation; a target goes before an erasure."""
    chosen: dict[tuple[str, str], Row] = {}
    for row in sorted(_accepted(rows, verdicts), key=lambda r: (r["asserts"], r["seq"])):
        chosen[row["subject_key"], row["relation"]] = row
    return sorted(chosen.values(), key=lambda r: r["seq"])


def _suite_frame(rows: Mapping[str, Row], verdicts: Mapping[str, Verdict]) -> pd.DataFrame:
    edits = _edits(rows, verdicts)
    targets: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in edits:
        targets[row["subject_key"], row["relation"]].add(row["new_key"] or "")
    given = Counter(v.record_id for v in verdicts.values())
    frame = [
        {
            "record_id": row["record_id"], "subject_key": row["subject_key"], "subject": row["subject_label"],
            "relation": row["relation"], "target_key": row["new_key"], "target": row["new_label"], "kind": row["kind"],
            "is_request": int(row["is_request"]), "relation_known": int(row["property_known"]),
            "self_reference": int(row["subject_key"] == row["new_key"]),
            "no_change": int(row["asserts"] and row["new_key"] == row["old_key"]),
            "num_targets": len(targets[row["subject_key"], row["relation"]]), "num_verdicts": given[row["record_id"]],
            "repeats": int(row["redelivered_of"] is not None or row["same_triple_of"] is not None),
            **{name: int(bool(row[name])) for name in ("in_store", "stale", "type_conflict", "contradicts",
                                                       "contradicts_store", "inverse_conflict", "composite_conflict")},
        }
        for row in edits
    ]  # fmt: skip
    return pd.DataFrame(frame, columns=list(SUITE_COLUMNS))


# ---------------------------------------------------------------- what the store learns


def _outcome(
    store: Store, night: str, records: Mapping[str, Incoming], rows: Mapping[str, Row],
    verdicts: Mapping[str, Verdict], report: dict[str, Any],
) -> NightVerdicts:  # fmt: skip
    accepted = sorted(_accepted(rows, verdicts), key=lambda r: r["seq"])
    slots = pd.DataFrame([{"subject_key": r["subject_key"], "relation": r["relation"]} for r in accepted],
                         columns=["subject_key", "relation"])  # fmt: skip
    labels = slot_labels(store, slots) if accepted else {}
    completed: dict[str, Change | EditRequest] = {}
    added: list[FactAddition] = []
    ended: dict[tuple[str, str, str], str] = {}
    for row in accepted:
        record_id, record = row["record_id"], records[row["record_id"]]
        gone = _gone(row, verdicts[record_id])
        for object_id in gone:
            ended.setdefault((row["subject_key"], row["relation"], object_id), record_id)
        if isinstance(record, Change):
            completed[record_id] = _with_old(record, row, gone, labels)
            if row["asserts"]:
                added.append(_addition(record))
        elif isinstance(record, EditRequest):
            completed[record_id] = record
            if record.subject_id and record.relation and record.target_new_id and record.kind != "erase":
                added.append(_requested(record_id, record))
    edit_ids = tuple(row["record_id"] for row in _edits(rows, verdicts))
    # A triple that one record asserts is not ended by another one.
    kept = {(a.fact.subject_id, a.fact.relation, a.fact.object_id) for a in added}
    ends = tuple(FactEnd(record_id=by, subject_id=s, relation=p, object_id=o) for (s, p, o), by in ended.items()
                 if (s, p, o) not in kept)  # fmt: skip
    return NightVerdicts(
        night=night, verdicts=tuple(verdicts[record_id] for record_id in records),
        accepted=tuple(completed.values()), accepted_ids=tuple(completed), edits=tuple(completed[i] for i in edit_ids),
        edit_ids=edit_ids, added=tuple(added), ended=ends, suite=report,
    )  # fmt: skip


def _gone(row: Row, verdict: Verdict) -> list[str]:
    """Object ids of the slot that the store held and this record takes away."""
    held = ids(row["slot_objects"])
    if not row["asserts"]:
        return [i for i in held if i == row["old_key"]]
    if row["is_request"]:
        keeps = not row["property_single"] and row["kind"] != "erase"
        return [] if keeps else [i for i in held if i != row["new_key"]]
    if verdict.verdict != "supersede":
        return []
    if row["property_single"]:
        return [i for i in held if i != row["new_key"]]
    leaving = {row["replaced_key"], *ids(row["closed_keys"])}
    return [i for i in held if i in leaving]


def _with_old(change: Change, row: Row, gone: list[str], labels: Mapping[tuple[str, str, str], str]) -> Change:
    """The change as the model must see it: from what it was taught, not from a value in the middle of the night."""
    if not row["asserts"] or not gone:
        return change
    if change.old is not None and change.old.id in gone:
        return change
    label = labels[row["subject_key"], row["relation"], gone[0]]
    return change.model_copy(update={"old": Value(type="item", id=gone[0], label=label)})


def _addition(change: Change) -> FactAddition:
    assert change.new is not None
    fact = Fact(
        subject_id=change.subject.id, subject=change.subject.label, relation=change.relation, object_id=change.new.id,
        object=change.new.label, valid_from=_start(change), source=f"night:{change.night}:{change.record_id}",
    )  # fmt: skip
    return FactAddition(record_id=change.record_id, fact=fact, rank=change.rank,
                        statement_id=change.statement_id or None, revision=change.revision_new)  # fmt: skip


def _requested(record_id: str, request: EditRequest) -> FactAddition:
    fact = Fact(
        subject_id=request.subject_id, subject=request.subject, relation=request.relation,
        object_id=request.target_new_id, object=request.target_new, source=f"request:{request.request_id}",
    )  # fmt: skip
    return FactAddition(record_id=record_id, fact=fact)


def _start(change: Change) -> datetime | None:
    """P580 as a time where a calendar has it; facts of antiquity have no `datetime`."""
    starts = [start for start in earliest(change.qualifiers.get("P580", ())) if 1 <= start[0] <= 9999]
    if not starts:
        return None
    try:
        return datetime(*min(starts), tzinfo=UTC)
    except ValueError:
        # Wikidata holds days such as 31 June; the year is still right.
        return datetime(min(starts)[0], 1, 1, tzinfo=UTC)
