"""Read snaks and their values in every form that Wikibase has written since 2013. Nothing here raises."""

from __future__ import annotations

import re
from typing import Any, cast

from warehouse.digests import digest_of
from warehouse.keys import entity_id
from warehouse.wikidata.entity_model import EntityValue, Snak, SnakType, ValueType

PROPERTY_ID = re.compile(r"P[1-9][0-9]{0,9}")
ENTITY_ID = re.compile(r"(?:[QPLE][1-9][0-9]{0,9}|L[1-9][0-9]{0,9}-[FS][1-9][0-9]{0,9}|M[1-9][0-9]{0,9})")
_AMOUNT = re.compile(r"[+-]?[0-9]{1,126}(?:\.[0-9]{1,126})?")
_TIME = re.compile(r"[+-][0-9]{1,16}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
#: Letter of an id by the `entity-type` of a value that has only a number.
_LETTERS = {"item": "Q", "property": "P", "lexeme": "L", "mediainfo": "M", "entity-schema": "E"}
_TYPES: dict[str, ValueType] = {"Q": "item", "P": "property"}
#: Wikibase takes strings up to 2500 characters; a longer one is broken or hostile.
MAX_STRING_CHARS = 10_000
_SNAK_TYPES = ("value", "somevalue", "novalue")


def read_snak(raw: Any) -> Snak | None:
    """A snak, or None where it names no property or has no known type."""
    if not isinstance(raw, dict):
        return None
    pid, snaktype = raw.get("property"), raw.get("snaktype")
    if not isinstance(pid, str) or snaktype not in _SNAK_TYPES:
        return None
    # Lower-case ids are in documents of 2013.
    pid = entity_id(pid)
    if not PROPERTY_ID.fullmatch(pid):
        return None
    datatype = raw.get("datatype")
    datatype = datatype if isinstance(datatype, str) and len(datatype) <= 100 and is_text(datatype) else ""
    if snaktype != "value":
        return Snak(pid, cast(SnakType, snaktype), datatype)
    return Snak(pid, "value", datatype, read_value(raw.get("datavalue")))


def read_value(raw: Any) -> EntityValue:
    """A data value in normal form.

    A kind that this code does not know, or a value of a broken shape, becomes `other` and is compared by its digest:
    to drop it would make its statement look removed.
    """
    kind = raw.get("type") if isinstance(raw, dict) else None
    if not isinstance(kind, str) or not is_text(kind):
        return _other("unreadable value", raw)
    readers = {
        "wikibase-entityid": _entity_id,
        "monolingualtext": _text,
        "time": _time,
        "quantity": _quantity,
        "globecoordinate": _coordinate,
        "globe-coordinate": _coordinate,
    }
    value, found = raw.get("value"), None
    if kind == "string":
        found = _string(value)
    elif kind in readers and isinstance(value, dict):
        found = readers[kind](value)
    return found or _other(kind[:100], value)


def _string(value: Any) -> EntityValue | None:
    if not isinstance(value, str) or len(value) > MAX_STRING_CHARS or not is_text(value):
        return None
    return EntityValue("string", (value,), text=value)


def _entity_id(value: dict[str, Any]) -> EntityValue | None:
    found = entity_id_of(value)
    if found is None:
        return None
    return EntityValue(_TYPES.get(found[0], "entity"), (found,), id=found, text=found)


def entity_id_of(value: dict[str, Any]) -> str | None:
    """The id of an entity value: its `id`, or the old form with `entity-type` and `numeric-id` only."""
    given = value.get("id")
    if isinstance(given, str):
        given = entity_id(given)
        return given if ENTITY_ID.fullmatch(given) else None
    kind, number = value.get("entity-type"), value.get("numeric-id")
    if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) <= 10:
        number = int(number)
    if not isinstance(kind, str) or kind not in _LETTERS or isinstance(number, bool) or not isinstance(number, int):
        return None
    return f"{_LETTERS[kind]}{number}" if 0 < number < 10**10 else None


def _text(value: dict[str, Any]) -> EntityValue | None:
    text, language = value.get("text"), value.get("language")
    if not isinstance(text, str) or not isinstance(language, str) or len(text) > MAX_STRING_CHARS or len(language) > 50:
        return None
    return EntityValue("text", (language, text), text=text) if is_text(text) and is_text(language) else None


def _time(value: dict[str, Any]) -> EntityValue | None:
    time, precision = value.get("time"), value.get("precision")
    if not isinstance(time, str) or not _TIME.fullmatch(time) or isinstance(precision, bool):
        return None
    if not isinstance(precision, int) or not 0 <= precision <= 14:
        return None
    # Until 2014 years were padded to eleven digits; later serialisations write four.
    sign, (year, rest) = time[0], time[1:].split("-", 1)
    plain = f"{sign}{int(year):04d}-{rest}"
    return EntityValue("time", (plain, str(precision), _concept(value.get("calendarmodel"))), text=plain)


def _quantity(value: dict[str, Any]) -> EntityValue | None:
    # Not the bounds: until 2016 the site made them up (144 was stored as 143 to 145), since then it leaves them out.
    amount, unit = _amount(value.get("amount")), _concept(value.get("unit"))
    return (
        None if amount is None else EntityValue("quantity", (amount, unit), text=amount if unit == "1" else f"{amount} {unit}")
    )


def _amount(value: Any) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value) if abs(value) < 1e15 else ""
    if not isinstance(value, str) or not _AMOUNT.fullmatch(value):
        return None
    return value if value[0] in "+-" else f"+{value}"


def _coordinate(value: dict[str, Any]) -> EntityValue | None:
    degrees = []
    for name, limit in (("latitude", 90), ("longitude", 360)):
        number = value.get(name)
        if isinstance(number, bool) or not isinstance(number, int | float) or not -limit <= number <= limit:
            return None
        # A tenth of a millimetre: PHP printed fewer digits in some years than in others.
        degrees.append(f"{round(number, 9):.9f}")
    return EntityValue("coordinate", (*degrees, _concept(value.get("globe"))), text=f"{degrees[0]}, {degrees[1]}")


def _concept(value: Any) -> str:
    """The Q-id at the end of a concept URI (unit, calendar, globe), "1" for none; other text stays."""
    if not isinstance(value, str) or not value or len(value) > 200 or not is_text(value):
        return "1"
    return value.rpartition("/")[2] or value


def _other(kind: str, value: Any) -> EntityValue:
    try:
        digest = digest_of(value)
    except (ValueError, TypeError, RecursionError):
        # Only a document that was not read from JSON can hold such a value.
        digest = ""
    return EntityValue("other", (kind, digest), text=f"({kind})")


def is_text(text: str) -> bool:
    """Whether the text can be stored: half a surrogate pair, which JSON can escape, is no character."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
