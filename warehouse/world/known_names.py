"""What names mean to the store: the property behind a relation's name, and the entity behind a label without an id."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from functools import cache

import pandas as pd

from warehouse.database.connection import Reader
from warehouse.keys import clean_text, entity_id, folded, is_property_id, relation_words
from warehouse.reference import HERE

NAMES_FILE = HERE / "property_names.csv"
Meanings = Mapping[str, frozenset[str]]

_PROPERTY_NAMES = """
SELECT pid, label AS name, 0 AS place FROM properties
UNION SELECT DISTINCT relation, relation, 0 FROM templates
UNION SELECT DISTINCT relation, phrase, 1 FROM templates WHERE phrase <> ''
UNION SELECT entity_id, alias, 1 FROM aliases WHERE regexp_full_match(entity_id, 'P[0-9]+')
"""
# Labels first: an alias counts only where no entity has the name as its label.
_ENTITIES = """
WITH asked AS (SELECT DISTINCT CAST(look AS VARCHAR) AS look FROM asked_looks),
known AS (
    SELECT subject_id AS id, subject AS label, 0 AS place FROM facts UNION SELECT object_id, object, 0 FROM facts
    UNION SELECT subject_id, subject, 0 FROM edit_requests UNION SELECT target_new_id, target_new, 0 FROM edit_requests
    UNION SELECT entity_id, alias, 1 FROM aliases
)
SELECT DISTINCT id, label, place FROM known JOIN asked ON lower(nfc_normalize(label)) = look WHERE id <> ''
"""
_OBJECTS = """
SELECT DISTINCT f.object_id FROM facts f
JOIN (SELECT DISTINCT CAST(id AS VARCHAR) AS id FROM asked_ids) a ON a.id = f.object_id WHERE f.relation = $relation
"""


@cache
def _shipped() -> tuple[tuple[str, str], ...]:
    with NAMES_FILE.open(encoding="utf-8", newline="") as handle:
        return tuple((row["pid"], row["name"]) for row in csv.DictReader(handle))


def relation_names(store: Reader) -> Meanings:
    """Properties by `relation_words` of their labels, phrases and aliases; a label goes before every alias."""
    places: dict[int, dict[str, set[str]]] = {0: defaultdict(set), 1: defaultdict(set)}
    rows = [(row["pid"], row["name"], row["place"]) for row in store.rows(_PROPERTY_NAMES)]
    known = {pid for pid, _, _ in rows}
    for pid, name, place in [*rows, *((pid, name, 1) for pid, name in _shipped() if pid in known)]:
        places[place][relation_words(name)].add(pid)
    return {words: frozenset(places[0].get(words) or places[1][words]) for words in {*places[0], *places[1]}}


def relations_of(text: str, names: Meanings) -> frozenset[str]:
    """The properties that a request may mean: one where it is named, none where nobody knows the name."""
    plain = entity_id(clean_text(text))
    return frozenset({plain}) if is_property_id(plain) else names.get(relation_words(plain), frozenset())


def entities_named(store: Reader, labels: Iterable[str], tonight: Iterable[tuple[str, str]] = ()) -> Meanings:
    """Ids by `folded` of each asked label: of facts, requests and aliases of the store, and of tonight's own records.

    Args:
        tonight: (id, label) of what the night itself names by both.
    """
    wanted = {folded(label) for label in labels} - {""}
    if not wanted:
        return {}
    # What SQL can fold is less than what a key folds, so both forms are asked for and the answer is compared again.
    looks = sorted({look for label in labels for look in (folded(label), clean_text(label).lower())})
    found: dict[int, dict[str, set[str]]] = {0: defaultdict(set), 1: defaultdict(set)}
    for row in store.rows(_ENTITIES, None, asked_looks=pd.DataFrame({"look": looks}, dtype="str")):
        found[row["place"]][folded(row["label"])].add(row["id"])
    for known_id, label in tonight:
        if known_id and (key := folded(label)) in wanted:
            found[0][key].add(known_id)
    return {key: frozenset(found[0].get(key) or found[1].get(key, ())) for key in wanted}


def objects_of(store: Reader, relation: str, ids: Collection[str]) -> frozenset[str]:
    """Those of some ids that are values of a relation in the store."""
    asked = pd.DataFrame({"id": sorted(ids)}, dtype="str")
    return frozenset(row["object_id"] for row in store.rows(_OBJECTS, {"relation": relation}, asked_ids=asked))
