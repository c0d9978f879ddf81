"""What is known of properties: the shipped table, and a user's own file or Wikidata property documents over it.

A property document (the entity JSON of `P19`, say) states constraints in `P2302`: single value, inverse, symmetric,
subject and value types, one of. They are read into the same records as the rows of `properties.csv`. What a document
does not say stays as it was; a deprecated or merely suggested constraint says nothing.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from warehouse.database.connection import Warehouse
from warehouse.digests import digest_of, sha256_file
from warehouse.errors import SourceError
from warehouse.keys import clean_text, entity_id
from warehouse.records import Record
from warehouse.reference import HERE
from warehouse.wikidata.entity_values import PROPERTY_ID, read_snak

SHIPPED = HERE / "properties.csv"
CONSTRAINT = "P2302"
SINGLE_VALUE, SINGLE_BEST_VALUE = "Q19474404", "Q52060874"
INVERSE, SYMMETRIC = "Q21510855", "Q21510862"
SUBJECT_TYPE, VALUE_TYPE = "Q21503250", "Q21510865"
ONE_OF, ALLOWED_QUALIFIERS = "Q21510859", "Q21510851"
#: Qualifiers that hold a constraint's parameters: its property, its classes, its items.
PROPERTY_PARAMETER, CLASS_PARAMETER, ITEM_PARAMETER = "P2306", "P2308", "P2305"
#: Status of a constraint that Wikidata itself only suggests: no reason to turn a change away.
STATUS_PARAMETER, SUGGESTION = "P2316", "Q62026391"
#: Words of `properties.csv` for classes that constraints name often; another class stands as its id.
CLASS_WORDS = {
    "Q5": "human", "Q215627": "human", "Q95074": "character", "Q43229": "organization", "Q4830453": "organization",
    "Q17334923": "place", "Q618123": "place", "Q2221906": "place", "Q27096213": "place", "Q6256": "country",
    "Q3624078": "country", "Q515": "city", "Q486972": "city", "Q56061": "territory", "Q5107": "continent",
    "Q17537576": "work", "Q386724": "work", "Q838948": "work", "Q7725634": "work", "Q2431196": "work", "Q11424": "film",
    "Q7397": "software", "Q34770": "language", "Q33742": "language", "Q12737077": "occupation", "Q28640": "occupation",
    "Q4164871": "position", "Q618779": "award", "Q483394": "genre", "Q2385804": "educational institution",
    "Q12973014": "sports team", "Q18127": "record label", "Q1616075": "broadcaster", "Q34379": "instrument",
    "Q355567": "watercourse", "Q15324": "body of water",
}  # fmt: skip
_STATE_KEY = "user_properties"
_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_BOOLS = ("single_in_practice", "symmetric", "temporal")


class PropertyKnowledge(Record):
    """What is said of one property; None: nothing is said. `one_of` empty: any value."""

    pid: str
    label: str | None = None
    cardinality: Literal["single", "multi"] | None = None
    single_in_practice: bool | None = None
    inverse_pid: str | None = None
    symmetric: bool | None = None
    value_type: str | None = None
    subject_type: str | None = None
    temporal: bool | None = None
    one_of: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    def over(self, other: PropertyKnowledge) -> PropertyKnowledge:
        """This knowledge laid over another's: what it says holds, what it does not say is the other's."""
        said = {name: value for name, value in self if value is not None and value != ()}
        return other.model_copy(update=said)


# ---------------------------------------------------------------- reading


def parse_property(document: Any) -> PropertyKnowledge:
    """The constraints of one property from its entity JSON, bare or as `Special:EntityData` wraps it.

    Raises:
        SourceError: it is no property document.
    """
    entity = _entity(document)
    pid = entity["id"]
    said: dict[str, Any] = {"pid": pid, "label": _label(entity), "aliases": _aliases(entity)}
    for kind, parameters in _constraints(entity):
        if kind in (SINGLE_VALUE, SINGLE_BEST_VALUE):
            said |= {"cardinality": "single", "single_in_practice": True}
        elif kind == SYMMETRIC:
            said |= {"symmetric": True, "inverse_pid": pid}
        elif kind == INVERSE and parameters[PROPERTY_PARAMETER]:
            said["inverse_pid"] = "|".join(parameters[PROPERTY_PARAMETER])
        elif kind in (SUBJECT_TYPE, VALUE_TYPE) and parameters[CLASS_PARAMETER]:
            words = [CLASS_WORDS.get(class_id, class_id) for class_id in parameters[CLASS_PARAMETER]]
            said["subject_type" if kind == SUBJECT_TYPE else "value_type"] = "/".join(dict.fromkeys(words))
        elif kind == ONE_OF:
            said["one_of"] = tuple(dict.fromkeys((*said.get("one_of", ()), *parameters[ITEM_PARAMETER])))
        elif kind == ALLOWED_QUALIFIERS and {"P580", "P582"} & set(parameters[PROPERTY_PARAMETER]):
            said["temporal"] = True
    return PropertyKnowledge(**said)


def _entity(document: Any) -> Mapping[str, Any]:
    found = document
    if isinstance(document, dict) and isinstance(document.get("entities"), dict):
        found = next(iter(document["entities"].values()), None)
    pid = found.get("id") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(pid, str) or not PROPERTY_ID.fullmatch(pid):
        raise SourceError("no property document: it has no id like P19; give the entity JSON of a property")
    return found


def _label(entity: Mapping[str, Any]) -> str | None:
    labels = entity.get("labels")
    english = labels.get("en") if isinstance(labels, dict) else None
    text = english.get("value") if isinstance(english, dict) else None
    return text if isinstance(text, str) and text.strip() else None


def _aliases(entity: Mapping[str, Any]) -> tuple[str, ...]:
    aliases = entity.get("aliases")
    english = aliases.get("en") if isinstance(aliases, dict) else None
    texts = [entry.get("value") for entry in english if isinstance(entry, dict)] if isinstance(english, list) else []
    return tuple(dict.fromkeys(clean_text(text) for text in texts if isinstance(text, str) and text.strip()))


def _constraints(entity: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """(constraint type, ids by parameter property) of every constraint that is in force."""
    # PHP writes an empty map as an empty array.
    claims = entity.get("claims")
    statements = claims.get(CONSTRAINT) if isinstance(claims, dict) else None
    for statement in statements if isinstance(statements, list) else ():
        if not isinstance(statement, dict) or statement.get("rank") == "deprecated":
            continue
        snak = read_snak(statement.get("mainsnak"))
        if snak is None or snak.value is None or not snak.value.id:
            continue
        names = (PROPERTY_PARAMETER, CLASS_PARAMETER, ITEM_PARAMETER, STATUS_PARAMETER)
        parameters: dict[str, list[str]] = {name: [] for name in names}
        qualifiers = statement.get("qualifiers")
        for pid, snaks in qualifiers.items() if isinstance(qualifiers, dict) else ():
            for value in map(read_snak, snaks if isinstance(snaks, list) else ()):
                if pid in parameters and value is not None and value.value is not None and value.value.id:
                    parameters[pid].append(value.value.id)
        if SUGGESTION not in parameters[STATUS_PARAMETER]:
            yield snak.value.id, parameters


def read_properties(path: Path) -> dict[str, PropertyKnowledge]:
    """Knowledge from a CSV file (columns of `properties.csv`, and `one_of`), a property document, or a folder of both.

    In a folder, files are laid over each other in the order of their names, tables after documents.

    Raises:
        SourceError: the path is missing, or a file is neither; the message names the file and the line.
    """
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder; set `properties` to a .csv, a .json, or a folder of them")
    files = [path] if path.is_file() else [*sorted(path.glob("*.json")), *sorted(path.glob("*.csv"))]
    found: dict[str, PropertyKnowledge] = {}
    for file in files:
        for said in _read_table(file) if file.suffix == ".csv" else [_read_document(file)]:
            found[said.pid] = said.over(found[said.pid]) if said.pid in found else said
    return found


def _read_document(path: Path) -> PropertyKnowledge:
    try:
        return parse_property(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, SourceError) as error:
        raise SourceError(f"{path}: {error}") from error


def _read_table(path: Path) -> list[PropertyKnowledge]:
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return [_row(path, number, row) for number, row in enumerate(rows, 2)]


def _written(name: str, text: str) -> Any:
    """A cell: ids in their one form, lists parted by `|`."""
    if name in ("one_of", "aliases"):
        return tuple(clean_text(part) if name == "aliases" else entity_id(part) for part in text.split("|"))
    if name in ("pid", "inverse_pid"):
        return "|".join(entity_id(part) for part in text.split("|"))
    return text


def _row(path: Path, number: int, row: Mapping[str | None, str | None]) -> PropertyKnowledge:
    said: dict[str, Any] = {}
    for name in PropertyKnowledge.model_fields:
        text = (row.get(name) or "").strip()
        if not text:
            continue
        if name in _BOOLS:
            said[name] = _FLAGS.get(text.casefold(), text)
        else:
            said[name] = _written(name, text)
    try:
        known = PropertyKnowledge(**said)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise SourceError(f"{path}, line {number}: column '{problem['loc'][0]}': {problem['msg']}") from error
    if not PROPERTY_ID.fullmatch(known.pid):
        raise SourceError(f"{path}, line {number}: '{known.pid}' is no property id such as P19")
    return known


# ---------------------------------------------------------------- in the warehouse


def put_properties(wh: Warehouse, path: Path | None) -> int:
    """Let the warehouse know properties as the shipped table and a user's file over it say; the same file twice is once.

    Returns:
        The number of properties known now.

    Raises:
        SourceError: as `read_properties`.
    """
    own = {} if path is None else read_properties(path)
    state = f"{digest_of(sorted(own.values(), key=lambda p: p.pid))}:{sha256_file(SHIPPED)}"
    if wh.scalar("SELECT value FROM store_meta WHERE key = ?", [_STATE_KEY]) != state:
        known = read_properties(SHIPPED)
        known |= {pid: said.over(known[pid]) if pid in known else said for pid, said in own.items()}
        with wh.transaction():
            wh.execute("DELETE FROM properties")
            wh.append("properties", [_stored(p) for p in known.values()], "error")
            wh.execute("DELETE FROM property_values")
            wh.append("property_values", [{"pid": p.pid, "object_id": o} for p in known.values() for o in p.one_of])
            # Beside the aliases of entities: what a request may call a property.
            wh.execute("DELETE FROM aliases WHERE regexp_full_match(entity_id, 'P[0-9]+')")
            wh.append("aliases", [{"entity_id": p.pid, "alias": name} for p in known.values() for name in p.aliases])
            wh.execute("DELETE FROM store_meta WHERE key = ?", [_STATE_KEY])
            wh.append("store_meta", [{"key": _STATE_KEY, "value": state}])
    return wh.scalar("SELECT count(*) FROM properties")


def _stored(known: PropertyKnowledge) -> dict[str, Any]:
    """A row of `properties`; a property of which nothing is said may have many values of any kind."""
    return {
        "pid": known.pid,
        "label": known.label or known.pid,
        "cardinality": known.cardinality or "multi",
        "single_in_practice": bool(known.single_in_practice),
        "inverse_pid": known.inverse_pid,
        "symmetric": bool(known.symmetric),
        "value_type": known.value_type,
        "subject_type": known.subject_type,
        "temporal": bool(known.temporal),
    }
