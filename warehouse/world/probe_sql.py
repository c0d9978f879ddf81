"""The SQL behind `warehouse.world.probes`: one query for each slice of an edit's questions.

Where a model's known facts are kept (`$model`, its digest), bystanders are those alone.

Frames: `asked` (requests in order `ord`, absent texts are ''), `reworded` (their rephrases), `shut_out` (ids and labels
that take part in an edit). Parameters: `$seed`, and `$k`, the most rows for one request. `seeded(...)` stands for an
md5 under the seed: unlike DuckDB's `hash` it is the same in every release.
"""

from __future__ import annotations

import re


def _sql(text: str) -> str:
    return re.sub(r"seeded\(([^()]*)\)", r"md5(concat_ws('|', $seed, \1))", text)


# Believed slots with all their answers. Where one label names two subjects of a relation, a prompt has two right
# answers, so neither is asked.
_SLOTS = """
known AS (SELECT DISTINCT subject_id, relation FROM known_facts WHERE model_digest = $model AND correct),
slots AS (
    SELECT subject_id, min(subject) AS subject, relation, list_sort(list(DISTINCT object)) AS objects
    FROM facts WHERE known_to_night IS NULL AND "rank" <> 'deprecated' GROUP BY subject_id, relation
    QUALIFY count(*) OVER (PARTITION BY min(subject), relation) = 1
),
open_slots AS (
    SELECT s.*, replace(t.prompt, '{s}', s.subject) AS prompt
    FROM slots s JOIN templates t ON t.relation = s.relation AND t.idx = 0
    WHERE s.subject_id NOT IN (SELECT name FROM shut_out) AND s.subject NOT IN (SELECT name FROM shut_out)
        AND ((s.subject_id, s.relation) IN (SELECT (subject_id, relation) FROM known) OR NOT EXISTS (SELECT 1 FROM known))
)"""

# Ids that a request leaves empty are looked up by label, where the label means one entity.
RESOLVE = """
WITH names AS (
    SELECT label, min(id) AS id FROM (
        SELECT DISTINCT subject AS label, subject_id AS id FROM facts UNION
        SELECT DISTINCT object, object_id FROM facts)
    WHERE id <> '' GROUP BY label HAVING count(DISTINCT id) = 1
)
SELECT a.* REPLACE (
    coalesce(nullif(a.subject_id, ''), s.id, '') AS subject_id,
    coalesce(nullif(a.target_new_id, ''), o.id, '') AS target_new_id),
    coalesce(t.id, '') AS target_true_id
FROM asked a LEFT JOIN names s ON s.label = a.subject LEFT JOIN names o ON o.label = a.target_new
LEFT JOIN names t ON t.label = a.target_true
ORDER BY a.ord"""

_OWN = {
    "success": "SELECT request_id, prompt, [target_new] AS targets FROM asked ORDER BY ord",
    # The same question in the model's other forms, and in one that it is poor in: all of them, for there are few.
    "also": """
        SELECT a.request_id, w.prompt, [a.target_new] AS targets FROM in_forms w JOIN asked a USING (request_id)
        WHERE w.kind = 'also' AND $k > 0 ORDER BY a.ord, w.place""",
    "carry_over": """
        SELECT a.request_id, w.prompt, [a.target_new] AS targets FROM in_forms w JOIN asked a USING (request_id)
        WHERE w.kind = 'carry_over' AND $k > 0 ORDER BY a.ord, w.place""",
    "rephrase": """
        SELECT a.request_id, w.prompt, [a.target_new] AS targets FROM reworded w JOIN asked a USING (request_id)
        WHERE w.prompt <> a.prompt
        QUALIFY row_number() OVER (PARTITION BY a.request_id, w.form ORDER BY w.place) <= $k
        ORDER BY a.ord, w.place""",
    "obsolete": """
        SELECT request_id, prompt, [target_true] AS targets FROM asked
        WHERE target_true NOT IN ('', target_new) ORDER BY ord""",
    "alias": """
        SELECT a.request_id, replace(a.prompt, a.subject, n.alias) AS prompt, [a.target_new] AS targets
        FROM asked a JOIN aliases n ON n.entity_id = a.subject_id
        WHERE n.alias NOT IN ('', a.subject) AND a.subject <> ''
        QUALIFY row_number() OVER (PARTITION BY a.request_id ORDER BY seeded(n.alias)) <= $k
        ORDER BY a.ord""",
}  # fmt: skip

_LOCALITY = {
    # Facts of a relation stand in a ring in hash order; each request takes the next stretch of it, so that requests
    # share a neighbour only when the ring is used up.
    "neighbourhood": f"""
        WITH {_SLOTS},
        ring AS (
            SELECT *, row_number() OVER (PARTITION BY relation ORDER BY seeded(subject_id, relation)) - 1 AS place,
                count(*) OVER (PARTITION BY relation) AS size
            FROM open_slots),
        turns AS (
            SELECT *, row_number() OVER (PARTITION BY relation ORDER BY seeded(request_id)) - 1 AS turn
            FROM asked)
        SELECT a.request_id, r.prompt, r.objects AS targets, r.relation, r.subject
        FROM turns a JOIN ring r ON r.relation = a.relation
            AND (r.place + r.size - (a.turn * $k) % r.size) % r.size < $k
        ORDER BY a.ord, r.place""",
    "unrelated": f"""
        WITH {_SLOTS},
        ring AS (
            SELECT *, row_number() OVER (ORDER BY seeded('unrelated', subject_id, relation)) - 1 AS place,
                count(*) OVER () AS size
            FROM open_slots),
        turns AS (
            SELECT *, row_number() OVER (ORDER BY seeded(request_id)) - 1 AS turn FROM asked),
        -- Longer than what is taken, because facts of the request's own relation are passed over.
        stretch AS (
            SELECT a.request_id, a.ord, a.relation, s.step,
                (a.turn * (4 * $k + 4) + s.step) % (SELECT max(size) FROM ring) AS place
            FROM turns a CROSS JOIN range(4 * $k + 4) s(step))
        SELECT a.request_id, r.prompt, r.objects AS targets, r.relation, r.subject
        FROM stretch a JOIN ring r ON r.place = a.place AND r.relation <> a.relation
        QUALIFY row_number() OVER (PARTITION BY a.request_id ORDER BY a.step) <= $k
        ORDER BY a.ord, a.step""",
    "relation_specificity": f"""
        WITH {_SLOTS}
        SELECT a.request_id, replace(t.prompt, '{{s}}', s.subject) AS prompt, s.objects AS targets, s.relation, s.subject
        FROM asked a JOIN slots s ON s.subject_id = a.subject_id AND s.relation <> a.relation
        JOIN templates t ON t.relation = s.relation AND t.idx = 0
        WHERE NOT EXISTS (SELECT 1 FROM asked o WHERE o.subject_id = s.subject_id AND o.relation = s.relation)
        QUALIFY row_number() OVER (PARTITION BY a.request_id ORDER BY seeded(s.relation)) <= $k
        ORDER BY a.ord, s.relation""",
    # The plain prompt has the new object as its answer; KnowEdit asks for the others by shutting it out.
    "forgetfulness": f"""
        WITH {_SLOTS}
        SELECT a.request_id,
            'The ' || t.phrase || ' of ' || s.subject || ', which is not ' || a.target_new || ', is' AS prompt,
            list_filter(s.objects, lambda x: x NOT IN (a.target_new, a.target_true)) AS targets
        FROM asked a JOIN slots s ON s.subject_id = a.subject_id AND s.relation = a.relation
        JOIN templates t ON t.relation = a.relation AND t.idx = 0
        LEFT JOIN properties p ON p.pid = a.relation
        WHERE a.kind <> 'erase' AND coalesce(p.cardinality, 'multi') = 'multi'
            AND len(list_filter(s.objects, lambda x: x NOT IN (a.target_new, a.target_true))) > 0
        ORDER BY a.ord""",
}  # fmt: skip

_PORTABILITY = {
    "one_hop": f"""
        WITH {_SLOTS}
        SELECT a.request_id,
            'The ' || outside.phrase || ' of the ' || within.phrase || ' of ' || a.subject || ' is' AS prompt,
            s.objects AS targets
        FROM asked a JOIN slots s ON s.subject_id = a.target_new_id
        JOIN templates within ON within.relation = a.relation AND within.idx = 0
        JOIN templates outside ON outside.relation = s.relation AND outside.idx = 0
        WHERE a.kind <> 'erase' AND a.target_new_id <> '' AND NOT list_contains(s.objects, a.subject)
            AND NOT EXISTS (SELECT 1 FROM asked o WHERE o.subject_id = s.subject_id AND o.relation = s.relation)
        QUALIFY row_number() OVER (PARTITION BY a.request_id ORDER BY seeded(s.relation)) <= $k
        ORDER BY a.ord, s.relation""",
    # In order: the inverse wording of the relation, the relation itself if symmetric, the inverse relation. Asked only
    # where the new object has no other subject, else the question has more than one right answer.
    "logical": f"""
        WITH {_SLOTS},
        wordings AS (
            SELECT relation, relation AS answered_by, 0 AS way, replace(inverse, '{{o}}', '{{s}}') AS wording
            FROM templates WHERE idx = 0 AND inverse IS NOT NULL
            UNION ALL
            SELECT t.relation, t.relation, 1, t.prompt FROM templates t JOIN properties p ON p.pid = t.relation
            WHERE t.idx = 0 AND p."symmetric"
            UNION ALL
            SELECT p.pid, t.relation, 2, t.prompt FROM templates t JOIN properties p ON p.inverse_pid = t.relation
            WHERE t.idx = 0 AND p.pid <> t.relation)
        SELECT a.request_id, replace(w.wording, '{{s}}', a.target_new) AS prompt, [a.subject] AS targets
        FROM asked a JOIN wordings w ON w.relation = a.relation
        WHERE a.kind <> 'erase' AND a.target_new <> ''
            AND NOT EXISTS (SELECT 1 FROM facts f WHERE f.known_to_night IS NULL AND f.relation = a.relation
                AND f.object = a.target_new AND f.subject <> a.subject)
            AND NOT EXISTS (SELECT 1 FROM asked o WHERE o.relation = a.relation AND o.target_new = a.target_new
                AND o.subject <> a.subject)
            AND NOT EXISTS (SELECT 1 FROM slots s WHERE w.way > 0 AND s.relation = w.answered_by
                AND s.subject = a.target_new AND s.objects <> [a.subject])
        QUALIFY row_number() OVER (PARTITION BY a.request_id ORDER BY w.way) <= $k
        ORDER BY a.ord, w.way""",
}  # fmt: skip

SLICES: dict[str, str] = {kind: _sql(text) for kind, text in {**_OWN, **_LOCALITY, **_PORTABILITY}.items()}

DRAWDOWN = _sql(f"""
    WITH {_SLOTS}
    SELECT prompt, objects AS targets, relation, subject FROM open_slots
    ORDER BY seeded('drawdown', subject_id, relation) LIMIT $k""")

STAND_INS = _sql(f"""
    WITH {_SLOTS}
    SELECT prompt, objects AS targets, relation, subject FROM open_slots
    ORDER BY seeded('stand-in', $kind, subject_id, relation) LIMIT $k""")
