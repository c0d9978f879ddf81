"""Named questions about the world that layers above ask: what is believed, stated and held. Nothing is written here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from warehouse.database.connection import Reader

_BELIEVED = """known_to_night IS NULL AND "rank" <> 'deprecated'"""


def base_facts(wh: Reader) -> list[dict[str, Any]]:
    """`subject_id`, `subject`, `relation`, `object`, `source` of each fact believed before the first night, by fact id."""
    columns = "subject_id, subject, relation, object, source"
    return wh.rows(f"SELECT {columns} FROM facts WHERE known_from_night = '' ORDER BY fact_id")


def held_objects(wh: Reader) -> dict[tuple[str, str], set[str]]:
    """Object ids of every slot (subject id, relation) that the store holds now; an empty set for a slot without any."""
    held: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in wh.rows("SELECT subject_id, relation, object_id FROM facts WHERE known_to_night IS NULL"):
        held[row["subject_id"], row["relation"]].add(row["object_id"])
    return held


def one_object_each(wh: Reader, relation: str) -> list[dict[str, str]]:
    """`subject` and its first `object` in a relation, for every subject label, in hash order of the labels."""
    return wh.rows(
        f"""SELECT subject, min(object) AS object FROM facts WHERE relation = $relation AND {_BELIEVED}
            GROUP BY subject ORDER BY md5(subject), subject""",
        {"relation": relation},
    )


def subjects_beside(wh: Reader, shut_out: Collection[str]) -> list[str]:
    """Labels of believed subjects that have an id, none of them among those ids; in hash order."""
    rows = wh.rows(
        f"""SELECT subject FROM facts WHERE {_BELIEVED} AND subject_id <> ''
            GROUP BY subject HAVING NOT bool_or(list_contains($shut_out, subject_id)) ORDER BY md5(subject)""",
        {"shut_out": sorted(shut_out)},
    )
    return [row["subject"] for row in rows]


def stated_relations(wh: Reader) -> frozenset[str]:
    """The properties that a template can put into a prompt."""
    return frozenset(row["relation"] for row in wh.rows("SELECT DISTINCT relation FROM templates"))


def known_properties(wh: Reader) -> list[dict[str, Any]]:
    """`pid`, `cardinality` and `inverse_pid` (several are parted by `|`) of each property that the warehouse knows."""
    return wh.rows("SELECT pid, cardinality, inverse_pid FROM properties")


def additional_values(wh: Reader, night: str) -> set[str]:
    """Insert requests for a multi-valued slot that holds other values: what the model answers there stays right."""
    rows = wh.rows(
        """SELECT DISTINCT r.request_id FROM edit_requests AS r
           JOIN facts AS f ON f.subject_id = r.subject_id AND f.relation = r.relation AND f.object_id <> r.target_new_id
           LEFT JOIN properties AS p ON p.pid = r.relation
           WHERE r.night = $night AND r.kind = 'insert' AND place_of(f.known_from_night) < place_of($night)
             AND f.known_to_night IS NULL
             AND coalesce(p.cardinality, 'multi') = 'multi'""",
        {"night": night},
    )
    return {row["request_id"] for row in rows}
