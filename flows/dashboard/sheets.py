"""Tables of the pages: columns over records, and the same rows as CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

#: `long`: text that wraps; `digest`: its beginning, the whole on pointing at it; `night`: '' is the base.
Kind = Literal["text", "long", "code", "digest", "night", "number", "score", "time", "yes"]
#: So much of a digest is shown; an edit's id, of twice that, is whole.
DIGITS = 12
#: Beginnings of cells that a spreadsheet would run as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Column:
    """A column of a page's table; `link` gives the address that a row's cell leads to, or None."""

    field: str
    title: str
    kind: Kind = "text"
    link: Callable[[Any], str | None] | None = None


@dataclass(frozen=True)
class Sheet:
    """A table with a name in its page's address.

    Attributes:
        total: rows there are in all, where `rows` are those of one page; None: these are all.
        empty: what stands where there is no row.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[BaseModel]
    total: int | None = None
    empty: str = "nothing"


def value_of(row: BaseModel, field: str) -> Any:
    """A row's value; `scores.SR` is the entry SR of its field `scores`."""
    name, _, key = field.partition(".")
    value = getattr(row, name)
    return value.get(key) if key and isinstance(value, Mapping) else value


def shown(value: Any, kind: Kind) -> str:
    """A cell's text; what is not there is a dash."""
    if kind == "night" and value == "":
        return "base"
    if value is None or value == "":
        return "–"
    if kind == "digest":
        return str(value)[:DIGITS] if len(str(value)) > 2 * DIGITS else str(value)
    if kind == "yes":
        return "yes" if value else "no"
    if kind == "time" and isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if kind == "score":
        return score_text(value)
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
    if kind == "number" and isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def score_text(value: Any) -> str:
    """`0.952 (0.773 to 0.992)` of a number or of (value, low, high)."""
    middle, low, high = value if isinstance(value, (tuple, list)) else (value, None, None)
    if middle is None:
        return "–"
    return f"{middle:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")


def as_csv(rows: Sequence[BaseModel]) -> str:
    """All fields of the rows with a header; a text that a spreadsheet would run gets a quote before it."""
    out = io.StringIO()
    plain = [row.model_dump(mode="json") for row in rows]
    writer = csv.writer(out)
    if plain:
        writer.writerow(plain[0])
    for row in plain:
        writer.writerow([_safe(value) for value in row.values()])
    return out.getvalue()


def _safe(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
