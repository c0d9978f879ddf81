"""What the text safety of the door asks the store: labels that look alike, words it has, and what its last nights learnt."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from warehouse.database.connection import Reader

_SAME_LOOK = """
WITH looks AS (SELECT DISTINCT CAST(look AS VARCHAR) AS look FROM night_looks),
known AS (
    SELECT subject_id AS entity, subject AS label FROM facts UNION SELECT object_id, object FROM facts
    UNION SELECT entity_id, alias FROM aliases
)
SELECT DISTINCT look, entity, label FROM known JOIN looks ON lower(nfc_normalize(label)) = look ORDER BY ALL
"""
_HISTORY = """
WITH past AS (
    SELECT night FROM (SELECT DISTINCT known_from_night AS night FROM facts WHERE known_from_night <> '') AS named
    WHERE place_of(night) < place_of($night) ORDER BY place_of(night) DESC LIMIT $nights
),
learnt AS (SELECT f.relation, f.object_id FROM facts f JOIN past ON f.known_from_night = past.night)
SELECT 'nights' AS kind, '' AS key, count(*) AS num FROM past
UNION ALL SELECT 'all', '', count(*) FROM learnt
UNION ALL SELECT 'property', relation, count(*) FROM learnt GROUP BY relation
UNION ALL SELECT 'object', object_id, count(*) FROM learnt GROUP BY object_id
"""
_KNOWN_SUBJECTS = """
SELECT object_id AS object, count(DISTINCT subject_id) AS num FROM facts
WHERE known_to_night IS NULL AND object_id IN (SELECT CAST(object AS VARCHAR) FROM night_objects) GROUP BY ALL
"""
_KNOWN_WORDS = """
WITH words AS (SELECT DISTINCT CAST(word AS VARCHAR) AS word FROM night_words),
labels AS (SELECT DISTINCT subject AS label FROM facts UNION SELECT DISTINCT object FROM facts)
SELECT word FROM words WHERE EXISTS (SELECT 1 FROM labels WHERE contains(' ' || label || ' ', word))
"""


def labels_with_look(wh: Reader, looks: Sequence[str]) -> list[dict[str, str]]:
    """`look`, `entity` and `label` of every label or alias of the store that reads, in lower case, as one of the looks."""
    return wh.rows(_SAME_LOOK, None, night_looks=pd.DataFrame({"look": list(looks)}, dtype="string"))


def learnt_counts(wh: Reader, night: str, nights: int) -> list[dict[str, Any]]:
    """Facts that the last `nights` nights before `night` brought, counted.

    Returns:
        `kind`, `key` and `num`: of kind `nights` the number of nights that brought any, of kind `all` their facts
        (both under the key ''), of kind `property` and `object` the facts of each property and each object id.
    """
    return wh.rows(_HISTORY, {"night": night, "nights": nights})


def subjects_by_object(wh: Reader, objects: Collection[str]) -> dict[str, int]:
    """How many subjects each of these object ids is held for now; one that is held for none is left out."""
    frame = pd.DataFrame({"object": list(objects)}, dtype="string")
    return {row["object"]: row["num"] for row in wh.rows(_KNOWN_SUBJECTS, None, night_objects=frame)}


def words_in_labels(wh: Reader, words: Collection[str]) -> set[str]:
    """Those of the words that stand in a label of the store."""
    frame = pd.DataFrame({"word": list(words)}, dtype="string")
    return {row["word"] for row in wh.rows(_KNOWN_WORDS, None, night_words=frame)}
