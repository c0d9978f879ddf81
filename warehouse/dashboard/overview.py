"""The dashboard's first page: what is in production, how the last nights ended, and their scores over time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pandas as pd

from warehouse.database.connection import Reader, Warehouse
from warehouse.errors import NotFound
from warehouse.lineages.chain import ancestor_ids, head
from warehouse.lineages.serving import ServingCheck, checks_by_server
from warehouse.night_names import day_name, day_of
from warehouse.records import Record

#: A night that left no line: known to the warehouse or due by the calendar, and not run on this lineage.
MISSING = "missing"


class Production(Record):
    """What a lineage serves; `moved_at`: when its channel came to it, `reason`: why."""

    checkpoint_id: str
    night: str
    moved_at: datetime
    reason: str
    base_model: str
    base_revision: str
    base_digest: str
    patches: int
    active_edits: int


class NightLine(Record):
    """A night as one mark of the strip and one row of the list; `verdict` is `missing` where it did not run."""

    night: str
    verdict: str
    state: str
    editor: str
    records: int
    accepted: int
    edited: int
    seconds: float
    started_at: datetime | None
    finished_at: datetime | None
    checkpoint_id: str | None


class NightScore(Record):
    """One score of the report that a night was decided on."""

    night: str
    verdict: str
    metric: str
    slice: str
    value: float | None
    low: float | None
    high: float | None
    n: int


class Threshold(Record):
    """A rule of the policy that the newest decision of a lineage was made by."""

    metric: str
    slice: str
    op: str
    threshold: float
    on_fail: str
    judge: str


def served_by(wh: Warehouse, lineage: str) -> Production | None:
    """What the lineage serves, None where it has no checkpoint yet."""
    at = head(wh, lineage)
    if at is None:
        return None
    chain = pd.DataFrame({"id": ancestor_ids(wh, lineage, at.checkpoint_id)}, dtype="str")
    row = wh.rows(
        """SELECT h.checkpoint_id, c.night, h.moved_at, h.reason, c.base_model, c.base_revision, c.base_digest,
                  len(c.patch_digests) AS patches,
                  (SELECT count(*) FROM edits AS e WHERE e.lineage = $lineage AND e.status <> 'skipped'
                      AND e.checkpoint_id IN (SELECT id FROM chain)
                      AND (e.superseded_in IS NULL OR e.superseded_in NOT IN (SELECT id FROM chain))) AS active_edits
           FROM heads AS h JOIN checkpoints AS c USING (lineage, checkpoint_id)
           WHERE h.lineage = $lineage ORDER BY h.seq DESC LIMIT 1""",
        {"lineage": lineage},
        chain=chain,
    )[0]
    return Production(**row)


def serving_now(wh: Warehouse, lineage: str) -> list[ServingCheck]:
    """What each server of the lineage said when it was last asked, by its address."""
    return checks_by_server(wh, lineage)


_NIGHTS = """
    SELECT n.night, n.place, coalesce(r.verdict, 'missing') AS verdict, coalesce(r.state, '') AS state,
           coalesce(r.editor, '') AS editor, coalesce(r.records, 0) AS records, coalesce(r.accepted, 0) AS accepted,
           coalesce(r.edited, 0) AS edited, coalesce(r.seconds, 0) AS seconds, r.started_at, r.finished_at, r.checkpoint_id
    FROM nights AS n LEFT JOIN runs AS r ON r.night = n.night AND r.lineage = $lineage
    WHERE n.night <> ''
      -- A revert is a night of one lineage; the others do not miss it.
      AND (r.night IS NOT NULL OR n.night IN (SELECT night FROM updates))
      AND coalesce(coalesce(r.verdict, 'missing') = $verdict, true)
"""


def night_lines(
    wh: Reader, lineage: str, *, limit: int, offset: int = 0, verdict: str | None = None
) -> tuple[list[NightLine], int]:
    """Nights of a lineage, newest first, and how many there are in all; of one verdict, or of all."""
    asked = {"lineage": lineage, "verdict": verdict}
    total = wh.rows(f"SELECT count(*) AS n FROM ({_NIGHTS})", asked)[0]["n"]
    rows = wh.rows(
        f"SELECT * EXCLUDE (place) FROM ({_NIGHTS}) ORDER BY place DESC, night DESC LIMIT $limit OFFSET $offset",
        {**asked, "limit": limit, "offset": offset},
    )
    return [NightLine(**row) for row in rows], total


def with_missing_days(lines: Sequence[NightLine]) -> list[NightLine]:
    """The nights with a line for each day between the first and the last that has none, where nights are named by days.

    Args:
        lines: newest first.
    """
    found: list[NightLine] = []
    for line in lines:
        day, later = day_of(line.night), day_of(found[-1].night) if found else None
        while day is not None and later is not None and later - day > timedelta(days=1):
            later -= timedelta(days=1)
            found.append(_absent(day_name(later)))
        found.append(line)
    return found


def _absent(night: str) -> NightLine:
    nothing: dict[str, Any] = {"records": 0, "accepted": 0, "edited": 0, "seconds": 0.0, "checkpoint_id": None}
    return NightLine(night=night, verdict=MISSING, state="", editor="", started_at=None, finished_at=None, **nothing)


def night_scores(wh: Reader, lineage: str, nights: Sequence[str], wanted: Sequence[tuple[str, str]]) -> list[NightScore]:
    """Scores of some nights by (metric, slice), from the report that each was decided on last; oldest night first."""
    rows = wh.rows(
        """WITH decided AS (
               SELECT r.night, r.verdict, d.report_id FROM runs AS r
               JOIN asked USING (night)
               JOIN decisions AS d ON d.decision_id = r.details->>'decision_id'
               WHERE r.lineage = $lineage
           )
           SELECT d.night, d.verdict, s.metric, s.slice, s.value, s.low, s.high, s.n
           FROM decided AS d JOIN scores AS s USING (report_id) JOIN wanted USING (metric, slice)
           ORDER BY place_of(d.night), d.night, s.metric, s.slice""",
        {"lineage": lineage},
        asked=pd.DataFrame({"night": list(nights)}, dtype="str"),
        wanted=pd.DataFrame(wanted, columns=["metric", "slice"], dtype="str"),
    )
    return [NightScore(**row) for row in rows]


def thresholds(wh: Reader, lineage: str) -> list[Threshold]:
    """The rules that the lineage's newest decision was made by; none where nothing was decided."""
    rows = wh.rows(
        """WITH newest AS (
               SELECT d.policy_digest FROM runs AS r JOIN decisions AS d ON d.decision_id = r.details->>'decision_id'
               WHERE r.lineage = $lineage ORDER BY d.decided_at DESC LIMIT 1
           ), rules AS (
               SELECT unnest((body->'rules')::JSON[]) AS rule FROM policies JOIN newest USING (policy_digest)
           )
           SELECT rule->>'metric' AS metric, coalesce(rule->>'slice', '') AS slice, rule->>'op' AS op,
                  (rule->>'threshold')::DOUBLE AS threshold, rule->>'on_fail' AS on_fail, rule->>'judge' AS judge
           FROM rules""",
        {"lineage": lineage},
    )
    return [Threshold(**row) for row in rows]


def lineage_or_default(names: Sequence[str], asked: str, default: str) -> str:
    """The lineage that a page is about: the one asked for, else the default, else the first that there is.

    Raises:
        NotFound: no lineage has the name that was asked for.
    """
    if asked and asked not in names:
        raise NotFound(f"no lineage {asked!r}; there are {', '.join(names) or 'none yet'}")
    return asked or (default if default in names or not names else names[0])
