"""The quarantine queue: records that wait for a person, what was done with them, by whom, when and why.

A record waits from the verdict `quarantine` until somebody releases or rejects it. A released one joins the next
night under a new record id (`ID@NIGHT`) and is judged again with the rule that had held it set aside, and only that
one; a rejected one never does. Every act is a row of `quarantine_actions`, which is only ever appended to. Edits that
were taken out of a rejected night wait in the same queue; what is special about them is in `warehouse.nights.held_edits`.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, Literal

from warehouse.database.connection import Warehouse
from warehouse.database.frames import utc
from warehouse.digests import digest_of
from warehouse.errors import Conflict, IntegrityError, NotFound, UsageError
from warehouse.nights.order import nights_before
from warehouse.records import Record, UpdateRecord

logger = logging.getLogger(__name__)

Action = Literal["release", "reject", "join"]
State = Literal["waiting", "released", "joined", "rejected"]
#: Who joins released records to a night.
MACHINE = "errata"
#: Rules that no release can set aside: without knowledge of the property there is no prompt, and a batch that
#: contradicts itself is no batch. A record that they held is judged again as it stands.
UNWAIVABLE = frozenset({"unknown_property", "no_template", "one_target_per_slot", "no_mutual_denial"})


class QuarantineAction(Record):
    """One row of the audit trail."""

    seq: int
    source: str
    record_id: str
    action: Action
    rule: str
    reason: str
    actor: str
    acted_at: datetime
    joined_night: str | None = None
    joined_as: str | None = None


class QuarantineEntry(Record):
    """A record that was quarantined, or an edit that was held back (`kind`).

    `joined_as` is the record's id in the night `joined_night` that judged it again; of an edit, its request. An edit's
    `source` is `edits:LINEAGE`, its `record_id` the edit id, and the request is the first of `related`.
    """

    kind: Literal["record", "edit"]
    source: str
    record_id: str
    night: str
    state: State
    reason: str
    rule: str
    confidence: str
    sentence: str
    related: tuple[str, ...]
    joined_night: str | None
    joined_as: str | None


_ENTRIES = """
WITH acts AS (
    SELECT source, record_id, max(joined_night) AS joined_night, max(joined_as) AS joined_as,
           bool_or(action = 'release') AS released, bool_or(action = 'reject') AS rejected
    FROM quarantine_actions GROUP BY ALL
), held AS (
    SELECT 'record' AS kind, v.source, v.record_id, v.night, v.reason, v.rule, v.confidence, v.sentence, v.related,
           u.received_seq AS place
    FROM verdicts v LEFT JOIN updates u USING (source, record_id) WHERE v.verdict = 'quarantine'
    UNION ALL
    SELECT 'edit', concat('edits:', lineage), edit_id, night, cause, 'isolation', '', sentence, [request_id], NULL
    FROM held_edits
)
SELECT v.*, a.joined_night, a.joined_as,
       CASE WHEN a.rejected THEN 'rejected' WHEN a.joined_as IS NOT NULL THEN 'joined'
            WHEN a.released THEN 'released' ELSE 'waiting' END AS state
FROM held v LEFT JOIN acts a USING (source, record_id)
WHERE coalesce(v.night = $night, true) AND coalesce(v.record_id = $record_id, true) AND coalesce(v.source = $source, true)
"""


def entries(
    wh: Warehouse,
    *,
    state: State | None = None,
    night: str | None = None,
    record_id: str | None = None,
    source: str | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[QuarantineEntry]:
    """Quarantined records in order of arrival, then held edits; of one state, night, id or source, or of all.

    Args:
        limit: most entries; None: all of them.
        offset: how many are passed over first.
    """
    asked = {"night": night, "record_id": record_id, "source": source, "state": state, "limit": limit, "offset": offset}
    return wh.records(
        QuarantineEntry,
        f"""SELECT * EXCLUDE (place) FROM ({_ENTRIES}) WHERE coalesce(state = $state, true)
            ORDER BY place NULLS LAST, place_of(night), night, source, record_id LIMIT $limit OFFSET $offset""",
        asked,
    )


def entries_by_state(wh: Warehouse) -> dict[str, int]:
    """How many entries are in each state that any is in."""
    every = {"night": None, "record_id": None, "source": None}
    rows = wh.rows(f"SELECT state, count(*) AS n FROM ({_ENTRIES}) GROUP BY state ORDER BY state", every)
    return {row["state"]: row["n"] for row in rows}


def entry_of(wh: Warehouse, record_id: str, source: str | None = None) -> QuarantineEntry:
    """The one quarantined record of that id.

    Raises:
        NotFound: no quarantined record has it.
        Conflict: records of several sources do.
    """
    found = entries(wh, record_id=record_id, source=source)
    if not found:
        raise NotFound(f"no quarantined record {record_id!r}; `errata quarantine list` names those that there are")
    if len(found) > 1:
        raise Conflict(
            f"record {record_id!r} is quarantined in {len(found)} sources ({', '.join(e.source for e in found)}); "
            "name one with --source"
        )
    return found[0]


def update_of(wh: Warehouse, entry: QuarantineEntry) -> UpdateRecord:
    """The record as it was received."""
    columns = ", ".join(UpdateRecord.model_fields)
    found = wh.records(
        UpdateRecord, f"SELECT {columns} FROM updates WHERE source = ? AND record_id = ?", [entry.source, entry.record_id]
    )
    if not found:
        raise IntegrityError(
            f"verdict on {entry.record_id!r} of {entry.source!r} has no update record; run `errata warehouse check`"
        )
    return found[0]


def actions(wh: Warehouse, record_id: str | None = None) -> list[QuarantineAction]:
    """The audit trail, oldest first, of one record or of all."""
    columns = ", ".join(QuarantineAction.model_fields)
    return wh.records(
        QuarantineAction,
        f"SELECT {columns} FROM quarantine_actions WHERE coalesce(record_id = $record_id, true) ORDER BY seq",
        {"record_id": record_id},
    )


# ---------------------------------------------------------------- acting


def release(
    wh: Warehouse, record_id: str, *, reason: str, actor: str, source: str | None = None, now: datetime | None = None
) -> tuple[QuarantineAction, bool]:
    """Let a waiting record join the next night. Returns the act and whether it is new; released twice is once.

    Raises:
        NotFound: no such quarantined record.
        Conflict: it was rejected, or the id stands in several sources.
        UsageError: no reason or no actor.
    """
    return _act(wh, "release", record_id, reason, actor, source, now)


def reject(
    wh: Warehouse, record_id: str, *, reason: str, actor: str, source: str | None = None, now: datetime | None = None
) -> tuple[QuarantineAction, bool]:
    """Let a waiting record never join a night. Returns and raises as `release`; a released one cannot be rejected."""
    return _act(wh, "reject", record_id, reason, actor, source, now)


def _act(
    wh: Warehouse, action: Action, record_id: str, reason: str, actor: str, source: str | None, now: datetime | None
) -> tuple[QuarantineAction, bool]:
    if not reason.strip():
        raise UsageError(f"to {action} {record_id!r} give a reason; it is kept for whoever asks later")
    if not actor.strip():
        raise UsageError(f"to {action} {record_id!r} say who acts")
    with wh.transaction():
        entry = entry_of(wh, record_id, source)
        before = [a for a in actions(wh, record_id) if a.source == entry.source and a.action != "join"]
        if before and before[0].action == action:
            return before[0], False
        if before:
            done = before[0]
            raise Conflict(
                f"record {record_id!r} was {done.action}{'d' if done.action == 'release' else 'ed'} by {done.actor} on "
                f"{done.acted_at:%Y-%m-%d %H:%M} ({done.reason}); that stands"
            )
        row = {
            "source": entry.source,
            "record_id": record_id,
            "action": action,
            "rule": entry.rule,
            "reason": reason.strip(),
            "actor": actor.strip(),
            "joined_night": None,
            "joined_as": None,
        }
        return append_action(wh, row, now), True


def append_action(wh: Warehouse, row: dict[str, Any], now: datetime | None = None) -> QuarantineAction:
    """Add a row to the end of the trail, in the caller's transaction."""
    last = wh.rows("SELECT seq, digest FROM quarantine_actions ORDER BY seq DESC LIMIT 1")
    seq, before = (last[0]["seq"], last[0]["digest"]) if last else (0, "")
    action = QuarantineAction(seq=seq + 1, acted_at=(now or datetime.now(UTC)).replace(microsecond=0), **row)
    wh.append("quarantine_actions", [action.model_dump() | {"digest": _link(before, action)}], "error")
    logger.info("quarantine: %s %s by %s", action.action, action.record_id, action.actor)
    return action


def _link(before: str, action: QuarantineAction) -> str:
    return digest_of([before, action.model_copy(update={"acted_at": utc(action.acted_at)})])


def audit_problems(wh: Warehouse) -> list[str]:
    """Rows of the audit trail that were changed or are missing, as sentences; an empty list: it is whole."""
    digests = {row["seq"]: row["digest"] for row in wh.rows("SELECT seq, digest FROM quarantine_actions")}
    problems, before = [], ""
    for place, action in enumerate(actions(wh), 1):
        if action.seq != place:
            problems.append(f"quarantine action {place} is missing; the next one is {action.seq}")
            break
        if digests[place] != _link(before, action):
            problems.append(f"quarantine action {place} ({action.action} {action.record_id}) is not as it was written")
        before = digests[place]
    return problems


# ---------------------------------------------------------------- the next night


def join_released(wh: Warehouse, night: str) -> int:
    """Add the records that were released before this night to its updates; a second call adds none of them again.

    Returns:
        How many joined now.
    """
    with wh.transaction():
        before = nights_before(wh, night)
        waiting = [e for e in entries(wh, state="released") if e.kind == "record" and e.night in before]
        start = wh.scalar("SELECT coalesce(max(received_seq), 0) FROM updates")
        for offset, entry in enumerate(waiting, 1):
            record = update_of(wh, entry)
            joined_as = f"{entry.record_id}@{night}"
            copy = record.model_copy(update={"record_id": joined_as, "night": night})
            wh.append("updates", [copy.model_dump() | {"received_seq": start + offset}], "error")
            note_join(wh, entry, night, joined_as)
    return len(waiting)


def note_join(wh: Warehouse, entry: QuarantineEntry, night: str, joined_as: str) -> None:
    """A released entry has joined a night, where it is called `joined_as`; in the caller's transaction."""
    row = {
        "source": entry.source,
        "record_id": entry.record_id,
        "action": "join",
        "rule": entry.rule,
        "reason": "released",
        "actor": MACHINE,
        "joined_night": night,
        "joined_as": joined_as,
    }
    append_action(wh, row)


def waivers(wh: Warehouse, night: str) -> dict[str, frozenset[str]]:
    """Rules set aside in a night, by record id: the one that had held the record, and those of earlier releases of it."""
    joins = {(a.source, a.joined_as): a for a in actions(wh) if a.action == "join"}
    found = {}
    for (source, joined_as), join in joins.items():
        if join.joined_night != night or joined_as is None:
            continue
        rules, at = set(), join
        while at is not None:
            rules.add(at.rule)
            at = joins.get((source, at.record_id))
        found[joined_as] = frozenset(rules - UNWAIVABLE)
    return found
