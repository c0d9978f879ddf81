"""What entity documents leave in the warehouse beside facts: names, what was set aside, properties without templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from warehouse.database.connection import Warehouse
from warehouse.records import Record

#: Characters of a broken line that are kept to look at.
MAX_RAW_CHARS = 2000


class Aside(Record):
    """One thing that was received and not used. `place` is unique within its source: a line, or a statement id."""

    place: str
    entity_id: str = ""
    reason: str
    sentence: str
    raw: str = ""


class UnstatedProperty(Record):
    """A property that no template states, with the statements of it that came; `label` is "" where none was said."""

    pid: str
    label: str
    statements: int


def put_asides(wh: Warehouse, source: str, night: str, asides: Iterable[Aside]) -> int:
    """Keep what was set aside; what is stored already adds nothing. Returns the number of new rows."""
    rows = [{**aside.model_dump(), "raw": aside.raw[:MAX_RAW_CHARS]} for aside in asides]
    return wh.append("set_aside", rows, constants={"source": source, "night": night})


def put_unstated(wh: Warehouse, source: str, night: str, counts: Mapping[str, int], labels: Mapping[str, str]) -> None:
    """Set the counts of one source and night; labels as far as they are known."""
    rows = [{"pid": pid, "label": labels.get(pid, ""), "statements": n} for pid, n in counts.items()]
    with wh.transaction():
        wh.execute("DELETE FROM unstated_properties WHERE source = ? AND night = ?", [source, night])
        wh.append("unstated_properties", rows, "error", constants={"source": source, "night": night})


def unstated(wh: Warehouse, night: str | None = None) -> list[UnstatedProperty]:
    """Properties that came in dumps or over the stream and have no template now, the most frequent first."""
    return wh.records(
        UnstatedProperty,
        """SELECT u.pid, coalesce(nullif(max(u.label), ''), any_value(p.label), '') AS label,
                  sum(u.statements)::BIGINT AS statements
           FROM (SELECT pid, label, statements, night FROM unstated_properties
                 UNION ALL SELECT reason, '', num, night FROM stream_counts WHERE kind = 'property') AS u
           LEFT JOIN properties AS p USING (pid)
           WHERE coalesce(u.night = $night, true) AND u.pid NOT IN (SELECT relation FROM templates)
           GROUP BY u.pid ORDER BY statements DESC, u.pid""",
        {"night": night},
    )


def labels_of(wh: Warehouse, ids: Iterable[str]) -> dict[str, str]:
    """Labels by id: as the facts name entities now, else as the stream or the properties did; unknown ids are left out."""
    if not (wanted := sorted(set(ids))):
        return {}
    asked = pd.DataFrame({"id": wanted}, dtype="str")
    rows = wh.rows(
        """SELECT id, arg_max(label, place_of(known_from_night)) AS label
           FROM (SELECT subject_id AS id, subject AS label, known_from_night FROM facts
                 UNION ALL SELECT object_id, object, known_from_night FROM facts
                 UNION ALL SELECT entity_id, label, '' FROM entity_labels
                 UNION ALL SELECT pid, label, '' FROM properties) AS named
           SEMI JOIN asked USING (id) WHERE label <> '' GROUP BY id""",
        asked=asked,
    )
    return {row["id"]: row["label"] for row in rows}


def put_aliases(wh: Warehouse, names: Sequence[tuple[str, str]]) -> int:
    """Keep (entity id, alias) pairs; returns the number of new ones."""
    return wh.append("aliases", [{"entity_id": entity_id, "alias": alias} for entity_id, alias in names])
