"""What servers answered when they were asked for the checkpoint that a lineage promoted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from warehouse.database.connection import Warehouse
from warehouse.records import Record

ServingVerdict = Literal["agrees", "differs", "garbled", "unreachable"]


class ServingCheck(Record):
    """One check of one server. `body`: counts, and which checkpoints the answers fit; empty where it did not answer."""

    lineage: str
    url: str
    model: str
    checkpoint_id: str
    asked_at: datetime
    verdict: ServingVerdict
    sentence: str
    body: dict[str, Any] = Field(default_factory=dict)


def save_check(wh: Warehouse, check: ServingCheck) -> int:
    """Keep a check; returns its place among those of its lineage."""
    with wh.transaction():
        seq = int(wh.scalar("SELECT coalesce(max(seq), 0) + 1 FROM serving_checks WHERE lineage = ?", [check.lineage]))
        wh.append("serving_checks", [{**check.model_dump(), "seq": seq, "body": json.dumps(check.body)}], "error")
        return seq


def last_check(wh: Warehouse, lineage: str, url: str, checkpoint_id: str | None = None) -> ServingCheck | None:
    """The newest check of a server (for one checkpoint); None where it was never asked."""
    found = _checks(
        wh,
        "lineage = $lineage AND url = $url AND coalesce(checkpoint_id = $id, true)",
        {"lineage": lineage, "url": url, "id": checkpoint_id},
    )
    return found[-1] if found else None


def checks_by_server(wh: Warehouse, lineage: str) -> list[ServingCheck]:
    """The newest check of each server that was asked for the lineage, by its address."""
    return sorted({check.url: check for check in _checks(wh, "lineage = $lineage", {"lineage": lineage})}.values(),
                  key=lambda check: check.url)  # fmt: skip


def _checks(wh: Warehouse, where: str, params: Mapping[str, Any]) -> list[ServingCheck]:
    columns = ", ".join(ServingCheck.model_fields)
    rows = wh.rows(
        f"SELECT {columns} FROM (SELECT * REPLACE (body::TEXT AS body) FROM serving_checks) WHERE {where} ORDER BY seq", params
    )
    return [ServingCheck(**{**row, "body": json.loads(row["body"])}) for row in rows]
