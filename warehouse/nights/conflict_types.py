"""In which roles an entity is known, and which of them fit a property: the SQL behind `type_conflict`.

An entity that the store has only seen in roles whose families share nothing with the proposed one is a misfit. What
the store has never seen proves nothing but by its spelling: no place and no person is named by a word without a capital.
A property with a list of its only values (`property_values`) takes no other.
"""

from __future__ import annotations

RECORD_COLUMNS = {
    "record_id": "VARCHAR", "seq": "BIGINT", "op": "VARCHAR", "is_request": "BOOLEAN", "shape_ok": "BOOLEAN",
    "subject_key": "VARCHAR", "relation": "VARCHAR", "old_key": "VARCHAR", "new_key": "VARCHAR",
    "new_text": "VARCHAR",    "new_is_item": "BOOLEAN", "rank": "VARCHAR", "ends_past": "BOOLEAN", "starts_future": "BOOLEAN",
    "num_references": "BIGINT", "statement_id": "VARCHAR", "revision": "BIGINT", "untrusted": "BOOLEAN",
    "reverted_later": "BOOLEAN", "new_form": "VARCHAR",
}  # fmt: skip

#: Value types that are kinds of another: a record label is an organization, a country is a place. A type that is
#: not listed stands for itself; two families that share entities in the store count as compatible all the same.
TYPE_FAMILIES = {
    "country": "place", "city": "place", "territory": "place", "continent": "place", "body of water": "place",
    "watercourse": "place", "record label": "organization", "broadcaster": "organization",
    "educational institution": "organization", "sports team": "organization", "group": "organization",
    "artist": "human", "character": "human", "film": "work", "TV": "work", "radio program": "work", "software": "work",
}  # fmt: skip
#: Value types that any kind of entity can have: a religion is a class and a field of work, too. They prove nothing.
OPEN_TYPES = ("any", "class", "field", "object", "asset", "")
#: Value types whose entities have proper names, so that a label without a capital is none of theirs; and those whose
#: entities are kinds of things. Measured on 52,000 English labels: one in a thousand of the former has no capital. Religions,
#: awards, works and schools are in neither (`atheism`, `honorary doctorate`, `set theory`, `high school`), nor are places of
#: anything at all (`intertidal zone`), nor persons of one word, who may go by a handle.
PROPER_FAMILIES = ("human", "place", "organization", "language")
CLASS_TYPES = ("occupation", "sports position")
#: Distinct entities two roles must share in the store before both are believed of one entity; fewer is noise.
MIN_SHARED_ENTITIES = 3


def values(rows: list[tuple[str, ...]]) -> str:
    """Rows of text as the body of a SQL VALUES list."""
    return ", ".join("(" + ", ".join("'" + cell.replace("'", "''") + "'" for cell in row) + ")" for row in rows)


TYPED = ", ".join(f'CAST("{name}" AS {kind}) AS "{name}"' for name, kind in RECORD_COLUMNS.items())

TYPES = f"""
WITH night AS (SELECT {TYPED} FROM night_records),
families(token, family) AS (VALUES {values([(k, v) for k, v in TYPE_FAMILIES.items()])}),
evidence AS (
    -- Only what was known before the first night: a claim of one night must not testify against the next one.
    SELECT subject_id, relation, object_id FROM facts WHERE known_from_night = ''
    UNION SELECT CAST(subject_id AS VARCHAR), CAST(relation AS VARCHAR), CAST(object_id AS VARCHAR) FROM more_evidence
),
roles AS (
    SELECT DISTINCT object_id AS entity, relation AS pid, 'object' AS side FROM evidence
    UNION SELECT DISTINCT subject_id, relation, 'subject' FROM evidence
),
named AS (
    SELECT pid, 'object' AS side, value_type AS kind FROM properties
    UNION ALL SELECT pid, 'subject', subject_type FROM properties
),
tokens AS (
    SELECT pid, side, unnest(string_split(kind, '/')) AS token FROM named
    WHERE kind IS NOT NULL
),
open_roles AS (SELECT DISTINCT pid, side FROM tokens WHERE token IN ({", ".join(f"'{t}'" for t in OPEN_TYPES)})),
kinds AS (
    SELECT pid, side, coalesce(family, token) AS family FROM tokens LEFT JOIN families USING (token)
    WHERE (pid, side) NOT IN (SELECT (pid, side) FROM open_roles)
),
proposed AS (
    SELECT DISTINCT new_key AS entity, relation AS pid FROM night
    WHERE new_is_item AND new_key IS DISTINCT FROM old_key
      AND relation IN (SELECT pid FROM kinds WHERE side = 'object')
      AND (new_key, relation) NOT IN (SELECT (object_id, relation) FROM facts)
),
held AS (    -- every informative role in which a proposed entity is known
    SELECT p.entity, p.pid, r.pid AS other, r.side
    FROM proposed p JOIN roles r USING (entity)
    WHERE (r.pid, r.side) IN (SELECT (pid, side) FROM kinds)
),
pairs AS (SELECT DISTINCT pid, other, side FROM held),
-- A property of which the store has few facts borrows those of the properties with the same kind of value.
shapes AS (
    SELECT pid, string_agg(DISTINCT family, '/' ORDER BY family) AS shape FROM kinds WHERE side = 'object' GROUP BY pid
),
alike AS (SELECT a.pid, b.pid AS peer FROM shapes a JOIN shapes b USING (shape)),
shared AS (
    SELECT q.pid, q.other, q.side, count(DISTINCT a.entity) AS num
    FROM pairs q JOIN alike USING (pid)
    JOIN roles a ON a.pid = alike.peer AND a.side = 'object'
    JOIN roles b ON b.entity = a.entity AND b.pid = q.other AND b.side = q.side
    GROUP BY ALL
),
agreeing AS (
    SELECT DISTINCT q.pid, q.other, q.side
    FROM pairs q JOIN kinds a ON a.pid = q.pid AND a.side = 'object'
    JOIN kinds b ON b.pid = q.other AND b.side = q.side AND b.family = a.family
    UNION SELECT pid, other, side FROM shared WHERE num >= {MIN_SHARED_ENTITIES}
),
misfits AS (
    SELECT entity, pid FROM held LEFT JOIN agreeing g USING (pid, other, side)
    GROUP BY entity, pid HAVING count(g.pid) = 0
),
spelt AS (    -- properties whose values are all spelt in one way: what a label says of an entity that nothing is known of
    SELECT pid, 'name' AS form FROM kinds WHERE side = 'object' GROUP BY pid
    HAVING bool_and(family IN ({", ".join(f"'{t}'" for t in PROPER_FAMILIES)}))
       AND pid NOT IN (SELECT pid FROM open_roles WHERE side = 'subject')
       AND pid NOT IN (SELECT pid FROM tokens WHERE side = 'object' AND token = 'educational institution')
    UNION ALL SELECT pid, 'class' FROM tokens WHERE side = 'object' GROUP BY pid
    HAVING bool_and(token IN ({", ".join(f"'{t}'" for t in CLASS_TYPES)}))
),
misspelt AS (
    SELECT DISTINCT n.new_key AS entity, n.relation AS pid
    FROM night n JOIN spelt s ON s.pid = n.relation
        AND CASE s.form WHEN 'class' THEN n.new_form = 'name' ELSE n.new_form IN ('class', 'classes') END
        AND (n.new_form <> 'class' OR s.pid NOT IN (SELECT pid FROM kinds WHERE side = 'object' AND family = 'human'))
    WHERE n.new_form IS NOT NULL AND n.new_is_item AND NOT n.is_request AND n.new_key NOT IN (SELECT entity FROM roles)
      AND n.new_key NOT IN (SELECT subject_id FROM facts) AND n.new_key NOT IN (SELECT object_id FROM facts)
)
SELECT night.*, t.entity IS NOT NULL AS type_by_spelling, (m.entity IS NOT NULL OR t.entity IS NOT NULL
                 OR (c.pid IS NOT NULL AND v.pid IS NULL AND night.new_is_item AND NOT night.is_request))
       AND night.new_key IS DISTINCT FROM night.old_key AS type_conflict
FROM night LEFT JOIN misfits m ON m.entity = night.new_key AND m.pid = night.relation AND night.new_is_item
LEFT JOIN misspelt t ON t.entity = night.new_key AND t.pid = night.relation
LEFT JOIN (SELECT DISTINCT pid FROM property_values) c ON c.pid = night.relation
LEFT JOIN property_values v ON v.pid = night.relation AND v.object_id = night.new_key
ORDER BY seq
"""
