"""The audit trail and its entries; the policies, their rules, and what changed from one to the next."""

from __future__ import annotations

import json

from flows.dashboard.addresses import entry_page, policy_page
from flows.dashboard.asking import Page, Visit
from flows.dashboard.sheets import Column, Sheet
from warehouse.dashboard.proof import (
    PolicyLine,
    policy_changes,
    policy_lines,
    trail_kinds,
    trail_line,
    trail_lines,
    trail_state,
)
from warehouse.errors import NotFound
from warehouse.lineages.reports import load_policy


def audit(asked: Visit) -> Page:
    """Whether the trail's links hold, and its entries."""
    kinds = trail_kinds(asked.wh)
    kind = asked.one_of("kind", tuple(k.kind for k in kinds))
    rows, total = trail_lines(asked.wh, kind=kind, limit=asked.limit, offset=asked.offset)
    columns = (
        Column("seq", "entry", "number", link=lambda line: entry_page(line.seq)),
        Column("noted_at", "noted (UTC)", "time"),
        Column("kind", "kind"),
        Column("lineage", "lineage"),
        Column("subject", "about", "digest"),
        Column("actor", "by"),
        Column("reason", "because", "long"),
    )
    counted = (Column("kind", "kind"), Column("entries", "entries", "number"), Column("last_at", "last (UTC)", "time"))
    sheets = (
        Sheet("entries", "Entries", columns, rows, total, "nothing was noted yet"),
        Sheet("kinds", "Entries by kind", counted, kinds),
    )
    return Page("Audit trail", "audit.html", sheets, {"state": trail_state(asked.wh), "kind": kind, "kinds": kinds})


def entry(asked: Visit) -> Page:
    """One entry of the trail.

    Raises:
        NotFound: there is no such entry.
    """
    number = asked.named["seq"]
    line = trail_line(asked.wh, int(number)) if number.isascii() and number.isdecimal() and len(number) < 18 else None
    if line is None:
        raise NotFound(f"the audit trail has no entry {number!r}")
    return Page(
        f"Entry {line.seq}", "entry.html", (), {"line": line, "payload": json.dumps(json.loads(line.payload), indent=2)}
    )


def policies(asked: Visit) -> Page:
    """Every policy that decided, newest first."""
    columns = (
        Column("name", "policy", link=lambda line: policy_page(line.policy_digest)),
        Column("version", "version", "number"),
        Column("decisions", "decisions", "number"),
        Column("promoted", "promotions", "number"),
        Column("first_at", "from (UTC)", "time"),
        Column("last_at", "to (UTC)", "time"),
        Column("lineages", "lineages"),
        Column("policy_digest", "digest", "digest"),
    )
    sheet = Sheet("policies", "Policies", columns, policy_lines(asked.wh), empty="no decision yet")
    return Page("Policies", "policies.html", (sheet,))


def policy(asked: Visit) -> Page:
    """One policy: its rules, and what is different in it from the one of its name that decided before.

    Raises:
        NotFound: no policy has this digest.
    """
    body = load_policy(asked.wh, asked.named["digest"])
    lines = policy_lines(asked.wh)
    own = next((line for line in lines if line.policy_digest == asked.named["digest"]), None)
    before = _before(lines, own) if own else None
    changes = policy_changes(load_policy(asked.wh, before.policy_digest), body) if before else []
    rules = (
        Column("metric", "metric"),
        Column("slice", "slice"),
        Column("op", "rule"),
        Column("threshold", "threshold", "number"),
        Column("judge", "judged by"),
        Column("on_fail", "else"),
        Column("min_n", "at least of", "number"),
    )
    changed = (
        Column("metric", "metric"),
        Column("slice", "slice"),
        Column("change", "change"),
        Column("before", "before"),
        Column("after", "after"),
    )
    sheets = (
        Sheet("rules", "Rules", rules, body.rules),
        Sheet("changes", "Changed since the one before", changed, changes, empty="no rule"),
    )
    return Page(
        f"Policy {body.name} version {body.version}",
        "policy.html",
        sheets,
        {
            "policy": body,
            "line": own,
            "before": before,
            "before_address": policy_page(before.policy_digest) if before else None,
        },
    )


def _before(lines: list[PolicyLine], own: PolicyLine) -> PolicyLine | None:
    """The policy of the same name that decided last before this one began to."""
    earlier = [
        line for line in lines if line.name == own.name and line.first_at and own.first_at and line.first_at < own.first_at
    ]
    return max(earlier, key=lambda line: line.first_at or own.last_at) if earlier else None  # pyright: ignore
