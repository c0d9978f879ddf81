"""Small entity documents, made up here: real Q-ids, invented statements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def item(qid: str, **more: Any) -> dict[str, Any]:
    value = {"entity-type": "item", "numeric-id": int(qid[1:]), "id": qid}
    return {"value": value, "type": "wikibase-entityid"} | more


def when(time: str, precision: int = 11) -> dict[str, Any]:
    return {
        "type": "time",
        "value": {"time": time, "precision": precision, "timezone": 0, "before": 0, "after": 0,
                  "calendarmodel": "http://www.wikidata.org/entity/Q1985727"},
    }  # fmt: skip


def snak(pid: str, datavalue: dict[str, Any] | None = None, snaktype: str = "value", datatype: str = "wikibase-item") -> Any:
    return {"snaktype": snaktype, "property": pid, "datatype": datatype} | ({"datavalue": datavalue} if datavalue else {})


def statement(statement_id: str, pid: str, value: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """A statement; `qualifiers` as {pid: datavalue}."""
    qualifiers = {q: [snak(q, v, datatype="time")] for q, v in more.pop("qualifiers", {}).items()}
    main = more.pop("mainsnak", snak(pid, value))
    return {"type": "statement", "id": statement_id, "rank": "normal", "mainsnak": main, "qualifiers": qualifiers} | more


def document(qid: str, *statements: dict[str, Any], label: str | None = None, **more: Any) -> dict[str, Any]:
    claims: dict[str, list[Any]] = {}
    for row in statements:
        claims.setdefault(row["mainsnak"]["property"], []).append(row)
    labels = {} if label is None else {"en": {"language": "en", "value": label}}
    kind = "item" if qid[0] == "Q" else "property"
    return {"type": kind, "id": qid, "labels": labels, "claims": claims, "lastrevid": 10,
            "modified": "2026-10-01T20:00:00Z"} | more  # fmt: skip


def write_dump(path: Path, *documents: Any) -> Path:
    """As Wikidata writes it: an array with one element a line. Text stands for a line as it is."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in documents]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    return path
