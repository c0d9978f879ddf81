"""What a judged night means for the store and the editor: facts that begin and end, and the edits of the night."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from checks.judging.conflicts import Row, ids
from checks.judging.requests import earliest
from warehouse.database.connection import Reader
from warehouse.nights.conflicts import slot_labels
from warehouse.records import EditRequest, Fact, Record, Verdict
from warehouse.world.changes import Change, Value

ACCEPTING = ("accept", "supersede")


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


def accepted_rows(rows: Mapping[str, Row], verdicts: Mapping[str, Verdict]) -> list[Row]:
    return [row for record_id, row in rows.items() if verdicts[record_id].verdict in ACCEPTING]


def edited_rows(rows: Mapping[str, Row], verdicts: Mapping[str, Verdict]) -> list[Row]:
    """Accepted rows, the last of each subject and relation; a target goes before an erasure."""
    chosen: dict[tuple[str, str], Row] = {}
    for row in sorted(accepted_rows(rows, verdicts), key=lambda r: (r["asserts"], r["seq"])):
        chosen[row["subject_key"], row["relation"]] = row
    return sorted(chosen.values(), key=lambda r: r["seq"])


def outcome(
    store: Reader,
    night: str,
    records: Mapping[str, Any],
    rows: Mapping[str, Row],
    verdicts: Mapping[str, Verdict],
    report: dict[str, Any],
) -> NightVerdicts:
    """The night's verdicts with the facts that begin and end by them, and the changes that reach an editor."""
    accepted = sorted(accepted_rows(rows, verdicts), key=lambda r: r["seq"])
    slots = pd.DataFrame(
        [{"subject_key": r["subject_key"], "relation": r["relation"]} for r in accepted], columns=["subject_key", "relation"]
    )
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
    edit_ids = tuple(row["record_id"] for row in edited_rows(rows, verdicts))
    # A triple that one record asserts is not ended by another one.
    kept = {(a.fact.subject_id, a.fact.relation, a.fact.object_id) for a in added}
    ends = tuple(
        FactEnd(record_id=by, subject_id=s, relation=p, object_id=o) for (s, p, o), by in ended.items() if (s, p, o) not in kept
    )
    return NightVerdicts(
        night=night,
        verdicts=tuple(verdicts[record_id] for record_id in records),
        accepted=tuple(completed.values()),
        accepted_ids=tuple(completed),
        edits=tuple(completed[i] for i in edit_ids),
        edit_ids=edit_ids,
        added=tuple(added),
        ended=ends,
        suite=report,
    )


def _gone(row: Row, verdict: Verdict) -> list[str]:
    """Object ids of the slot that the store held and this record takes away."""
    held = ids(row["slot_objects"])
    if not row["asserts"]:
        return [i for i in held if i == (row["old_key"] or row["new_key"])]
    if row["is_request"]:
        keeps = not row["property_single"] and row["kind"] != "erase"
        return [] if keeps else [i for i in held if i != row["new_key"]]
    if verdict.verdict != "supersede":
        return []
    leaving = {row["replaced_key"], *ids(row["closed_keys"])}
    # A changed statement takes its own value away and no other one, whatever the cardinality (policy, rules).
    if row["property_single"] and (row["is_addition"] or not leaving & set(held)):
        return [i for i in held if i != row["new_key"]]
    return [i for i in held if i in leaving]


def _with_old(change: Change, row: Row, gone: list[str], labels: Mapping[tuple[str, str, str], str]) -> Change:
    """The change as the model must see it: from what it was taught, not from a value in the middle of the night."""
    if not row["asserts"]:
        # A value that was closed by rank or end date goes as one that was removed does.
        return change.model_copy(update={"op": "remove_statement", "old": change.old or change.new, "new": None})
    if not gone:
        return change
    if change.old is not None and change.old.id in gone:
        return change
    label = labels[row["subject_key"], row["relation"], gone[0]]
    return change.model_copy(update={"old": Value(type="item", id=gone[0], label=label)})


def _addition(change: Change) -> FactAddition:
    assert change.new is not None
    fact = Fact(
        subject_id=change.subject.id,
        subject=change.subject.label,
        relation=change.relation,
        object_id=change.new.id,
        object=change.new.label,
        valid_from=_moment(change, "P580", min),
        valid_to=_moment(change, "P582", max),
        source=f"night:{change.night}:{change.record_id}",
    )
    return FactAddition(
        record_id=change.record_id,
        fact=fact,
        rank=change.rank,
        statement_id=change.statement_id or None,
        revision=change.revision_new,
    )


def _requested(record_id: str, request: EditRequest) -> FactAddition:
    fact = Fact(
        subject_id=request.subject_id,
        subject=request.subject,
        relation=request.relation,
        object_id=request.target_new_id,
        object=request.target_new,
        source=f"request:{request.request_id}",
    )
    return FactAddition(record_id=record_id, fact=fact)


def _moment(change: Change, qualifier: str, pick: Callable[..., tuple[int, int, int]]) -> datetime | None:
    """P580 or P582 as a time where a calendar has it; facts of antiquity have no `datetime`."""
    times = [time for time in earliest(change.qualifiers.get(qualifier, ())) if 1 <= time[0] <= 9999]
    if not times:
        return None
    try:
        return datetime(*pick(times), tzinfo=UTC)
    except ValueError:
        # Wikidata holds days such as 31 June; the year is still right.
        return datetime(pick(times)[0], 1, 1, tzinfo=UTC)
