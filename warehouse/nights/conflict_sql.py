"""The SQL of `warehouse.nights.conflicts`: what repeats within a night, and what disagrees with it, the store or earlier edits.

`REPEATS` reads `typed_records`, `DISAGREEMENTS` reads `repeat_records`; both read the frames `past_requests` (edits
that the table `facts` cannot hold, as their source has no ids) and `logic_rules` (`warehouse/reference/rules.csv`).
"""

from __future__ import annotations

#: Record ids that one column names at most. A slot that ten thousand records claim needs no list of all of them.
MAX_EVIDENCE = 32

PAST_REQUESTS = """
    past_requests AS (
        SELECT CAST(subject_key AS VARCHAR) AS subject_key, CAST(relation AS VARCHAR) AS relation,
               CAST(old_key AS VARCHAR) AS old_key, CAST(new_key AS VARCHAR) AS new_key,
               CAST(is_latest AS BOOLEAN) AS is_latest, CAST(in_facts AS BOOLEAN) AS in_facts
        FROM past_request_rows
    )"""

INVERSES = """
    rules AS (
        SELECT CAST(kind AS VARCHAR) AS kind, CAST(premise AS VARCHAR) AS premise, CAST(via AS VARCHAR) AS via,
               CAST(conclusion AS VARCHAR) AS conclusion, CAST(needs_link AS BOOLEAN) AS needs_link
        FROM logic_rules
    ),
    stated AS (
        SELECT pid, unnest(string_split(inverse_pid, '|')) AS inverse FROM properties WHERE inverse_pid <> ''
        UNION SELECT premise, conclusion FROM rules WHERE kind = 'inverse'
    ),
    inv AS (SELECT pid, inverse FROM stated UNION SELECT inverse, pid FROM stated),
    hard_inverses AS (    -- a strict inverse of which one side can hold but one value
        SELECT i.pid, bool_or(coalesce(a.cardinality = 'single' OR b.cardinality = 'single', false)) AS is_hard
        FROM inv i LEFT JOIN properties a ON a.pid = i.pid LEFT JOIN properties b ON b.pid = i.inverse GROUP BY i.pid
    ),
    ruled AS (
        SELECT pid FROM inv UNION SELECT via FROM rules WHERE kind = 'composite'
        UNION SELECT conclusion FROM rules WHERE kind = 'composite'
    )"""

REPEATS = f"""
WITH {PAST_REQUESTS},
night AS (
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
    SELECT record_id, subject_key, relation, statement_id, op,
           row_number() OVER statement AS place, count(*) OVER whole AS length,
           first_value(old_key) OVER whole AS start_key, last_value(new_key) OVER whole AS end_key,
           first_value(op) OVER whole AS first_op
    FROM repeated
    WHERE redelivered_of IS NULL AND same_triple_of IS NULL AND old_key IS DISTINCT FROM new_key
      AND statement_id IS NOT NULL
      AND (asserts OR op = 'remove_statement')
    WINDOW statement AS (PARTITION BY subject_key, relation, statement_id ORDER BY revision, seq),
           whole AS (PARTITION BY subject_key, relation, statement_id ORDER BY revision, seq
                     ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
),
statements AS (
    SELECT subject_key, relation, statement_id, string_agg(record_id, ' ' ORDER BY place) AS members
    FROM links WHERE place <= {MAX_EVIDENCE} GROUP BY ALL
),
chained AS (
    SELECT r.*, m.members AS chain_of,
           CASE WHEN k.record_id IS NULL OR k.length = 1 THEN 'alone'
                WHEN k.start_key IS NOT DISTINCT FROM k.end_key
                    THEN CASE WHEN k.place = k.length THEN 'net_noop' ELSE 'reverted' END
                WHEN k.place = k.length THEN 'final' ELSE 'superseded' END AS chain,
           CASE WHEN k.record_id IS NULL THEN r.old_key ELSE k.start_key END AS replaced_key,
           r.is_request OR (r.asserts AND CASE WHEN k.record_id IS NULL THEN r.old_key ELSE k.start_key END IS NULL)
               AS is_addition
    FROM repeated r LEFT JOIN links k ON k.record_id = r.record_id
    LEFT JOIN statements m ON m.subject_key = k.subject_key AND m.relation = k.relation
        AND m.statement_id = k.statement_id
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
                AND f.object_id = c.new_key AND f.known_to_night IS NOT NULL)
            OR EXISTS (SELECT 1 FROM past_requests q WHERE q.subject_key = c.subject_key AND q.relation = c.relation
                AND NOT q.is_latest AND NOT q.in_facts AND q.new_key = c.new_key)
            OR EXISTS (SELECT 1 FROM past_requests q WHERE q.subject_key = c.subject_key AND q.relation = c.relation
                AND q.old_key IN (c.new_key, c.new_text) AND q.new_key <> c.new_key) AS held_before,
        EXISTS (SELECT 1 FROM current_facts f WHERE f.subject_id = c.subject_key AND f.relation = c.relation
                AND f.known_from_night <> '')
            OR EXISTS (SELECT 1 FROM past_requests q WHERE q.subject_key = c.subject_key
                AND q.relation = c.relation) AS changed_before
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

DISAGREEMENTS = f"""
WITH night AS (SELECT * FROM repeat_records),{PAST_REQUESTS},{INVERSES},
composite AS (
    SELECT premise AS r1, via AS r2, conclusion AS r3, needs_link FROM rules WHERE kind = 'composite'
),
current_facts AS (
    SELECT * FROM facts WHERE known_to_night IS NULL AND (valid_to IS NULL OR valid_to > ?) AND "rank" <> 'deprecated'
),
closings AS (SELECT *, coalesce(old_key, new_key) AS closed_key FROM night WHERE is_closing),
targets AS (SELECT subject_key, relation, count(DISTINCT new_key) AS num_targets FROM night WHERE live GROUP BY ALL),
claimants AS (SELECT * FROM night WHERE live AND is_addition AND single),
crowds AS (SELECT subject_key, relation FROM claimants GROUP BY ALL HAVING count(DISTINCT new_key) > 1),
copies AS (
    SELECT c.*, row_number() OVER (PARTITION BY subject_key, relation, new_key ORDER BY seq) AS copy
    FROM claimants c SEMI JOIN crowds USING (subject_key, relation)
),
witnesses AS (    -- one record of each value first, so that every claimant finds a rival among the few that are named
    SELECT * FROM copies
    QUALIFY row_number() OVER (PARTITION BY subject_key, relation ORDER BY copy, seq) <= {MAX_EVIDENCE}
),
rivals AS (
    SELECT a.record_id, string_agg(DISTINCT b.record_id, ' ') AS others
    FROM copies a JOIN witnesses b USING (subject_key, relation) WHERE a.new_key <> b.new_key GROUP BY ALL
),
closed AS (
    SELECT n.record_id, string_agg(c.record_id, ' ') AS ids, string_agg(c.closed_key, ' ') AS keys,
           bool_or(c.ends_past) AS by_end_date
    FROM night n JOIN closings c ON c.subject_key = n.subject_key AND c.relation = n.relation
    WHERE n.live AND n.is_addition AND c.closed_key <> n.new_key GROUP BY ALL
),
kept AS (    -- other values that stay in a single-valued slot after the night's closings
    SELECT n.record_id, count(*) AS num FROM night n
    JOIN current_facts f ON f.subject_id = n.subject_key AND f.relation = n.relation AND f.object_id <> n.new_key
    LEFT JOIN closings c ON c.subject_key = n.subject_key AND c.relation = n.relation AND c.closed_key = f.object_id
    WHERE n.single AND n.asserts AND c.record_id IS NULL GROUP BY ALL
),
weighed AS (
    SELECT n.*, r.others AS contradicts, c.ids AS closing_of, c.keys AS closed_keys,
           coalesce(c.by_end_date, false) AS closed_by_end_date, coalesce(k.num, 0) AS num_kept,
           coalesce(n.live AND n.single AND n.is_addition AND NOT n.is_request AND n.num_references = 0 AND k.num > 0,
                    false) AS contradicts_store,
           coalesce(n.live AND n.untrusted AND (NOT n.is_addition OR c.ids IS NOT NULL OR (n.single AND k.num > 0)
                                                OR n.reverted_later), false) AS low_trust
    FROM night n LEFT JOIN rivals r ON r.record_id = n.record_id LEFT JOIN closed c ON c.record_id = n.record_id
    LEFT JOIN kept k ON k.record_id = n.record_id
),
standing AS (SELECT * FROM weighed WHERE live AND contradicts IS NULL AND NOT contradicts_store),
retracted AS (
    SELECT record_id, subject_key, relation, replaced_key AS key FROM standing WHERE replaced_key IS NOT NULL
    UNION ALL SELECT record_id, subject_key, relation, closed_key FROM closings
),
earlier AS (    -- what the nights before have taught and nobody has taken back: the ledger of past edits
    SELECT f.subject_id AS subject_key, f.relation, f.object_id AS new_key, o.object_id AS replaced_key
    FROM current_facts f
    LEFT JOIN facts o ON o.subject_id = f.subject_id AND o.relation = f.relation AND o.object_id <> f.object_id
        AND o.known_to_night = f.known_from_night
    WHERE f.known_from_night <> '' AND f.relation IN (SELECT pid FROM ruled)
    UNION ALL
    SELECT subject_key, relation, new_key, old_key FROM past_requests
    WHERE is_latest AND NOT in_facts AND relation IN (SELECT pid FROM ruled)
),
taken_back AS (
    SELECT subject_key, relation, key FROM retracted
    UNION ALL SELECT e.subject_key, e.relation, e.new_key FROM earlier e JOIN standing s USING (subject_key, relation)
    WHERE s.single AND s.new_key <> e.new_key
),
learnt AS (
    SELECT e.* FROM earlier e ANTI JOIN taken_back t
    ON t.subject_key = e.subject_key AND t.relation = e.relation AND t.key = e.new_key
),
denied_before AS (    -- takes away a pair that only an earlier edit of the inverse brought, or that a functional one needs
    SELECT DISTINCT s.record_id AS one
    FROM standing s JOIN inv ON inv.pid = s.relation
    JOIN learnt e ON e.relation = inv.inverse AND e.subject_key = s.replaced_key AND e.new_key = s.subject_key
    LEFT JOIN properties p ON p.pid = inv.inverse
    WHERE coalesce(p.cardinality = 'single' AND NOT s.property_single, false) OR NOT EXISTS (
        SELECT 1 FROM current_facts f
        WHERE f.subject_id = s.subject_key AND f.relation = s.relation AND f.object_id = s.replaced_key)
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
            WHERE f.subject_id = b.new_key AND f.relation = inv.inverse) AS store_values,
           EXISTS (SELECT 1 FROM learnt e WHERE e.subject_key = b.new_key AND e.relation = inv.inverse) AS by_edit
    FROM standing b JOIN inv ON inv.pid = b.relation LEFT JOIN properties p ON p.pid = inv.inverse
    LEFT JOIN standing a ON a.subject_key = b.new_key AND a.relation = inv.inverse
),
crowded AS (
    SELECT record_id FROM asked GROUP BY record_id
    HAVING bool_and(coalesce(single, false)) AND (count(filled_by) > 0 OR bool_or(by_edit))
       AND bool_and(CASE WHEN filled_by IS NOT NULL THEN night_value <> claimant
                         ELSE coalesce(NOT list_contains(string_split(store_values, ' '), claimant), false) END)
),
left_out AS (
    SELECT record_id AS one, filled_by AS other FROM asked SEMI JOIN crowded USING (record_id)
    WHERE filled_by IS NOT NULL
),
left_out_before AS (
    SELECT record_id AS one FROM asked SEMI JOIN crowded USING (record_id) GROUP BY record_id HAVING count(filled_by) = 0
),
inverse_pairs AS (
    SELECT one, other FROM denied UNION SELECT other, one FROM denied
    UNION SELECT one, other FROM left_out UNION SELECT other, one FROM left_out
    UNION SELECT one, 'store' FROM denied_before UNION SELECT one, 'store' FROM left_out_before
),
inverse_conflicts AS (SELECT one AS record_id, string_agg(other, ' ') AS others FROM inverse_pairs GROUP BY one),
claims AS (
    SELECT record_id, subject_key, relation, replaced_key, new_key FROM standing
    UNION ALL SELECT 'store', subject_key, relation, replaced_key, new_key FROM learnt
),
married AS (
    SELECT a.record_id AS one, b.record_id AS other
    FROM composite k
    JOIN claims a ON a.relation = k.r2
    JOIN claims b ON b.relation = k.r3 AND b.replaced_key = a.replaced_key AND b.new_key <> a.new_key
    WHERE (a.record_id <> 'store' OR b.record_id <> 'store') AND (
        EXISTS (SELECT 1 FROM current_facts f
                WHERE f.subject_id = b.subject_key AND f.relation = k.r1 AND f.object_id = a.subject_key)
        OR (NOT k.needs_link AND a.record_id <> 'store' AND b.record_id <> 'store' AND NOT EXISTS (
            SELECT 1 FROM current_facts f WHERE f.subject_id = b.subject_key AND f.relation = k.r1)))
),
composite_pairs AS (
    SELECT one, other FROM married WHERE one <> 'store' UNION SELECT other, one FROM married WHERE other <> 'store'
),
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
SELECT j.*, coalesce(h.is_hard, false) AS inverse_is_hard, r.ids AS replaced_by, m.ids AS inverse_moved, s.ids AS supported_by,
       coalesce(p.symmetric, false) AS symmetric, t.num_targets
FROM judged j
LEFT JOIN hard_inverses h ON h.pid = j.relation
LEFT JOIN replacements r ON r.record_id = j.record_id
LEFT JOIN moved m ON m.record_id = j.record_id
LEFT JOIN supports s ON s.record_id = j.record_id
LEFT JOIN properties p ON p.pid = j.relation
LEFT JOIN targets t ON t.subject_key = j.subject_key AND t.relation = j.relation
ORDER BY j.seq
"""
