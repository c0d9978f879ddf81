"""Conflict columns of a night: its records joined in DuckDB with each other, with the store and with earlier nights.

The input frame has one row per record (`RECORD_COLUMNS`); the answer has the same rows with the columns below added.
Nothing is judged here: `checks.conflicts` turns the columns into verdicts. A *key* is a Q-id, or the folded label
where a source has text only; a *slot* is subject + relation.

Added columns (ids are joined by a space, NULL means none):
    type_conflict       the proposed object is only known in roles that this property's value type excludes
    single              the slot holds one value at a time
    redelivered_of      earlier record of the night with the same event;  known_revision: the store has it already
    same_triple_of      earlier record of the night that asserts the same triple
    chain               alone | superseded | final | reverted | net_noop: place in the night's changes of one statement
    replaced_key        value that stood before the chain;  chain_of: the chain's other records
    is_addition         the chain opens a statement (and does not change one that stood before the night)
    slot_objects        current objects of the slot;  in_store: the new one is among them
    stale               a newer revision has been applied to the slot
    held_before         an earlier night ended this very value here;  changed_before: an earlier night wrote the slot
    contradicts         records adding another value to the same single-valued slot
    closing_of          records of the night that close the value which this one replaces
    contradicts_store   added without reference to a single-valued slot that keeps another value
    low_trust           an untrusted account replaces a value without reference
    inverse_conflict, composite_conflict   records that disagree with this one
    replaced_by         for a closing record: the records that bring the new value
    inverse_moved       for a removal: its inverse statement has moved to another value
    supported_by        record, or 'store', which asserts the inverse;  num_targets: live targets of the slot
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol

import pandas as pd

RECORD_COLUMNS = {
    "record_id": "VARCHAR", "seq": "BIGINT", "op": "VARCHAR", "is_request": "BOOLEAN", "shape_ok": "BOOLEAN",
    "subject_key": "VARCHAR", "relation": "VARCHAR", "old_key": "VARCHAR", "new_key": "VARCHAR",
    "new_is_item": "BOOLEAN", "rank": "VARCHAR", "ends_past": "BOOLEAN", "starts_future": "BOOLEAN",
    "num_references": "BIGINT", "statement_id": "VARCHAR", "revision": "BIGINT", "untrusted": "BOOLEAN",
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
#: Distinct entities two roles must share in the store before both are believed of one entity; fewer is noise.
MIN_SHARED_ENTITIES = 3
#: (r1, r2, r3): X r1 A and A r2 B give X r3 B. Father or mother, spouse, the other parent.
COMPOSITE_RULES = (("P22", "P26", "P25"), ("P25", "P26", "P22"))


class Store(Protocol):
    """The part of `warehouse.store.Warehouse` that is needed here."""

    def rows(self, sql: str, params: Any = None, **frames: pd.DataFrame) -> list[dict[str, Any]]: ...


def _values(rows: list[tuple[str, ...]]) -> str:
    return ", ".join("(" + ", ".join("'" + cell.replace("'", "''") + "'" for cell in row) + ")" for row in rows)


_TYPED = ", ".join(f'CAST("{name}" AS {kind}) AS "{name}"' for name, kind in RECORD_COLUMNS.items())
_INVERSES = """
    stated AS (SELECT pid, unnest(string_split(inverse_pid, '|')) AS inverse FROM properties WHERE inverse_pid <> ''),
    inv AS (SELECT pid, inverse FROM stated UNION SELECT inverse, pid FROM stated)"""

_TYPES = f"""
WITH night AS (SELECT {_TYPED} FROM night_records),
families(token, family) AS (VALUES {_values([(k, v) for k, v in TYPE_FAMILIES.items()])}),
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
)
SELECT night.*, m.entity IS NOT NULL AND night.new_key IS DISTINCT FROM night.old_key AS type_conflict
FROM night LEFT JOIN misfits m ON m.entity = night.new_key AND m.pid = night.relation AND night.new_is_item
ORDER BY seq
"""

_REPEATS = """
WITH night AS (
    SELECT n.*, coalesce(n.is_request OR p.cardinality = 'single', false) AS single,
           coalesce(p.cardinality = 'single' OR (n.is_request AND p.single_in_practice), false) AS property_single,
           p.pid IS NOT NULL AS property_known,
           n.op IN ('add_statement', 'set_value', 'request') AND n.new_is_item AS asserts
    FROM typed_records n LEFT JOIN properties p ON p.pid = n.relation
),
current_facts AS (
    SELECT * FROM facts WHERE known_to_night IS NULL AND (valid_to IS NULL OR valid_to > ?) AND "rank" <> 'deprecated'
),
delivered AS (
    SELECT *, CASE WHEN revision IS NOT NULL AND row_number() OVER event > 1
                   THEN first_value(record_id) OVER event END AS redelivered_of
    FROM night
    WINDOW event AS (PARTITION BY subject_key, relation, op, old_key, new_key, statement_id, revision ORDER BY seq)
),
followed AS (    -- what the statement was last set to within the night
    SELECT record_id, lag(new_key) OVER (
        PARTITION BY subject_key, relation, coalesce(statement_id, record_id) ORDER BY revision, seq) AS previous
    FROM delivered WHERE asserts AND redelivered_of IS NULL
),
leaders AS (
    SELECT subject_key, relation, new_key, min(seq) AS seq, arg_min(record_id, seq) AS record_id,
           arg_min(coalesce(statement_id, ''), seq) AS statement_id
    FROM delivered
    WHERE asserts AND redelivered_of IS NULL AND shape_ok AND old_key IS DISTINCT FROM new_key GROUP BY ALL
),
repeated AS (
    SELECT d.*, CASE WHEN d.asserts AND d.redelivered_of IS NULL AND d.seq > l.seq
                      AND (d.statement_id IS NULL OR d.statement_id <> l.statement_id
                           OR f.previous = d.new_key OR d.old_key = d.new_key)
                     THEN l.record_id END AS same_triple_of
    FROM delivered d
    LEFT JOIN leaders l USING (subject_key, relation, new_key)
    LEFT JOIN followed f ON f.record_id = d.record_id
),
links AS (
    SELECT record_id, op, row_number() OVER statement AS place, count(*) OVER whole AS length,
           first_value(old_key) OVER whole AS start_key, last_value(new_key) OVER whole AS end_key,
           first_value(op) OVER whole AS first_op,
           string_agg(record_id, ' ') OVER whole AS members
    FROM repeated
    WHERE redelivered_of IS NULL AND same_triple_of IS NULL AND old_key IS DISTINCT FROM new_key
      AND statement_id IS NOT NULL
      AND (asserts OR op = 'remove_statement')
    WINDOW statement AS (PARTITION BY subject_key, relation, statement_id ORDER BY revision, seq),
           whole AS (PARTITION BY subject_key, relation, statement_id ORDER BY revision, seq
                     ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
),
chained AS (
    SELECT r.*, k.members AS chain_of,
           CASE WHEN k.record_id IS NULL OR k.length = 1 THEN 'alone'
                WHEN k.start_key IS NOT DISTINCT FROM k.end_key
                    THEN CASE WHEN k.place = k.length THEN 'net_noop' ELSE 'reverted' END
                WHEN k.place = k.length THEN 'final' ELSE 'superseded' END AS chain,
           CASE WHEN k.record_id IS NULL THEN r.old_key ELSE k.start_key END AS replaced_key,
           r.is_request OR (r.asserts AND CASE WHEN k.record_id IS NULL THEN r.old_key ELSE k.start_key END IS NULL)
               AS is_addition
    FROM repeated r LEFT JOIN links k ON k.record_id = r.record_id
),
slots AS (
    SELECT c.record_id,
        (SELECT string_agg(DISTINCT f.object_id, ' ') FROM current_facts f
         WHERE f.subject_id = c.subject_key AND f.relation = c.relation) AS slot_objects,
        -- Whether a user's request is needed is for the model to say, not for the store.
        NOT c.is_request AND EXISTS (SELECT 1 FROM current_facts f WHERE f.subject_id = c.subject_key
                AND f.relation = c.relation AND f.object_id = c.new_key) AS in_store,
        coalesce(c.revision < (SELECT max(f.revision) FROM facts f
                 WHERE f.subject_id = c.subject_key AND f.relation = c.relation), false) AS stale,
        EXISTS (SELECT 1 FROM facts f WHERE f.subject_id = c.subject_key AND f.relation = c.relation
                AND f.object_id = c.new_key AND f.revision = c.revision
                AND f.known_from_night <> '') AS known_revision,
        EXISTS (SELECT 1 FROM facts f WHERE f.subject_id = c.subject_key AND f.relation = c.relation
                AND f.object_id = c.new_key AND f.known_to_night IS NOT NULL) AS held_before,
        EXISTS (SELECT 1 FROM current_facts f WHERE f.subject_id = c.subject_key AND f.relation = c.relation
                AND f.known_from_night <> '') AS changed_before
    FROM chained c
)
SELECT c.*, s.* EXCLUDE (record_id),
       c.asserts AND c.shape_ok AND NOT c.type_conflict AND c.old_key IS DISTINCT FROM c.new_key AND NOT c.ends_past
       AND NOT c.starts_future AND c.redelivered_of IS NULL AND c.same_triple_of IS NULL
       AND c.chain IN ('alone', 'final') AND NOT s.in_store AND NOT s.stale AND NOT s.known_revision AS live,
       c.shape_ok AND c.redelivered_of IS NULL AND c.chain IN ('alone', 'final') AND NOT s.stale AND (
           (c.op = 'set_rank' AND c."rank" = 'deprecated') OR c.op = 'remove_statement'
           OR (c.op IN ('add_qualifier', 'set_value') AND c.ends_past
               AND (c.new_key IS NULL OR c.new_key IS NOT DISTINCT FROM c.old_key))) AS is_closing
FROM chained c JOIN slots s ON s.record_id = c.record_id ORDER BY seq
"""

_DISAGREEMENTS = f"""
WITH night AS (SELECT * FROM repeat_records),{_INVERSES},
composite(r1, r2, r3) AS (VALUES {_values(list(COMPOSITE_RULES))}),
current_facts AS (
    SELECT * FROM facts WHERE known_to_night IS NULL AND (valid_to IS NULL OR valid_to > ?) AND "rank" <> 'deprecated'
),
closings AS (SELECT *, coalesce(old_key, new_key) AS closed_key FROM night WHERE is_closing),
targets AS (SELECT subject_key, relation, count(DISTINCT new_key) AS num_targets FROM night WHERE live GROUP BY ALL),
rivals AS (
    SELECT a.record_id, string_agg(DISTINCT b.record_id, ' ') AS others
    FROM night a JOIN night b USING (subject_key, relation)
    WHERE a.live AND b.live AND a.is_addition AND b.is_addition AND a.single AND a.new_key <> b.new_key
    GROUP BY ALL
),
closed AS (
    SELECT n.record_id, string_agg(c.record_id, ' ') AS ids, string_agg(c.closed_key, ' ') AS keys,
           bool_or(c.ends_past) AS by_end_date
    FROM night n JOIN closings c ON c.subject_key = n.subject_key AND c.relation = n.relation
    WHERE n.live AND n.is_addition AND c.closed_key <> n.new_key GROUP BY ALL
),
kept AS (    -- other values that stay in the slot after the night's closings
    SELECT n.record_id, count(*) AS num FROM night n
    JOIN current_facts f ON f.subject_id = n.subject_key AND f.relation = n.relation AND f.object_id <> n.new_key
    LEFT JOIN closings c ON c.subject_key = n.subject_key AND c.relation = n.relation AND c.closed_key = f.object_id
    WHERE c.record_id IS NULL GROUP BY ALL
),
weighed AS (
    SELECT n.*, r.others AS contradicts, c.ids AS closing_of, c.keys AS closed_keys,
           coalesce(c.by_end_date, false) AS closed_by_end_date, coalesce(k.num, 0) AS num_kept,
           coalesce(n.live AND n.single AND n.is_addition AND NOT n.is_request AND n.num_references = 0 AND k.num > 0,
                    false) AS contradicts_store,
           coalesce(n.live AND n.untrusted AND n.num_references = 0
                    AND (NOT n.is_addition OR c.ids IS NOT NULL OR (n.single AND k.num > 0)), false) AS low_trust
    FROM night n LEFT JOIN rivals r ON r.record_id = n.record_id LEFT JOIN closed c ON c.record_id = n.record_id
    LEFT JOIN kept k ON k.record_id = n.record_id
),
standing AS (SELECT * FROM weighed WHERE live AND contradicts IS NULL AND NOT contradicts_store),
retracted AS (
    SELECT record_id, subject_key, relation, replaced_key AS key FROM standing WHERE replaced_key IS NOT NULL
    UNION ALL SELECT record_id, subject_key, relation, closed_key FROM closings
),
denied AS (    -- one record asserts a pair whose inverse another record takes away
    SELECT a.record_id AS one, r.record_id AS other
    FROM standing a JOIN inv ON inv.pid = a.relation
    JOIN retracted r ON r.relation = inv.inverse AND r.subject_key = a.new_key AND r.key = a.subject_key
    WHERE a.record_id <> r.record_id
),
asked AS (    -- C q X needs a place for C in a single-valued inverse slot of X
    SELECT b.record_id, b.subject_key AS claimant, b.new_key AS holder, inv.inverse AS pid,
           p.cardinality = 'single' AS single, a.record_id AS filled_by, a.new_key AS night_value,
           (SELECT string_agg(f.object_id, ' ') FROM current_facts f
            WHERE f.subject_id = b.new_key AND f.relation = inv.inverse) AS store_values
    FROM standing b JOIN inv ON inv.pid = b.relation LEFT JOIN properties p ON p.pid = inv.inverse
    LEFT JOIN standing a ON a.subject_key = b.new_key AND a.relation = inv.inverse
),
crowded AS (
    SELECT record_id FROM asked GROUP BY record_id
    HAVING bool_and(coalesce(single, false)) AND count(filled_by) > 0
       AND bool_and(CASE WHEN filled_by IS NOT NULL THEN night_value <> claimant
                         ELSE coalesce(NOT list_contains(string_split(store_values, ' '), claimant), false) END)
),
left_out AS (
    SELECT record_id AS one, filled_by AS other FROM asked SEMI JOIN crowded USING (record_id)
    WHERE filled_by IS NOT NULL
),
inverse_pairs AS (
    SELECT one, other FROM denied UNION SELECT other, one FROM denied
    UNION SELECT one, other FROM left_out UNION SELECT other, one FROM left_out
),
inverse_conflicts AS (SELECT one AS record_id, string_agg(other, ' ') AS others FROM inverse_pairs GROUP BY one),
married AS (
    SELECT a.record_id AS one, b.record_id AS other
    FROM composite k
    JOIN standing a ON a.relation = k.r2
    JOIN standing b ON b.relation = k.r3 AND b.replaced_key = a.replaced_key AND b.new_key <> a.new_key
    WHERE EXISTS (SELECT 1 FROM current_facts f
                  WHERE f.subject_id = b.subject_key AND f.relation = k.r1 AND f.object_id = a.subject_key)
       OR NOT EXISTS (SELECT 1 FROM current_facts f WHERE f.subject_id = b.subject_key AND f.relation = k.r1)
),
composite_pairs AS (SELECT one, other FROM married UNION SELECT other, one FROM married),
composite_conflicts AS (SELECT one AS record_id, string_agg(other, ' ') AS others FROM composite_pairs GROUP BY one),
judged AS (
    SELECT w.*, i.others AS inverse_conflict, m.others AS composite_conflict,
           w.live AND w.contradicts IS NULL AND NOT w.contradicts_store AND NOT w.low_trust
           AND i.others IS NULL AND m.others IS NULL AS is_open
    FROM weighed w LEFT JOIN inverse_conflicts i ON i.record_id = w.record_id
    LEFT JOIN composite_conflicts m ON m.record_id = w.record_id
),
opened AS (SELECT * FROM judged WHERE is_open),
replacements AS (
    SELECT c.record_id, string_agg(o.record_id, ' ') AS ids
    FROM closings c JOIN opened o ON o.subject_key = c.subject_key AND o.relation = c.relation
    WHERE o.is_addition AND o.new_key <> c.closed_key GROUP BY ALL
),
moved AS (
    SELECT c.record_id, string_agg(DISTINCT coalesce(o.record_id, 'store'), ' ') AS ids
    FROM closings c JOIN inv ON inv.pid = c.relation
    LEFT JOIN opened o ON o.subject_key = c.closed_key AND o.relation = inv.inverse
        AND (o.replaced_key = c.subject_key OR list_contains(string_split(o.closed_keys, ' '), c.subject_key))
    WHERE o.record_id IS NOT NULL OR (
        EXISTS (SELECT 1 FROM facts f WHERE f.subject_id = c.closed_key AND f.relation = inv.inverse
                AND f.object_id = c.subject_key AND f.known_to_night IS NOT NULL)
        AND NOT EXISTS (SELECT 1 FROM current_facts f WHERE f.subject_id = c.closed_key AND f.relation = inv.inverse
                        AND f.object_id = c.subject_key))
    GROUP BY ALL
),
supports AS (
    SELECT o.record_id, string_agg(DISTINCT coalesce(s.record_id, 'store'), ' ') AS ids
    FROM opened o JOIN inv ON inv.pid = o.relation
    LEFT JOIN opened s ON s.subject_key = o.new_key AND s.relation = inv.inverse AND s.new_key = o.subject_key
        AND s.record_id <> o.record_id AND (s.relation <> o.relation OR s.seq < o.seq)
    WHERE s.record_id IS NOT NULL OR EXISTS (
        SELECT 1 FROM current_facts f WHERE f.subject_id = o.new_key AND f.relation = inv.inverse
        AND f.object_id = o.subject_key)
    GROUP BY ALL
)
SELECT j.*, r.ids AS replaced_by, m.ids AS inverse_moved, s.ids AS supported_by,
       coalesce(p.symmetric, false) AS symmetric, t.num_targets
FROM judged j
LEFT JOIN replacements r ON r.record_id = j.record_id
LEFT JOIN moved m ON m.record_id = j.record_id
LEFT JOIN supports s ON s.record_id = j.record_id
LEFT JOIN properties p ON p.pid = j.relation
LEFT JOIN targets t ON t.subject_key = j.subject_key AND t.relation = j.relation
ORDER BY j.seq
"""

_SLOT_LABELS = """
SELECT DISTINCT f.subject_id, f.relation, f.object_id, f.object FROM facts f
WHERE f.known_to_night IS NULL
  AND EXISTS (SELECT 1 FROM night_records n
              WHERE CAST(n.subject_key AS VARCHAR) = f.subject_id AND CAST(n.relation AS VARCHAR) = f.relation)
"""

# One statement, so that no column loses its type on the way through a frame.
_ALL = f"""
WITH typed_records AS MATERIALIZED ({_TYPES}), repeat_records AS MATERIALIZED ({_REPEATS})
SELECT * FROM ({_DISAGREEMENTS}) ORDER BY seq
"""


def conflict_columns(
    store: Store, records: pd.DataFrame, now: datetime, evidence: pd.DataFrame | None = None
) -> list[dict[str, Any]]:
    """The records of one night, each a dict with the conflict columns of the module's head; the store is only read.

    Args:
        store: the warehouse, its facts as they stood before the night.
        records: (records, RECORD_COLUMNS), `record_id` unique, `seq` in order of arrival.
        now: a fact whose `valid_to` lies before it no longer counts as current.
        evidence: more (subject_id, relation, object_id) triples to learn from in which roles an entity appears.

    Raises:
        ValueError: a column is missing, or two rows have one `record_id`.
    """
    missing = set(RECORD_COLUMNS) - set(records.columns)
    if missing:
        raise ValueError(f"night frame lacks columns {sorted(missing)}; it needs {sorted(RECORD_COLUMNS)}")
    if records["record_id"].duplicated().any():
        twice = sorted(records.loc[records["record_id"].duplicated(), "record_id"].unique())[:5]
        raise ValueError(f"night frame has several rows for record_id {twice}; fold them first")
    if evidence is None:
        evidence = pd.DataFrame({"subject_id": [], "relation": [], "object_id": []}, dtype="string")
    return store.rows(_ALL, [now, now], night_records=records, more_evidence=evidence)


def slot_labels(store: Store, records: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """(subject id, relation, object id) -> object label of every value that the store holds in the night's slots."""
    rows = store.rows(_SLOT_LABELS, None, night_records=records)
    return {(row["subject_id"], row["relation"], row["object_id"]): row["object"] for row in rows}
