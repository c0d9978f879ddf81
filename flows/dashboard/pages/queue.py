"""The quarantine queue: what waits for a person, and what became of what waited."""

from __future__ import annotations

import shlex
from typing import cast, get_args

from flows.dashboard.addresses import record_page
from flows.dashboard.asking import Page, Visit
from flows.dashboard.sheets import Column, Sheet
from warehouse.nights.quarantine import QuarantineEntry, State, entries, entries_by_state

STATES: tuple[State, ...] = get_args(State)


def queue(asked: Visit) -> Page:
    """Entries of one state; those that wait, where none is asked for."""
    state: State = cast(State, asked.one_of("state", STATES) or "waiting")
    counts = entries_by_state(asked.wh)
    rows = entries(asked.wh, state=state, limit=asked.limit, offset=asked.offset)
    columns = (
        Column("record_id", "record or edit", link=_record),
        Column("night", "night", "night"),
        Column("kind", "what"),
        Column("reason", "reason"),
        Column("sentence", "why", "long"),
        Column("joined_night", "joined", "night"),
    )
    sheet = Sheet("entries", f"Entries: {state}", columns, rows, counts.get(state, 0), "nothing")
    first = rows[0].record_id if rows and state == "waiting" else "RECORD"
    commands = [shlex.join(["errata", "quarantine", verb, first, "--reason", "SAY WHY"]) for verb in ("release", "reject")]
    return Page(
        "Quarantine",
        "queue.html",
        (sheet,),
        {"state": state, "states": {s: counts.get(s, 0) for s in STATES}, "commands": commands},
    )


def _record(entry: QuarantineEntry) -> str | None:
    return record_page(entry.source, entry.record_id) if entry.kind == "record" else None
