"""A night on the dashboard: from records received to edits applied, and what changed in the model's answers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pandas as pd

from warehouse.database.connection import Reader, Warehouse
from warehouse.errors import NotFound
from warehouse.lineages.reports import load_decision, load_report
from warehouse.nights.runs import RUN_STATES, RunState, run_of
from warehouse.records import EvaluationReport, GateDecision, ProbeKind, Record

#: Kinds of probes whose answers a night is meant to change, or must not.
ANSWERED: tuple[ProbeKind, ...] = (
    "success", "also", "rephrase", "carry_over", "neighbourhood", "relation_specificity", "forgetfulness", "unrelated", "alias",
    "one_hop", "logical", "obsolete",
)  # fmt: skip


class FunnelStep(Record):
    """How many were left after a step, of records or of edits."""

    step: str
    number: int
    meaning: str


class ReasonCount(Record):
    """How many records of a night ended in a verdict for a reason."""

    verdict: str
    reason: str
    rule: str
    records: int


class AnswerChange(Record):
    """What a model said before the night and says after it; `expected`: the accepted answers."""

    kind: str
    prompt: str
    expected: str
    before: str
    after: str
    was_right: bool
    is_right: bool
    subject: str
    subject_id: str


class NightEdit(Record):
    """An edit of a night with what became of it."""

    edit_id: str
    subject: str
    subject_id: str
    relation: str
    target_new: str
    target_true: str | None
    status: str
    reason: str
    checkpoint_id: str | None


class HeldBack(Record):
    """An edit that was taken out of a rejected night, with the evidence."""

    edit_id: str
    cause: str
    subject: str
    subject_id: str
    relation: str
    target_new: str
    sentence: str


class StepTime(Record):
    """How long a night took to come to a state from the one before it."""

    state: str
    seconds: float


def night_run(wh: Warehouse, night: str, lineage: str) -> RunState:
    """The run of a night.

    Raises:
        NotFound: the night did not run on this lineage.
    """
    found = run_of(wh, night, lineage)
    if found is None:
        raise NotFound(f"night {night!r} did not run on lineage {lineage!r}")
    return found


def nights_run(wh: Reader, lineage: str) -> frozenset[str]:
    """Nights that were begun on a lineage; what they brought is known to all lineages."""
    return frozenset(row["night"] for row in wh.rows("SELECT night FROM runs WHERE lineage = ?", [lineage]))


def decided_on(wh: Warehouse, run: RunState) -> tuple[EvaluationReport, GateDecision] | None:
    """What a night was decided on last, and how; None where it came to no decision."""
    decision_id = run.line.details.get("decision_id")
    if not decision_id:
        return None
    decision = load_decision(wh, str(decision_id))
    return load_report(wh, decision.report_id), decision


def funnel(wh: Reader, night: str, lineage: str) -> list[FunnelStep]:
    """From records received to edits in the candidate that was decided on."""
    row = wh.rows(
        """WITH own AS (
               SELECT e.*, e.checkpoint_id = r.checkpoint_id AS is_last FROM edits AS e
               LEFT JOIN runs AS r ON r.night = e.night AND r.lineage = e.lineage
               WHERE e.night = $night AND e.lineage = $lineage
           )
           SELECT (SELECT count(*) FROM updates WHERE night = $night) AS received,
                  (SELECT count(*) FROM verdicts WHERE night = $night) AS judged,
                  (SELECT count(*) FROM verdicts WHERE night = $night AND verdict IN ('accept', 'supersede')) AS accepted,
                  (SELECT count(*) FROM edit_requests WHERE night = $night) AS requests,
                  (SELECT count(DISTINCT request_id) FROM own WHERE status <> 'skipped') AS edited,
                  (SELECT count(DISTINCT request_id) FROM own WHERE status <> 'skipped' AND is_last) AS decided,
                  (SELECT count(*) FROM own WHERE status IN ('active', 'superseded') AND is_last) AS applied""",
        {"night": night, "lineage": lineage},
    )[0]
    meanings = {
        "received": "records of the source",
        "judged": "with a verdict",
        "accepted": "accepted, or superseding an earlier fact",
        "requests": "stated as edit requests",
        "edited": "edited into a candidate; the rest was answered already or has more than one value",
        "decided": "in the candidate that was decided on",
        "applied": "promoted",
    }
    return [FunnelStep(step=step, number=row[step], meaning=meaning) for step, meaning in meanings.items()]


def verdict_reasons(wh: Reader, night: str) -> list[ReasonCount]:
    """Verdicts of a night by reason, the commonest of each verdict first."""
    rows = wh.rows(
        """SELECT verdict, reason, rule, count(*) AS records FROM verdicts WHERE night = ? GROUP BY ALL
           ORDER BY verdict, records DESC, reason, rule""",
        [night],
    )
    return [ReasonCount(**row) for row in rows]


_CHANGES = """
    WITH said AS (
        -- One pass, and the join lets DuckDB pass over most of the millions of answers.
        SELECT probe_id, any_value(text) FILTER (model_digest = $before) AS before,
               any_value(exact) FILTER (model_digest = $before) AS was_right,
               any_value(text) FILTER (model_digest = $after) AS after,
               any_value(exact) FILTER (model_digest = $after) AS is_right
        FROM predictions SEMI JOIN sides ON sides.id = predictions.model_digest GROUP BY probe_id
    )
    SELECT p.kind, p.prompt, array_to_string(p.targets, ' | ') AS expected, trim(s.before) AS before, trim(s.after) AS after,
           s.was_right, s.is_right, coalesce(q.subject, '') AS subject, coalesce(q.subject_id, '') AS subject_id, p.probe_id
    FROM (SELECT * FROM probes WHERE set_digest = $probes AND list_contains($kinds, kind)) AS p
    JOIN said AS s USING (probe_id) LEFT JOIN edit_requests AS q USING (request_id)
    WHERE s.before IS NOT NULL AND s.after IS NOT NULL AND (NOT $changed OR trim(s.before) <> trim(s.after))
      AND ($words = '' OR contains(lower(concat_ws(' ', p.prompt, expected, s.before, s.after)), lower($words)))
"""


def answer_changes(
    wh: Reader,
    report: EvaluationReport,
    *,
    kind: str = "",
    words: str = "",
    only_changed: bool = True,
    limit: int,
    offset: int = 0,
) -> tuple[list[AnswerChange], int]:
    """Answers before and after, to the probes of the report, and how many there are in all.

    Args:
        kind: of one kind of probe.
        words: that the question or one of the answers contains, in any case.
    """
    asked = {
        "probes": report.probe_set_digest,
        "before": report.before,
        "after": report.after,
        "kinds": [k for k in ANSWERED if kind in ("", k)],
        "changed": only_changed,
        "words": words.strip(),
    }
    rows = wh.rows(
        f"""SELECT * EXCLUDE (probe_id), count(*) OVER () AS total FROM ({_CHANGES})
            ORDER BY list_position($kinds, kind), is_right, subject, prompt, probe_id LIMIT $limit OFFSET $offset""",
        {**asked, "limit": limit, "offset": offset},
        sides=pd.DataFrame({"id": [report.before, report.after]}, dtype="str"),
    )
    total = rows[0]["total"] if rows else 0
    return [AnswerChange(**{name: row[name] for name in AnswerChange.model_fields}) for row in rows], total


def night_edits(
    wh: Reader, night: str, lineage: str, *, words: str = "", limit: int, offset: int = 0
) -> tuple[list[NightEdit], int]:
    """Edits of a night in the order in which they were made, and how many there are in all."""
    rows = wh.rows(
        """SELECT e.edit_id, q.subject, q.subject_id, q.relation, q.target_new, q.target_true, e.status, e.reason,
                  e.checkpoint_id, count(*) OVER () AS total
           FROM edits AS e JOIN edit_requests AS q USING (request_id)
           WHERE e.night = $night AND e.lineage = $lineage
             AND ($words = '' OR contains(lower(concat_ws(' ', q.subject, q.target_new, q.target_true)), lower($words)))
           ORDER BY e.edit_seq LIMIT $limit OFFSET $offset""",
        {"night": night, "lineage": lineage, "words": words.strip(), "limit": limit, "offset": offset},
    )
    total = rows[0]["total"] if rows else 0
    return [NightEdit(**{name: row[name] for name in NightEdit.model_fields}) for row in rows], total


def held_back(wh: Reader, night: str, lineage: str) -> list[HeldBack]:
    """The edits that the isolation of culprits took out of the night; those that were not explored come last."""
    rows = wh.rows(
        """SELECT h.edit_id, h.cause, q.subject, q.subject_id, q.relation, q.target_new, h.sentence
           FROM held_edits AS h JOIN edit_requests AS q USING (request_id)
           WHERE h.night = ? AND h.lineage = ? ORDER BY h.cause, q.subject, h.edit_id""",
        [night, lineage],
    )
    return [HeldBack(**row) for row in rows]


def step_times(run: RunState) -> list[StepTime]:
    """Seconds by step, for as far as the night came; none of a night of a release that did not keep them."""
    reached: dict[str, float] = run.line.details.get("reached_after", {})
    if reached and run.finished_at is not None:
        reached = reached | {RUN_STATES[-1]: run.line.seconds}
    ends = sorted(reached.items(), key=lambda pair: RUN_STATES.index(pair[0]))  # pyright: ignore[reportArgumentType]
    starts = [0.0, *(seconds for _, seconds in ends)]
    return [
        StepTime(state=state, seconds=round(max(0.0, end - start), 2))
        for (state, end), start in zip(ends, starts, strict=False)
    ]


def relation_labels(wh: Reader, relations: Sequence[str]) -> dict[str, str]:
    """What properties are called; those without a name are left out."""
    rows = wh.rows(
        "SELECT pid, label FROM properties SEMI JOIN asked USING (pid)",
        asked=pd.DataFrame({"pid": sorted(set(relations))}, dtype="str"),
    )
    return {row["pid"]: row["label"] for row in rows}


class NightRecord(Record):
    """A record of a night with its verdict."""

    source: str
    record_id: str
    verdict: str
    reason: str
    sentence: str


class ReceivedRecord(Record):
    """One record as it was received, and what was decided of it; the latter is empty while it waits."""

    source: str
    record_id: str
    night: str
    received_at: datetime | None
    raw: str
    verdict: str
    reason: str
    rule: str
    sentence: str
    related: tuple[str, ...]
    request_id: str | None
    subject: str
    subject_id: str


def judged_records(wh: Reader, night: str, *, verdict: str = "", limit: int, offset: int = 0) -> tuple[list[NightRecord], int]:
    """Records of a night by verdict, in order of arrival, of one verdict or of all; and how many there are."""
    rows = wh.rows(
        """SELECT v.source, v.record_id, v.verdict, v.reason, v.sentence, count(*) OVER () AS total
           FROM verdicts AS v JOIN updates AS u USING (source, record_id)
           WHERE v.night = $night AND $verdict IN ('', v.verdict) ORDER BY u.received_seq LIMIT $limit OFFSET $offset""",
        {"night": night, "verdict": verdict, "limit": limit, "offset": offset},
    )
    total = rows[0]["total"] if rows else 0
    return [NightRecord(**{name: row[name] for name in NightRecord.model_fields}) for row in rows], total


def received_record(wh: Reader, source: str, record_id: str) -> ReceivedRecord | None:
    """The record of that source and id, None where it was never received."""
    rows = wh.rows(
        """SELECT u.source, u.record_id, u.night, u.received_at, u.raw, coalesce(v.verdict, '') AS verdict,
                  coalesce(v.reason, '') AS reason, coalesce(v.rule, '') AS rule, coalesce(v.sentence, '') AS sentence,
                  coalesce(v.related, []) AS related, v.request_id, coalesce(q.subject, '') AS subject,
                  coalesce(q.subject_id, '') AS subject_id
           FROM updates AS u LEFT JOIN verdicts AS v USING (source, record_id)
           LEFT JOIN edit_requests AS q ON q.request_id = v.request_id
           WHERE u.source = ? AND u.record_id = ?""",
        [source, record_id],
    )
    return ReceivedRecord(**rows[0]) if rows else None
