"""The lineage graph: checkpoints and their parents, newest first."""

from __future__ import annotations

from flows.dashboard.addresses import night_page
from flows.dashboard.asking import Page, Visit
from flows.dashboard.figures import graph
from flows.dashboard.sheets import Column, Sheet
from warehouse.dashboard.lineage import checkpoint_lines


def lineage(asked: Visit) -> Page:
    """One page of the graph, and its knots as a table."""
    lines, total = checkpoint_lines(asked.wh, asked.lineage, limit=asked.limit, offset=asked.offset)
    columns = (
        Column("checkpoint_id", "checkpoint", "digest"),
        Column("night", "night", "night", link=lambda line: night_page(asked.lineage, line.night) if line.night else None),
        Column("verdict", "verdict"),
        Column("edits", "edits", "number"),
        Column("patches", "patches", "number"),
        Column("created_at", "made (UTC)", "time"),
        Column("moved_at", "production from (UTC)", "time"),
        Column("reason", "because", "long"),
    )
    sheet = Sheet("checkpoints", "Checkpoints", columns, lines, total, "no checkpoint yet: run `errata refresh`")
    return Page(f"Lineage {asked.lineage}", "lineage.html", (sheet,), {"graph": graph(lines) if lines else None})
