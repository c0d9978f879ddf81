"""A subject on the dashboard: what Wikidata said of it, what the model was taught, and what it answers at each checkpoint."""

from __future__ import annotations

from datetime import datetime

import pandas as pd

from warehouse.database.connection import Reader, Warehouse
from warehouse.lineages.chain import ancestor_ids, head
from warehouse.records import ProbeKind, Record

#: Kinds of probes that ask about the subject itself, and not about what an edit of it must leave alone.
ABOUT_SUBJECT: tuple[ProbeKind, ...] = (
    "success", "also", "rephrase", "carry_over", "relation_specificity", "alias", "one_hop", "logical", "obsolete",
)  # fmt: skip
#: Of which a subject's answers are shown at most, beside those around its own edits.
MOST_CHECKPOINTS = 100


class SubjectHit(Record):
    """A subject that a search found; `key` names it in addresses: its id, or its label where it has none."""

    key: str
    subject_id: str
    subject: str
    facts: int
    requests: int


class BelievedFact(Record):
    """A fact that the store believes or believed of a subject; times of nights are names of nights."""

    relation: str
    label: str
    object: str
    object_id: str
    rank: str
    valid_from: datetime | None
    valid_to: datetime | None
    known_from_night: str
    known_to_night: str | None
    revision: int | None
    source: str


class SubjectEdit(Record):
    """One edit of a subject and who is to blame for it: the record, its verdict, the request, the decision."""

    edit_id: str
    request_id: str
    lineage: str
    night: str
    relation: str
    label: str
    prompt: str
    target_new: str
    target_true: str | None
    editor: str
    status: str
    reason: str
    in_force: bool
    checkpoint_id: str | None
    records: str
    sentence: str
    decided: str | None


class AnswerAt(Record):
    """What a checkpoint answers to a probe of a subject."""

    night: str
    verdict: str
    checkpoint_id: str
    kind: str
    prompt: str
    expected: str
    answer: str
    is_right: bool
    log_prob: float


_SUBJECTS = """
    WITH named AS (
        SELECT subject_id, subject, 1 AS fact, 0 AS request FROM facts
        UNION ALL SELECT subject_id, subject, 0, 1 FROM edit_requests
    )
    SELECT CASE WHEN subject_id = '' THEN subject ELSE subject_id END AS key, any_value(subject_id) AS subject_id,
           max(subject) AS subject, sum(fact)::BIGINT AS facts, sum(request)::BIGINT AS requests
    FROM named WHERE contains(lower(subject), lower($words)) OR lower(subject_id) = lower($words)
    GROUP BY 1
"""


def find_subjects(wh: Reader, words: str, *, limit: int, offset: int = 0) -> tuple[list[SubjectHit], int]:
    """Subjects whose label contains the words, in any case, or whose id they are; edited ones first. And how many."""
    if not words.strip():
        return [], 0
    rows = wh.rows(
        f"""SELECT *, count(*) OVER () AS total FROM ({_SUBJECTS})
            ORDER BY lower(subject) = lower($words) DESC, requests DESC, subject, key LIMIT $limit OFFSET $offset""",
        {"words": words.strip(), "limit": limit, "offset": offset},
    )
    total = rows[0]["total"] if rows else 0
    return [SubjectHit(**{name: row[name] for name in SubjectHit.model_fields}) for row in rows], total


def subject_of(wh: Reader, key: str) -> SubjectHit | None:
    """The subject of that key; None where the warehouse has heard nothing of it."""
    rows = wh.rows(
        """WITH named AS (
               SELECT subject_id, subject, 1 AS fact FROM facts WHERE subject_id = $key OR (subject_id = '' AND subject = $key)
               UNION ALL
               SELECT subject_id, subject, 0 FROM edit_requests WHERE subject_id = $key OR (subject_id = '' AND subject = $key)
           )
           SELECT $key AS key, max(subject_id) AS subject_id, max(subject) AS subject, sum(fact)::BIGINT AS facts,
                  (count(*) - sum(fact))::BIGINT AS requests FROM named HAVING count(*) > 0""",
        {"key": key},
    )
    return SubjectHit(**rows[0]) if rows else None


def believed_of(wh: Reader, key: str) -> list[BelievedFact]:
    """What the store believes and believed of a subject, by relation, oldest belief first."""
    rows = wh.rows(
        """SELECT f.relation, coalesce(p.label, '') AS label, f.object, f.object_id, f."rank", f.valid_from, f.valid_to,
                  f.known_from_night, f.known_to_night, f.revision, f.source
           FROM facts AS f LEFT JOIN properties AS p ON p.pid = f.relation
           WHERE f.subject_id = $key OR (f.subject_id = '' AND f.subject = $key)
           ORDER BY f.relation, place_of(f.known_from_night), f.known_to_night NULLS LAST, f.object LIMIT 500""",
        {"key": key},
    )
    return [BelievedFact(**row) for row in rows]


def edits_of_subject(wh: Warehouse, key: str, lineage: str) -> list[SubjectEdit]:
    """Every edit of a subject on a lineage, newest first, with the record and the decision behind it."""
    at = head(wh, lineage)
    chain = ancestor_ids(wh, lineage, at.checkpoint_id) if at else []
    rows = wh.rows(
        """WITH asked AS (
               SELECT * FROM edit_requests WHERE subject_id = $key OR (subject_id = '' AND subject = $key)
           ), behind AS (
               SELECT request_id, string_agg(record_id, ', ' ORDER BY record_id) AS records, max(sentence) AS sentence
               FROM verdicts WHERE request_id IN (SELECT request_id FROM asked) GROUP BY request_id
           )
           SELECT e.edit_id, e.request_id, e.lineage, e.night, q.relation, coalesce(p.label, '') AS label, q.prompt,
                  q.target_new, q.target_true, e.editor, e.status, e.reason, e.checkpoint_id,
                  e.status <> 'skipped' AND e.checkpoint_id IN (SELECT id FROM chain)
                      AND (e.superseded_in IS NULL OR e.superseded_in NOT IN (SELECT id FROM chain)) AS in_force,
                  coalesce(v.records, '') AS records, coalesce(v.sentence, '') AS sentence, c.verdict AS decided
           FROM edits AS e JOIN asked AS q USING (request_id) LEFT JOIN behind AS v USING (request_id)
           LEFT JOIN properties AS p ON p.pid = q.relation
           LEFT JOIN checkpoints AS c ON c.lineage = e.lineage AND c.checkpoint_id = e.checkpoint_id
           WHERE e.lineage = $lineage ORDER BY e.edit_seq DESC LIMIT 200""",
        {"key": key, "lineage": lineage},
        chain=pd.DataFrame({"id": chain}, dtype="str"),
    )
    return [SubjectEdit(**{**row, "in_force": bool(row["in_force"])}) for row in rows]


def answers_of_subject(wh: Reader, key: str, lineage: str, *, limit: int, offset: int = 0) -> tuple[list[AnswerAt], int]:
    """What checkpoints answered to the probes of a subject's edits, newest checkpoint first; and how many answers there are.

    Of the lineage's newest `MOST_CHECKPOINTS` checkpoints, of those that its edits made, and of the ones before them.
    """
    about = {"key": key, "lineage": lineage, "most": MOST_CHECKPOINTS}
    checkpoints = wh.rows(
        """WITH own AS (
               SELECT DISTINCT checkpoint_id FROM edits WHERE lineage = $lineage AND request_id IN (
                   SELECT request_id FROM edit_requests WHERE subject_id = $key OR (subject_id = '' AND subject = $key))
           )
           SELECT checkpoint_id AS id FROM own WHERE checkpoint_id IS NOT NULL
           UNION SELECT parent FROM checkpoints SEMI JOIN own USING (checkpoint_id) WHERE parent IS NOT NULL
           UNION (SELECT checkpoint_id FROM checkpoints WHERE lineage = $lineage ORDER BY created_at DESC LIMIT $most)""",
        about,
    )
    probes = wh.rows(
        """SELECT probe_id, any_value(kind) AS kind, any_value(prompt) AS prompt,
                  array_to_string(any_value(targets), ' | ') AS expected
           FROM probes WHERE list_contains($kinds, kind) AND request_id IN (
               SELECT request_id FROM edit_requests WHERE subject_id = $key OR (subject_id = '' AND subject = $key))
           GROUP BY probe_id ORDER BY probe_id LIMIT 500""",
        {"key": key, "kinds": list(ABOUT_SUBJECT)},
    )
    if not probes:
        return [], 0
    # Constants, and a join with few checkpoints: so DuckDB passes over most of the millions of answers.
    named = {f"p{place}": row["probe_id"] for place, row in enumerate(probes)}
    rows = wh.rows(
        f"""WITH said AS MATERIALIZED (
               SELECT * FROM predictions SEMI JOIN shown ON shown.id = predictions.model_digest
               WHERE probe_id IN ({", ".join(f"${name}" for name in named)})
           )
           SELECT c.night, c.verdict, c.checkpoint_id, o.kind, o.prompt, o.expected, trim(a.text) AS answer,
                  a.exact AS is_right, a.log_prob, count(*) OVER () AS total
           FROM said AS a
           JOIN own AS o USING (probe_id)
           JOIN checkpoints AS c ON c.checkpoint_id = a.model_digest AND c.lineage = $lineage
           ORDER BY c.parent IS NULL, c.created_at DESC, c.checkpoint_id, o.kind = 'success' DESC, o.kind, o.prompt
           LIMIT $limit OFFSET $offset""",
        {"lineage": lineage, "limit": limit, "offset": offset, **named},
        shown=pd.DataFrame({"id": [row["id"] for row in checkpoints]}, dtype="str"),
        own=pd.DataFrame(probes, dtype="str"),
    )
    total = rows[0]["total"] if rows else 0
    return [AnswerAt(**{name: row[name] for name in AnswerAt.model_fields}) for row in rows], total
