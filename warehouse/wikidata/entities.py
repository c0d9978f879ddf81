"""Entity documents of Wikibase: read them, compare two revisions, write each change as an update record.

    entity = parse_entity(document)                      # an Entity, or SetAside with a reason; never an exception
    for change in diff_statements(before, after):
        raw = change_record(change, after, record_id, night, Provenance(received_at=now), labels)

`parse_entities` reads an answer for many ids. What survives and what is set aside is listed in docs/ENTITIES.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

from pydantic_core import from_json

from warehouse.digests import digest_of
from warehouse.keys import clean_text, entity_id
from warehouse.sources.base import parse_time
from warehouse.wikidata.entity_diff import (
    Provenance,
    StatementChange,
    TermChange,
    change_record,
    diff_statements,
    diff_terms,
    record_id_of,
)
from warehouse.wikidata.entity_model import (
    EntityDocument,
    EntityValue,
    LeftOut,
    LeftOutReason,
    Rank,
    SetAside,
    SetAsideReason,
    Snak,
    Statement,
    current,
    date_of,
    moment_of,
)
from warehouse.wikidata.entity_values import ENTITY_ID, is_text, read_snak

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "MAX_LABEL_CHARS",
    "MAX_STATEMENTS",
    "EntityDocument",
    "EntityValue",
    "LeftOut",
    "Provenance",
    "SetAside",
    "Snak",
    "Statement",
    "StatementChange",
    "TermChange",
    "change_record",
    "current",
    "date_of",
    "diff_statements",
    "diff_terms",
    "moment_of",
    "parse_entities",
    "parse_entity",
    "record_id_of",
]

Document = bytes | str | Mapping[str, Any]
#: Wikidata refuses to save an item over some 4 MB; an answer for fifty ids is read with a larger limit.
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
MAX_STATEMENTS = 50_000
#: Wikibase's own limit for labels, descriptions and aliases.
MAX_LABEL_CHARS = 250
MAX_ALIASES = 200
#: A document with more unreadable parts than this is broken as a whole.
MAX_LEFT_OUT = 1000
MAX_STATEMENT_ID_CHARS = 100
#: English, then the label for all languages, then what English speakers elsewhere wrote.
LANGUAGES = ("en", "mul", "en-gb", "en-us", "en-ca")
_RANKS = ("preferred", "normal", "deprecated")


def parse_entity(document: Document, asked: str = "", *, max_bytes: int = MAX_DOCUMENT_BYTES) -> EntityDocument | SetAside:
    """Read a document about one entity. Never raises.

    Args:
        document: JSON as bytes or text, or decoded already: `{"entities": {ID: {...}}}`, as Special:EntityData and
            `wbgetentities` answer, or the entity alone, as in a dump.
        asked: the id that was asked for. Of several entities it picks the one; where the answer is about another
            one, that is a redirect, and `redirected_from` says so.
        max_bytes: a longer document is not decoded.
    """
    found = parse_entities(document, max_bytes=max_bytes)
    if not found:
        return _aside(asked, "not_an_entity", "the answer holds no entity")
    named = [one for one in found if asked and asked in (_id_of(one), getattr(one, "redirected_from", ""))]
    entity = next(iter(named or found))
    if len(found) > 1 and not named:
        ids = ", ".join(_id_of(one) for one in found[:3])
        return _aside(
            asked, "several_entities", f"the document holds {len(found)} entities ({ids} ...); say which is asked for"
        )
    if isinstance(entity, EntityDocument) and asked and asked not in (entity.id, entity.redirected_from):
        return replace(entity, redirected_from=asked)
    return entity


def parse_entities(document: Document, *, max_bytes: int = MAX_DOCUMENT_BYTES) -> tuple[EntityDocument | SetAside, ...]:
    """Read a document about any number of entities, in its order; a document that is none gives one `SetAside`."""
    decoded = _decode(document, max_bytes)
    if isinstance(decoded, SetAside):
        return (decoded,)
    if "entities" not in decoded:
        return (_read("", decoded),)
    entities = decoded["entities"]
    if isinstance(entities, Mapping):
        return tuple(_read(key, raw) for key, raw in entities.items())
    if isinstance(entities, list):
        return tuple(_read("", raw) for raw in entities)
    return (_aside("", "malformed_entity", f"'entities' is a {type(entities).__name__}; expected an object"),)


def _decode(document: Document, max_bytes: int) -> Mapping[str, Any] | SetAside:
    if isinstance(document, Mapping):
        return document
    data = document.encode("utf-8", "surrogatepass") if isinstance(document, str) else document
    if len(data) > max_bytes:
        return _aside("", "too_large", f"it has {len(data)} bytes; the limit is {max_bytes}")
    try:
        # Not `json.loads`: it meets deep nesting with RecursionError.
        value = from_json(data, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        return _aside("", "undecodable", f"it is not JSON: {error}")
    if not isinstance(value, dict):
        return _aside("", "malformed_entity", f"it is a {type(value).__name__}; expected a JSON object")
    return value


def _read(key: object, raw: object) -> EntityDocument | SetAside:
    name = key.upper() if isinstance(key, str) and ENTITY_ID.fullmatch(key.upper()) else ""
    if not isinstance(raw, Mapping):
        return _aside(name, "malformed_entity", f"it is a {type(raw).__name__}; expected a JSON object")
    if raw.get("missing", False) is not False:
        return _aside(_own_id(raw) or name, "missing", "Wikidata has no such entity: it never was, or it was deleted")
    if isinstance(raw.get("redirect"), str):
        target = _id(raw["redirect"])
        source = _id(raw.get("entity")) or _own_id(raw) or name
        return SetAside(source, "redirect", f"Entity {source or '?'} is a redirect to {target or '?'}; read that one.", target)
    if "error" in raw or "mainsnak" in raw:
        return _aside(name, "not_an_entity", _not_an_entity(raw))
    claims = raw["claims"] if "claims" in raw else raw.get("statements")
    rows = list(_rows(claims))
    entity_id = _own_id(raw) or name or _id_of_statements(rows)
    if not entity_id:
        return _aside("", "not_an_entity", "it has no id, neither of its own nor in a statement")
    if entity_id[0] not in "QP":
        kind = {"L": "a lexeme, form or sense", "M": "a media file", "E": "a schema"}[entity_id[0]]
        return _aside(entity_id, "unsupported_entity", f"it is {kind}; facts are read from items and properties")
    if len(rows) > MAX_STATEMENTS:
        return _aside(entity_id, "too_large", f"it has {len(rows)} statements; the limit is {MAX_STATEMENTS}")
    return _entity(entity_id, name, raw, rows)


def _entity(entity_id: str, key: str, raw: Mapping[str, Any], rows: list[Any]) -> EntityDocument | SetAside:
    statements, left_out = _statements(rows)
    if len(left_out) > MAX_LEFT_OUT:
        return _aside(entity_id, "malformed_entity", f"over {MAX_LEFT_OUT} of its statements and qualifiers cannot be read")
    label, wrong = _term(raw.get("labels"), "label")
    description, wrong_too = _term(raw.get("descriptions"), "description")
    left_out += [left for left in (wrong, wrong_too) if left is not None]
    redirects = raw.get("redirects")
    origin = _id(redirects.get("from")) if isinstance(redirects, Mapping) else key
    revision, datatype = raw.get("lastrevid"), raw.get("datatype")
    has_revision = isinstance(revision, int) and not isinstance(revision, bool) and 0 <= revision < 2**63
    return EntityDocument(
        id=entity_id,
        type="item" if entity_id[0] == "Q" else "property",
        label=label,
        description=description,
        aliases=_aliases(raw.get("aliases")),
        datatype=datatype if isinstance(datatype, str) and len(datatype) <= 100 and is_text(datatype) else "",
        revision=revision if has_revision else None,
        modified=_modified(raw.get("modified")),
        statements=statements,
        redirected_from=origin if origin != entity_id else "",
        left_out=tuple(left_out),
    )


# ---------------------------------------------------------------- statements


def _rows(claims: Any) -> Iterator[Any]:
    """The raw statements of `claims`: a map of lists; an empty map may have become an array, and lists may be flat."""
    groups = claims.values() if isinstance(claims, Mapping) else claims if isinstance(claims, list) else ()
    for group in groups:
        if isinstance(group, list):
            yield from group
        else:
            yield group


def _statements(rows: list[Any]) -> tuple[tuple[Statement, ...], list[LeftOut]]:
    found: dict[str, Statement] = {}
    left_out: list[LeftOut] = []
    for i, row in enumerate(rows):
        if len(left_out) > MAX_LEFT_OUT:
            break
        statement = _statement(row, f"statement {i + 1}", left_out)
        if statement is None:
            continue
        if statement.key in found:
            left_out.append(_left(statement.id, "duplicate_statement_id", "another statement has the same id"))
            continue
        found[statement.key] = statement
    return tuple(found.values()), left_out


def _statement(raw: Any, place: str, left_out: list[LeftOut]) -> Statement | None:
    if not isinstance(raw, Mapping):
        left_out.append(_left(place, "malformed_statement", f"it is a {type(raw).__name__}; expected an object"))
        return None
    statement_id = _statement_id(raw)
    if not statement_id:
        left_out.append(_left(place, "no_statement_id", "it has no id by which revisions could be compared"))
        return None
    snak = read_snak(raw.get("mainsnak"))
    if snak is None:
        left_out.append(_left(statement_id, "malformed_statement", "its main snak names no property or has no known type"))
        return None
    rank = raw.get("rank", "normal")
    if rank not in _RANKS:
        left_out.append(_left(statement_id, "unknown_rank", f"its rank is {str(rank)[:40]!r}; known: {', '.join(_RANKS)}"))
        return None
    return Statement(
        statement_id,
        snak,
        cast(Rank, rank),
        _qualifiers(raw.get("qualifiers"), statement_id, left_out),
        _references(raw.get("references")),
    )


def _statement_id(raw: Mapping[str, Any]) -> str:
    given = raw.get("id")
    if not isinstance(given, str) or len(given) > MAX_STATEMENT_ID_CHARS:
        return ""
    return given if given.isascii() and given.isprintable() else ""


def _qualifiers(raw: Any, place: str, left_out: list[LeftOut]) -> tuple[Snak, ...]:
    found = []
    for row in _rows(raw):
        snak = read_snak(row)
        if snak is None:
            left_out.append(_left(f"{place} qualifier", "malformed_qualifier", "it names no property or has no known type"))
        else:
            found.append(snak)
    return tuple(found)


def _references(raw: Any) -> tuple[str, ...]:
    """One digest a reference: its own hash where it has one, else of its content."""
    return tuple(_reference(row) for row in raw) if isinstance(raw, list) else ()


def _reference(row: Any) -> str:
    given = row.get("hash") if isinstance(row, Mapping) else None
    if isinstance(given, str) and 0 < len(given) <= 64 and given.isascii():
        return given
    try:
        return digest_of(row)
    except (ValueError, TypeError, RecursionError):
        # Only a document that was not read from JSON can hold such a value.
        return ""


# ---------------------------------------------------------------- terms and ids


def _term(raw: Any, what: str) -> tuple[str, LeftOut | None]:
    """The first usable text of LANGUAGES, and what was wrong with one before it."""
    wrong = None
    for language in LANGUAGES:
        text = _value(_in(raw, language))
        if text is None:
            continue
        if len(text) <= MAX_LABEL_CHARS and is_text(text):
            if plain := clean_text(text):
                return plain, wrong
        elif len(text) > MAX_LABEL_CHARS:
            wrong = _left(f"{what} {language}", "long_label", f"it has {len(text)} characters; the limit is {MAX_LABEL_CHARS}")
        else:
            wrong = _left(f"{what} {language}", "malformed_label", "it holds half of a surrogate pair, which is no text")
    return "", wrong


def _aliases(raw: Any) -> tuple[str, ...]:
    texts = []
    for language in ("en", "mul"):
        entries = _in(raw, language)
        for entry in entries if isinstance(entries, list) else ():
            text = _value(entry)
            if text is not None and len(text) <= MAX_LABEL_CHARS and is_text(text) and (plain := clean_text(text)):
                texts.append(plain)
    return tuple(dict.fromkeys(texts))[:MAX_ALIASES]


def _in(raw: Any, language: str) -> Any:
    """The entry of a language: of a map, or of the list that old answers give."""
    if isinstance(raw, Mapping):
        return raw.get(language)
    if isinstance(raw, list):
        return next((e for e in raw if isinstance(e, Mapping) and e.get("language") == language), None)
    return None


def _value(entry: Any) -> str | None:
    text = entry.get("value") if isinstance(entry, Mapping) else entry
    return text if isinstance(text, str) else None


def _modified(value: Any) -> datetime | None:
    # One form only: dates of other forms differ in what `fromisoformat` of each Python takes.
    return parse_time(value) if isinstance(value, str) and len(value) <= 40 else None


def _id(value: Any) -> str:
    return found if isinstance(value, str) and ENTITY_ID.fullmatch(found := entity_id(value)) else ""


def _own_id(raw: Mapping[str, Any]) -> str:
    # A title may have its namespace before it ("Property:P31").
    title = raw.get("title")
    return _id(raw.get("id")) or (_id(title.rpartition(":")[2]) if isinstance(title, str) else "")


def _id_of_statements(rows: list[Any]) -> str:
    """The one entity that all statement ids name, for a document that holds statements alone; "" where they differ."""
    owners = {_statement_id(row).partition("$")[0].upper() for row in rows if isinstance(row, Mapping)}
    return _id(owners.pop()) if len(owners) == 1 else ""


def _id_of(one: EntityDocument | SetAside) -> str:
    return one.id if isinstance(one, EntityDocument) else one.entity_id


def _not_an_entity(raw: Mapping[str, Any]) -> str:
    if "mainsnak" in raw:
        return "it is a statement alone, outside its entity"
    error = raw["error"]
    code = error.get("code") if isinstance(error, Mapping) else error
    return f"it is an error message of the service: {str(code)[:80]!r}"


def _aside(entity_id: str, reason: SetAsideReason, what: str) -> SetAside:
    return SetAside(entity_id, reason, f"{entity_id or 'A document'} was set aside: {what}.")


def _left(place: str, reason: LeftOutReason, what: str) -> LeftOut:
    return LeftOut(place, reason, f"{place} was left out: {what}.")
