"""The list of nights, and a night: its funnel, its rules, what it changed in the answers, its culprits, its time."""

from __future__ import annotations

from pydantic import BaseModel

from flows.dashboard.addresses import fact_page, night_page, policy_page, record_page
from flows.dashboard.asking import Page, Visit, evidently_page
from flows.dashboard.figures import funnel as funnel_figure
from flows.dashboard.sheets import Column, Sheet
from warehouse.dashboard.night import (
    ANSWERED,
    answer_changes,
    decided_on,
    funnel,
    held_back,
    judged_records,
    night_edits,
    night_run,
    received_record,
    step_times,
    verdict_reasons,
)
from warehouse.dashboard.overview import night_lines
from warehouse.errors import NotFound
from warehouse.nights.record_list import STATES
from warehouse.records import GateDecision, Record, Score

VERDICTS = ("promote", "reject", "hold", "nothing to edit", "unfinished", "missing")


class HeldRule(Record):
    """A rule of the policy with what was measured."""

    metric: str
    slice: str
    passed: bool
    measured: tuple[float | None, float | None, float | None]
    n: int
    op: str
    threshold: float
    judge: str
    on_fail: str
    explanation: str


class Failures(Record):
    """How many failed probes failed in one way."""

    mode: str
    failed: int
    of: int


def nights(asked: Visit) -> Page:
    """Every night of a lineage, newest first."""
    verdict = asked.one_of("verdict", VERDICTS)
    lines, total = night_lines(asked.wh, asked.lineage, limit=asked.limit, offset=asked.offset, verdict=verdict or None)
    columns = (
        Column(
            "night",
            "night",
            "night",
            link=lambda line: None if line.verdict == "missing" else night_page(asked.lineage, line.night),
        ),
        Column("verdict", "verdict"),
        Column("records", "records", "number"),
        Column("accepted", "accepted", "number"),
        Column("edited", "edited", "number"),
        Column("seconds", "seconds", "number"),
        Column("finished_at", "finished (UTC)", "time"),
        Column("editor", "editor", "code"),
    )
    sheet = Sheet("nights", "Nights", columns, lines, total, "no night yet: run `errata refresh`")
    return Page(f"Nights of {asked.lineage}", "nights.html", (sheet,), {"verdict": verdict, "verdicts": VERDICTS})


def night(asked: Visit) -> Page:
    """One night of a lineage.

    Raises:
        NotFound: it did not run there.
    """
    wh, name, lineage = asked.wh, asked.named["night"], asked.named["lineage"]
    run = night_run(wh, name, lineage)
    decided = decided_on(wh, run)
    kind, words, with_all = asked.one_of("kind", ANSWERED), asked.text("q"), asked.text("all") == "1"
    verdict = asked.one_of("verdict", STATES)
    steps = funnel(wh, name, lineage)
    changes: tuple[list, int] = ([], 0)
    if decided:
        changes = answer_changes(
            wh, decided[0], kind=kind, words=words, only_changed=not with_all, limit=asked.limit, offset=asked.offset
        )
    # Each page number is for the table of answers; the other tables show their first rows, and all of them as files.
    edits, num_edits = night_edits(wh, name, lineage, words=words, limit=asked.limit)
    records, num_records = judged_records(wh, name, verdict=verdict, limit=asked.limit)
    sheets = (
        Sheet("funnel", "From records to edits", _FUNNEL, steps),
        Sheet("verdicts", "Verdicts by reason", _REASONS, verdict_reasons(wh, name), empty="not judged yet"),
        Sheet("gate", "Rules of the gate", _RULES, _rules(decided[1]) if decided else [], empty="no decision"),
        Sheet("answers", "Answers before and after", _answers(lineage), *changes, "no answer that fits"),
        Sheet("edits", "Edits", _edits(lineage), edits, num_edits, "no edit"),
        Sheet("culprits", "Taken out of the night", _culprits(lineage), held_back(wh, name, lineage), empty="none"),
        Sheet("failures", "How edits failed", _FAILURES, _failures(decided[0].scores) if decided else [], empty="none failed"),
        Sheet("records", "Records", _RECORDS, records, num_records, "no record"),
        Sheet("times", "Time by step", _TIMES, step_times(run), empty="not kept: nights of earlier releases"),
    )
    page = evidently_page(asked.reports, lineage, name)
    return Page(
        f"{name} on {lineage}",
        "night.html",
        sheets,
        {
            "run": run,
            "decision": decided[1] if decided else None,
            "report": decided[0] if decided else None,
            "policy": policy_page(decided[1].policy_digest) if decided else None,
            "funnel": funnel_figure(steps),
            "kinds": ANSWERED,
            "asked_for": {"kind": kind, "q": words, "all": with_all},
            "evidently": f"{night_page(lineage, name)}/evidently" if page.is_file() else None,
        },
    )


def record(asked: Visit) -> Page:
    """A record as it was received, and what was decided of it.

    Raises:
        NotFound: it was never received.
    """
    source, record_id = asked.text("source"), asked.text("id")
    found = received_record(asked.wh, source, record_id)
    if found is None:
        raise NotFound(f"no record {record_id!r} of source {source!r} in the warehouse")
    subject = found.subject_id or found.subject
    return Page(f"Record {record_id}", "record.html", (), {"record": found, "fact": fact_page(subject) if subject else None})


def _subject(lineage: str, row: BaseModel) -> str | None:
    key = getattr(row, "subject_id", "") or getattr(row, "subject", "")
    return fact_page(key, lineage) if key else None


def _answers(lineage: str) -> tuple[Column, ...]:
    return (
        Column("kind", "kind"),
        Column("prompt", "question", "long", link=lambda row: _subject(lineage, row)),
        Column("before", "before", "long"),
        Column("after", "after", "long"),
        Column("expected", "expected", "long"),
        Column("was_right", "was right", "yes"),
        Column("is_right", "is right", "yes"),
    )


def _edits(lineage: str) -> tuple[Column, ...]:
    return (
        Column("subject", "subject", link=lambda row: _subject(lineage, row)),
        Column("relation", "relation", "code"),
        Column("target_new", "answer"),
        Column("target_true", "was"),
        Column("status", "status"),
        Column("reason", "reason", "long"),
        Column("edit_id", "edit", "digest"),
    )


def _culprits(lineage: str) -> tuple[Column, ...]:
    return (
        Column("cause", "cause"),
        Column("subject", "subject", link=lambda row: _subject(lineage, row)),
        Column("relation", "relation", "code"),
        Column("target_new", "answer"),
        Column("sentence", "evidence", "long"),
    )


_FUNNEL = (Column("step", "step"), Column("number", "number", "number"), Column("meaning", "meaning"))
_REASONS = (Column("verdict", "verdict"), Column("reason", "reason"), Column("records", "records", "number"))
_RULES = (
    Column("metric", "metric"),
    Column("slice", "slice"),
    Column("passed", "met", "yes"),
    Column("measured", "value (95% interval)", "score"),
    Column("n", "of", "number"),
    Column("op", "rule"),
    Column("threshold", "threshold", "number"),
    Column("judge", "judged by"),
    Column("on_fail", "else"),
)
_FAILURES = (Column("mode", "how"), Column("failed", "failed probes", "number"), Column("of", "of", "number"))
_RECORDS = (
    Column("record_id", "record", link=lambda row: record_page(row.source, row.record_id)),
    Column("verdict", "verdict"),
    Column("reason", "reason"),
    Column("sentence", "why", "long"),
)
_TIMES = (Column("state", "step"), Column("seconds", "seconds", "number"))


def _rules(decision: GateDecision) -> list[HeldRule]:
    return [
        HeldRule(
            metric=r.rule.metric,
            slice=r.rule.slice,
            passed=r.passed,
            measured=(r.score.value, r.score.low, r.score.high) if r.score else (None, None, None),
            n=r.score.n if r.score else 0,
            op=r.rule.op,
            threshold=r.rule.threshold,
            judge=r.rule.judge,
            on_fail=r.rule.on_fail,
            explanation=r.explanation,
        )
        for r in decision.results
    ]


def _failures(scores: tuple[Score, ...]) -> list[Failures]:
    return [
        Failures(mode=s.slice.replace("_", " "), failed=int(s.value or 0), of=s.n) for s in scores if s.metric == "failure_mode"
    ]
