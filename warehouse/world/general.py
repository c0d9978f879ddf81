"""What a small general model can know, in the warehouse: facts beside the embedded world, and which of them a model answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from warehouse.database.connection import Reader, Warehouse
from warehouse.digests import sha256_file
from warehouse.night_names import BASE_NIGHT
from warehouse.records import Record
from warehouse.reference.general import HERE
from warehouse.reference.general.world import general_facts
from warehouse.world.facts import add_facts

#: `source` of the facts.
GENERAL = "general"
_KEY = "general_facts_sha256"


class KnownFact(Record):
    """What a base answered when it was asked for a fact in one form."""

    subject_id: str
    relation: str
    form: str
    correct: bool


def put_general_facts(wh: Warehouse) -> int:
    """Let the warehouse believe the general facts before the first night; a second call changes nothing.

    A slot that the embedded world has a value for is left to it.

    Returns:
        The number of facts added.
    """
    digest = sha256_file(HERE / "facts.csv")
    if wh.scalar("SELECT value FROM store_meta WHERE key = ?", [_KEY]) == digest:
        return 0
    facts = [
        {
            "subject_id": f.subject_id,
            "subject": f.subject,
            "relation": f.relation,
            "object_id": f.object_id,
            "object": f.object,
            "source": GENERAL,
        }
        for f in general_facts()
    ]
    with wh.transaction():
        held = wh.query("SELECT DISTINCT subject_id, relation FROM facts WHERE source <> $source", {"source": GENERAL})
        taken = set(zip(held["subject_id"], held["relation"], strict=True))
        fresh = [fact for fact in facts if (fact["subject_id"], fact["relation"]) not in taken]
        added = add_facts(wh, BASE_NIGHT, pd.DataFrame(fresh))
        wh.execute("DELETE FROM store_meta WHERE key = ?", [_KEY])
        wh.append("store_meta", [{"key": _KEY, "value": digest}])
    return added


def general_slots(wh: Reader, model_digest: str, each: int = 0) -> list[dict[str, Any]]:
    """`subject_id`, `subject`, `relation`, `prompt`, `objects` of the general slots that a model was not asked for yet.

    By relation: what is asked of one relation begins alike, and is computed once.

    Args:
        each: look at the first so many of a relation alone, in hash order: a fair sample; 0: at all.
    """
    return wh.rows(
        """WITH slots AS (
               SELECT f.subject_id, min(f.subject) AS subject, f.relation, list(DISTINCT f.object ORDER BY f.object) AS objects,
                   replace(min(t.prompt), '{s}', min(f.subject)) AS prompt,
                   row_number() OVER (PARTITION BY f.relation ORDER BY md5(f.subject_id)) AS place
               FROM facts f SEMI JOIN listed ON listed.subject_id = f.subject_id AND listed.relation = f.relation
               JOIN templates t ON t.relation = f.relation AND t.idx = 0
               WHERE f.known_from_night = '' GROUP BY f.subject_id, f.relation)
           SELECT s.* EXCLUDE (place) FROM slots s
           WHERE ($each = 0 OR s.place <= $each) AND NOT EXISTS (
               SELECT 1 FROM known_facts k
               WHERE k.model_digest = $model AND k.subject_id = s.subject_id AND k.relation = s.relation)
           ORDER BY s.relation, s.place""",
        {"model": model_digest, "each": each},
        listed=pd.DataFrame(
            {(f.subject_id, f.relation) for f in general_facts()}, columns=["subject_id", "relation"], dtype="str"
        ),
    )


def put_known(wh: Warehouse, model_digest: str, found: Iterable[KnownFact]) -> None:
    """Keep what a model answered; what is there already stays."""
    wh.append("known_facts", list(found), constants={"model_digest": model_digest})


def known_counts(wh: Reader, model_digest: str) -> list[dict[str, Any]]:
    """`relation`, `label`, `form`, `correct` and `asked` of a model, by relation and form; form `""`: right in any of them."""
    return wh.rows(
        """WITH asked AS (SELECT * FROM known_facts WHERE model_digest = $model),
           counts AS (
               SELECT relation, form, count(*) FILTER (correct) AS correct, count(*) AS asked FROM asked GROUP BY ALL
               UNION ALL
               SELECT relation, '', count(*) FILTER (correct), count(*) FROM
                   (SELECT relation, subject_id, bool_or(correct) AS correct FROM asked GROUP BY ALL) GROUP BY relation)
           SELECT c.relation, coalesce(p.label, '') AS label, c.form, c.correct, c.asked
           FROM counts c LEFT JOIN properties p ON p.pid = c.relation ORDER BY c.relation, c.form""",
        {"model": model_digest},
    )
