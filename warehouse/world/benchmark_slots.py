"""Slots (subject and relation) that benchmark requests are made of, in hash order under a seed; the world they stand on."""

from __future__ import annotations

from typing import Any

from warehouse.database.connection import Reader, Warehouse

_SLOTS = """
slots AS (
    SELECT subject_id, min(subject) AS subject, relation, min(object) AS object, min(object_id) AS object_id,
        count(DISTINCT object) AS num_objects
    FROM facts WHERE known_to_night IS NULL AND "rank" <> 'deprecated' AND subject_id <> ''
    GROUP BY subject_id, relation
    -- Where one label names two subjects of a relation, a prompt has two right answers.
    QUALIFY count(*) OVER (PARTITION BY min(subject), relation) = 1
)"""
_FILLED = f"""
WITH {_SLOTS}
SELECT subject_id, subject, relation, object, object_id FROM slots
WHERE num_objects = 1 AND relation IN (SELECT relation FROM templates)
ORDER BY md5(concat_ws('|', $seed, subject_id, relation))"""
# A relation that other subjects of the same kind have: one that stands beside a relation of this subject elsewhere.
_EMPTY = f"""
WITH {_SLOTS},
beside AS (
    SELECT DISTINCT a.relation AS has, b.relation AS lacks
    FROM slots a JOIN slots b ON a.subject_id = b.subject_id AND a.relation <> b.relation)
SELECT DISTINCT s.subject_id, s.subject, b.lacks AS relation, '' AS object, '' AS object_id,
    md5(concat_ws('|', $seed, s.subject_id, b.lacks)) AS place
FROM slots s JOIN beside b ON b.has = s.relation
WHERE b.lacks IN (SELECT relation FROM templates)
    AND NOT EXISTS (SELECT 1 FROM facts f WHERE f.relation = b.lacks
        AND (f.subject_id = s.subject_id OR f.subject = s.subject))
ORDER BY place"""


def filled_slots(wh: Reader, seed: str) -> list[dict[str, Any]]:
    """`subject_id`, `subject`, `relation`, `object`, `object_id` of each slot with one value that a template can state."""
    return wh.rows(_FILLED, {"seed": seed})


def empty_slots(wh: Reader, seed: str) -> list[dict[str, Any]]:
    """As `filled_slots`, with empty objects: slots without a value, of relations that subjects of that kind have."""
    return wh.rows(_EMPTY, {"seed": seed})


def objects_by_relation(wh: Reader) -> list[dict[str, str]]:
    """`relation`, `object` and `object_id`: each label of a relation once, in an order that depends on the labels alone."""
    return wh.rows(
        """SELECT relation, object, min(object_id) AS object_id FROM facts
           WHERE known_to_night IS NULL AND "rank" <> 'deprecated' AND object <> '' GROUP BY relation, object
           ORDER BY relation, md5(object), object"""
    )


def copy_of_base_world(source: Reader) -> Warehouse:
    """The world as it was before the first night, in a new warehouse in memory; the caller closes it."""
    copied = {table: source.rows(f"SELECT * FROM {table}") for table in ("templates", "properties", "aliases", "known_facts")}
    facts = source.rows("SELECT * REPLACE (NULL::TEXT AS known_to_night) FROM facts WHERE known_from_night = ''")
    world = Warehouse.open(":memory:")
    try:
        for table, rows in {"facts": facts, **copied}.items():
            world.append(table, rows)
    except BaseException:
        world.close()
        raise
    return world
