"""The course of one night in the warehouse: begun, how far it came, how it ended."""

from __future__ import annotations

import logging
import shlex
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tasks.candidate import Candidate
from tasks.errors import TasksError
from tasks.night.ingest import nights_of
from tasks.settings import Settings
from tasks.workspace import publish_copy, warehouse
from warehouse.errors import NotFound, SourceError
from warehouse.night_names import check_name
from warehouse.nights.intake import verdicts_of
from warehouse.nights.order import move_last, register
from warehouse.nights.runs import RUN_STATES, RunStateName, advance_run, begin_run, run_of, save_run
from warehouse.records import EvaluationReport, Manifest, NightRun

log = logging.getLogger(__name__)
#: What `errata status` and the demo's table show of a report: name -> (metric, slice).
SHOWN_SCORES = {
    "SR": ("SR", ""), "GR": ("GR", ""), "locality": ("locality", "neighbourhood"), "SRR": ("SRR", ""),
    "GRR": ("GRR", ""), "DD": ("DD", "known"), "perplexity_ratio": ("perplexity_ratio", ""),
}  # fmt: skip
#: Verdict of a night in which nothing was left to edit.
NOTHING_TO_EDIT = "nothing to edit"
ACCEPTED = ("accept", "supersede")


class NightClosed(TasksError):
    """The night is finished on this lineage; `run` is its line."""

    def __init__(self, run: NightRun) -> None:
        super().__init__(f"night {run.night} of lineage {run.lineage} is finished: {run.verdict}")
        self.run = run


@dataclass
class Night:
    """A night under way; what `reach` notes is there after a crash."""

    settings: Settings
    night: str
    started: float = field(default_factory=time.monotonic)
    spent: float = 0.0
    on_reach: Callable[[RunStateName], None] | None = None
    reached: RunStateName | None = None

    @property
    def command(self) -> str:
        """The command that goes on with it; a revert is named by what it takes out, which only its own command knows."""
        return (
            ""
            if self.night.startswith("revert-")
            else (
                f"errata refresh --night {shlex.quote(self.night)} --lineage {shlex.quote(self.settings.lineage)} "
                f"--editor {shlex.quote(self.settings.editor.name)}"
            )
        )

    def reach(self, state: RunStateName, **details: Any) -> None:
        """Note how far the night came. On a rerun it may be further on already; then nothing changes."""
        seconds = round(self.spent + time.monotonic() - self.started, 2)
        with warehouse(self.settings) as wh:
            held = run_of(wh, self.night, self.settings.lineage)
            if held is not None and RUN_STATES.index(held.state) <= RUN_STATES.index(state):
                times = {
                    "seconds_so_far": seconds,
                    "reached_after": {**held.line.details.get("reached_after", {}), state: seconds},
                }
                advance_run(wh, self.night, self.settings.lineage, state, **times, **details)
        self.reached = state
        if self.on_reach is not None:
            self.on_reach(state)
        log.info("night %s of %s: %s after %.1f s", self.night, self.settings.lineage, state, seconds)


_UNDER_WAY: list[Night] = []


def under_way() -> Night | None:
    """The night that this process has begun and not finished."""
    return _UNDER_WAY[-1] if _UNDER_WAY else None


def next_night(settings: Settings) -> str:
    """The first night, in order, that this lineage has not finished.

    Raises:
        NotFound: all of them are finished.
        SourceError: the source cannot be read.
    """
    available = nights_of(settings)
    with warehouse(settings) as wh:
        for night in available:
            run = run_of(wh, night, settings.lineage)
            if run is None or run.state != RUN_STATES[-1]:
                return night
    raise NotFound(f"lineage {settings.lineage!r} has finished all {len(available)} nights of {settings.source.path}")


def begin(settings: Settings, night: str, *, late: bool = False) -> Night:
    """Begin a night, or take up a broken one. Nights of the source that come before it keep their places before it.

    Args:
        late: let it follow all nights received so far, which it may contradict.

    Raises:
        NightClosed: it is finished already.
        Conflict: it was begun with another editor, or is `late` and judged already.
        UsageError: no file could have its name.
    """
    check_name(night)
    with warehouse(settings) as wh:
        known = run_of(wh, night, settings.lineage)
    if known is not None and known.state == RUN_STATES[-1]:
        raise NightClosed(known.line)
    # A night need not be of the source (a revert is none); one that must be says so when it is read.
    listed: tuple[str, ...] = ()
    with suppress(SourceError):
        listed = nights_of(settings)
    with warehouse(settings) as wh:
        register(wh, (*listed[: listed.index(night)], night) if night in listed else (night,))
        if late and move_last(wh, night):
            log.warning("night %s now follows every night received so far", night)
        run = begin_run(wh, night, settings.lineage, run_id=uuid.uuid4().hex, editor=settings.editor.name)
    spent = float(run.line.details.get("seconds_so_far", 0.0))
    _UNDER_WAY[:] = [Night(settings, night, spent=spent, reached=known.state if known else None)]
    return _UNDER_WAY[0]


def shown_scores(report: EvaluationReport) -> dict[str, float | None]:
    found = {(s.metric, s.slice): s.value for s in report.scores}
    return {name: found.get(key) for name, key in SHOWN_SCORES.items()}


def _answers(report: EvaluationReport) -> dict[str, int]:
    """How many answers of a report were proved, and how many were asked."""
    return {name: int(report.environment[f"answers_{name}"]) for name in ("proved", "asked")}


def _close(run: Night, done: Candidate, manifest: Manifest | None, proved: Mapping[str, str]) -> NightRun:
    settings = run.settings
    with warehouse(settings) as wh:
        verdicts = verdicts_of(wh, run.night)
        line = NightRun(
            night=run.night,
            lineage=settings.lineage,
            editor=settings.editor.name,
            records=len(verdicts),
            accepted=sum(v.verdict in ACCEPTED for v in verdicts),
            edited=len(done.edited),
            scores=shown_scores(manifest.report) if manifest else {},
            verdict=manifest.verdict if manifest else NOTHING_TO_EDIT,
            checkpoint_id=manifest.checkpoint.checkpoint_id if manifest else None,
            seconds=round(run.spent + time.monotonic() - run.started, 2),
            details={"skipped": len(done.skipped), "edit_seconds": done.edit_seconds}
            | ({"answers": _answers(manifest.report)} if manifest and "answers_proved" in manifest.report.environment else {})
            | ({"serving": dict(proved)} if proved else {}),
        )
        # As stored, so that a rerun returns the same line.
        stored = save_run(wh, line).line
    _UNDER_WAY.clear()
    publish_copy(settings)
    return stored


def finish(run: Night, done: Candidate, manifest: Manifest, proved: Mapping[str, str]) -> NightRun:
    """Write the line of a night that made a candidate. `proved`: what servers showed of it (`tasks.proving.prove`)."""
    return _close(run, done, manifest, proved)


def finish_empty(run: Night, done: Candidate) -> NightRun:
    """Write the line of a night whose requests were all answered already; production stays as it is."""
    return _close(run, done, None, {})
