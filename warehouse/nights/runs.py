"""Nightly runs: one for each night and lineage, as far as it has come, so that a broken one can go on from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from warehouse.database.connection import Warehouse
from warehouse.errors import Conflict, NotFound
from warehouse.nights.order import register
from warehouse.records import NightRun, Record

RunStateName = Literal["received", "validated", "edited", "evaluated", "decided", "published"]
RUN_STATES: tuple[RunStateName, ...] = get_args(RunStateName)
UNFINISHED = "unfinished"


class RunState(Record):
    """A run as far as it has come: `line` is what `errata status` shows of it."""

    run_id: str
    state: RunStateName
    started_at: datetime
    finished_at: datetime | None
    line: NightRun

    def has_reached(self, state: RunStateName) -> bool:
        return RUN_STATES.index(self.state) >= RUN_STATES.index(state)


def begin_run(
    wh: Warehouse, night: str, lineage: str, *, run_id: str, editor: str, started_at: datetime | None = None
) -> RunState:
    """The run of this night and lineage: a new one in state "received", or the one that a broken run left behind.

    A run that has edited nothing is not bound to the editor that it was begun with: that one may have been refused (no
    preset for the model), and the night goes on with the new one.

    Raises:
        Conflict: the night was edited with another editor.
    """
    with wh.transaction():
        row = {"night": night, "lineage": lineage, "run_id": run_id, "editor": editor, "state": RUN_STATES[0]}
        row |= {"started_at": started_at or datetime.now(UTC), "verdict": UNFINISHED, "scores": "{}", "details": "{}"}
        register(wh, [night])
        wh.append("runs", [row])
        run = run_of(wh, night, lineage)
        assert run is not None
        if run.line.editor == editor:
            return run
        edited = wh.scalar("SELECT count(*) FROM batches WHERE night = ? AND lineage = ?", [night, lineage])
        if edited or run.has_reached("edited"):
            raise Conflict(
                f"night {night} of lineage {lineage!r} was begun with {run.line.editor}, not {editor}; finish it so "
                f"(`errata refresh --night {night} --lineage {lineage} --editor {run.line.editor}`), or give the other editor "
                f"a lineage of its own (`--lineage NAME --editor {editor}`)"
            )
        wh.execute("UPDATE runs SET editor = ? WHERE night = ? AND lineage = ?", [editor, night, lineage])
        return _require_run(wh, night, lineage)


def advance_run(wh: Warehouse, night: str, lineage: str, state: RunStateName, **details: Any) -> RunState:
    """Note that a run has come to `state`, with `details` added to those it has. States only go forwards.

    Raises:
        NotFound: the run was never begun.
        Conflict: the run is further on already.
    """
    with wh.transaction():
        run = _require_run(wh, night, lineage)
        if RUN_STATES.index(state) < RUN_STATES.index(run.state):
            raise Conflict(f"night {night} of lineage {lineage!r} is {run.state} already; it cannot go back to {state}")
        wh.execute(
            "UPDATE runs SET state = ?, details = ? WHERE night = ? AND lineage = ?",
            [state, _json({**run.line.details, **details}), night, lineage],
        )
        return _require_run(wh, night, lineage)


def save_run(
    wh: Warehouse, run: NightRun, *, state: RunStateName = "published", finished_at: datetime | None = None
) -> RunState:
    """Write the line of a run as it ended (or, with an earlier `state`, as far as it came).

    Raises:
        NotFound: the run was never begun.
        Conflict: the run is further on already, or has another editor.
    """
    with wh.transaction():
        held = advance_run(wh, run.night, run.lineage, state)
        if held.line.editor != run.editor:
            raise Conflict(f"night {run.night} of lineage {run.lineage!r} was begun with {held.line.editor}, not {run.editor}")
        finished = (finished_at or held.finished_at or datetime.now(UTC)) if state == RUN_STATES[-1] else None
        wh.execute(
            """UPDATE runs SET finished_at = ?, seconds = ?, records = ?, accepted = ?, edited = ?, scores = ?,
                      verdict = ?, checkpoint_id = ?, details = ? WHERE night = ? AND lineage = ?""",
            [
                finished,
                run.seconds,
                run.records,
                run.accepted,
                run.edited,
                _json(run.scores),
                run.verdict,
                run.checkpoint_id,
                _json({**held.line.details, **run.details}),
                run.night,
                run.lineage,
            ],
        )
        return _require_run(wh, run.night, run.lineage)


def run_of(wh: Warehouse, night: str, lineage: str) -> RunState | None:
    """The run of a night in a lineage, None where it was never begun."""
    found = _runs(wh, "night = $night AND lineage = $lineage", {"night": night, "lineage": lineage})
    return found[0] if found else None


def begun_at(wh: Warehouse, night: str) -> datetime | None:
    """When a night was first begun, on whatever lineage: by then all of it was received."""
    return wh.scalar("SELECT min(started_at) FROM runs WHERE night = ?", [night])


def runs(wh: Warehouse, lineage: str | None = None) -> list[NightRun]:
    """Lines of `errata status`: all runs by lineage and night; unfinished ones have the verdict "unfinished"."""
    return [run.line for run in _runs(wh, "coalesce(lineage = $lineage, true)", {"lineage": lineage})]


def newest_runs(wh: Warehouse) -> list[RunState]:
    """The run of each lineage that was begun last, by lineage."""
    newest: dict[str, RunState] = {}
    for run in _runs(wh, "true", {}):
        before = newest.get(run.line.lineage)
        if before is None or run.started_at >= before.started_at:
            newest[run.line.lineage] = run
    return list(newest.values())


def _require_run(wh: Warehouse, night: str, lineage: str) -> RunState:
    run = run_of(wh, night, lineage)
    if run is None:
        raise NotFound(f"night {night} of lineage {lineage!r} has no run; call begin_run first")
    return run


def _runs(wh: Warehouse, where: str, params: Mapping[str, Any]) -> list[RunState]:
    rows = wh.rows(
        f"""SELECT * REPLACE (scores::TEXT AS scores, details::TEXT AS details) FROM runs WHERE {where}
            ORDER BY lineage, place_of(night), started_at, night""",
        params,
    )
    own = ("run_id", "state", "started_at", "finished_at")
    states = []
    for row in rows:
        row |= {"scores": json.loads(row["scores"]), "details": json.loads(row["details"])}
        line = NightRun(**{name: row[name] for name in NightRun.model_fields})
        states.append(RunState(line=line, **{name: row[name] for name in own}))
    return states


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
