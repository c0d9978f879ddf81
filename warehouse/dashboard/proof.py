"""The audit trail and the policies on the dashboard: what was noted, whether its links hold, and which rules held when."""

from __future__ import annotations

from datetime import datetime

from warehouse.database.connection import Reader
from warehouse.lineages.audit import GENESIS
from warehouse.records import GatePolicy, GateRule, Record


class TrailLine(Record):
    """An entry of the trail; `payload` is its JSON."""

    seq: int
    kind: str
    subject: str
    lineage: str
    actor: str
    reason: str
    noted_at: datetime
    payload: str
    digest: str


class TrailState(Record):
    """Numbers and links of the whole trail; `broken`: the first entry that does not follow the one before it.

    What the entries say is not recomputed here: `errata audit` does that.
    """

    entries: int
    last_at: datetime | None
    last_digest: str
    broken: int | None


class KindCount(Record):
    """How many entries of a kind the trail has, and when the last was noted."""

    kind: str
    entries: int
    last_at: datetime


class PolicyLine(Record):
    """A policy that decided; `lineages` that it decided for."""

    policy_digest: str
    name: str
    version: int
    decisions: int
    promoted: int
    first_at: datetime | None
    last_at: datetime | None
    lineages: str


class RuleChange(Record):
    """A rule by what became of it from one policy to the next: added, removed or changed; None: there was none."""

    metric: str
    slice: str
    change: str
    before: str | None
    after: str | None


def trail_lines(wh: Reader, *, kind: str = "", limit: int, offset: int = 0) -> tuple[list[TrailLine], int]:
    """Entries of the trail, newest first, of one kind or of all; and how many there are."""
    asked = {"kind": kind, "limit": limit, "offset": offset}
    total = wh.rows("SELECT count(*) AS n FROM audit WHERE $kind IN ('', kind)", {"kind": kind})[0]["n"]
    rows = wh.rows(
        """SELECT seq, kind, subject, lineage, actor, reason, noted_at, payload::TEXT AS payload, digest FROM audit
           WHERE $kind IN ('', kind) ORDER BY seq DESC LIMIT $limit OFFSET $offset""",
        asked,
    )
    return [TrailLine(**row) for row in rows], total


def trail_line(wh: Reader, seq: int) -> TrailLine | None:
    """The entry of that number, None where there is none."""
    rows = wh.rows("SELECT * EXCLUDE (previous) REPLACE (payload::TEXT AS payload) FROM audit WHERE seq = ?", [seq])
    return TrailLine(**rows[0]) if rows else None


def trail_state(wh: Reader) -> TrailState:
    """Do the numbers run without gap, and does each entry name the one before it?"""
    row = wh.rows(
        """WITH linked AS (
               SELECT seq, previous, lag(digest, 1, $genesis) OVER (ORDER BY seq) AS before,
                      row_number() OVER (ORDER BY seq) AS place FROM audit
           )
           SELECT (SELECT count(*) FROM audit) AS entries, (SELECT max(noted_at) FROM audit) AS last_at,
                  coalesce((SELECT arg_max(digest, seq) FROM audit), '') AS last_digest,
                  (SELECT min(seq) FROM linked WHERE previous <> before OR seq <> place) AS broken""",
        {"genesis": GENESIS},
    )[0]
    return TrailState(**row)


def trail_kinds(wh: Reader) -> list[KindCount]:
    """Entries by kind."""
    rows = wh.rows("SELECT kind, count(*) AS entries, max(noted_at) AS last_at FROM audit GROUP BY kind ORDER BY kind")
    return [KindCount(**row) for row in rows]


def policy_lines(wh: Reader) -> list[PolicyLine]:
    """Every policy that the warehouse keeps, newest decision first."""
    rows = wh.rows(
        """WITH used AS (
               SELECT d.policy_digest, count(*) AS decisions, count(*) FILTER (d.verdict = 'promote') AS promoted,
                      min(d.decided_at) AS first_at, max(d.decided_at) AS last_at
               FROM decisions AS d GROUP BY 1
           ), lines AS (
               SELECT payload->>'policy' AS policy_digest, string_agg(DISTINCT lineage, ', ' ORDER BY lineage) AS lineages
               FROM audit WHERE kind = 'policy' GROUP BY 1
           )
           SELECT p.policy_digest, p.name, p.version, coalesce(u.decisions, 0) AS decisions,
                  coalesce(u.promoted, 0) AS promoted, u.first_at, u.last_at, coalesce(l.lineages, '') AS lineages
           FROM policies AS p LEFT JOIN used AS u USING (policy_digest) LEFT JOIN lines AS l USING (policy_digest)
           ORDER BY u.last_at DESC NULLS LAST, p.name, p.version DESC, p.policy_digest LIMIT 200"""
    )
    return [PolicyLine(**row) for row in rows]


def policy_changes(before: GatePolicy, after: GatePolicy) -> list[RuleChange]:
    """Rules that differ between two policies, in the order of the later one; what both have alike is left out."""
    old, new = ({(r.metric, r.slice, r.op): r for r in policy.rules} for policy in (before, after))
    found = []
    for key in [*new, *(key for key in old if key not in new)]:
        was, now = old.get(key), new.get(key)
        if was != now:
            change = "added" if was is None else "removed" if now is None else "changed"
            found.append(RuleChange(metric=key[0], slice=key[1], change=change, before=_words(was), after=_words(now)))
    return found


def _words(rule: GateRule | None) -> str | None:
    return rule and f"{rule.op} {rule.threshold:g}, else {rule.on_fail}, by {rule.judge}, n >= {rule.min_n}"
