"""What an entity document says, in plain parts: values, snaks, statements, entities, and what was set aside and why."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

Rank = Literal["preferred", "normal", "deprecated"]
SnakType = Literal["value", "somevalue", "novalue"]
ValueType = Literal["item", "property", "entity", "string", "text", "time", "quantity", "coordinate", "other"]
SetAsideReason = Literal[
    "too_large",
    "undecodable",
    "malformed_entity",
    "not_an_entity",
    "unsupported_entity",
    "missing",
    "redirect",
    "several_entities",
]
LeftOutReason = Literal[
    "no_statement_id",
    "duplicate_statement_id",
    "malformed_statement",
    "unknown_rank",
    "malformed_qualifier",
    "long_label",
    "malformed_label",
]

START, END = "P580", "P582"
#: Wikibase's numbers for how exact a time is: 11 a day, 10 a month, 9 a year, 8 a decade, 7 a century, 6 a millennium.
YEAR_PRECISION, MONTH_PRECISION = 9, 10


@dataclass(frozen=True, slots=True)
class EntityValue:
    """A value in normal form: two equal values have equal `type` and `parts`, however a serialisation wrote them.

    `id` is that of an item, property or other entity ("" else); `text` is the value as one line of text.
    """

    type: ValueType
    parts: tuple[str, ...]
    id: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Snak:
    """A property with a value, or with "some value" (there is one, unknown) or "no value". `value` is None for those two."""

    pid: str
    snaktype: SnakType
    datatype: str = ""
    value: EntityValue | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement; `key` compares across revisions. `references` holds one digest for each reference."""

    id: str
    snak: Snak
    rank: Rank = "normal"
    qualifiers: tuple[Snak, ...] = ()
    references: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The id for comparison: old items write their own Q-id in it with a small q."""
        return self.id.casefold()

    @property
    def pid(self) -> str:
        return self.snak.pid

    @property
    def valid_from(self) -> datetime | None:
        """The earliest start (P580) as a moment, None where none is given or no calendar of ours has it."""
        return min(self._moments(START), default=None)

    @property
    def valid_to(self) -> datetime | None:
        """The latest end (P582) as a moment; None also where the end is unknown: ask `has_ended`."""
        return max(self._moments(END), default=None)

    def has_ended(self, now: datetime) -> bool:
        """Whether the statement is over: an end in the past, before our calendar, or at an unknown time.

        Rank says nothing about it: real documents hold preferred statements that ended.
        """
        ends = [snak for snak in self.qualifiers if snak.pid == END and snak.snaktype != "novalue"]
        times = [date_of(written_time(snak.value)) for snak in ends if snak.value is not None and snak.value.type == "time"]
        today = (now.astimezone(UTC).year, now.astimezone(UTC).month, now.astimezone(UTC).day)
        known = [time for time in times if time is not None]
        return max(known) <= today if known else any(snak.snaktype == "somevalue" for snak in ends)

    def _moments(self, pid: str) -> list[datetime]:
        values = [snak.value for snak in self.qualifiers if snak.pid == pid]
        found = [moment_of(written_time(value)) for value in values if value is not None and value.type == "time"]
        return [moment for moment in found if moment is not None]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A part of a readable entity that could not be read: where, why (for machines) and a sentence for people."""

    place: str
    reason: LeftOutReason
    sentence: str


@dataclass(frozen=True, slots=True)
class EntityDocument:
    """An item or a property document.

    `label` is English ("" where there is none; the entity still counts). `revision` and `modified` are None where the
    document does not say. `redirected_from` is the id that was asked for, where that is another one.
    """

    id: str
    type: Literal["item", "property"]
    label: str = ""
    description: str = ""
    aliases: tuple[str, ...] = ()
    datatype: str = ""
    revision: int | None = None
    modified: datetime | None = None
    statements: tuple[Statement, ...] = ()
    redirected_from: str = ""
    left_out: tuple[LeftOut, ...] = ()

    def of(self, pid: str) -> tuple[Statement, ...]:
        """The statements of one property, in the document's order."""
        return tuple(statement for statement in self.statements if statement.pid == pid)


@dataclass(frozen=True, slots=True)
class SetAside:
    """A document that gives no entity, with the reason for machines and a sentence for people.

    `entity_id` is as far as it is known; `target` is where a redirect points.
    """

    entity_id: str
    reason: SetAsideReason
    sentence: str
    target: str = ""


def current(statements: tuple[Statement, ...], now: datetime) -> tuple[Statement, ...]:
    """The statements of one property that hold now: begun, not ended, not deprecated, and of the best rank among those.

    Times are looked at before the rank, because preferred statements that ended are common.
    """
    valid = [
        s
        for s in statements
        if s.rank != "deprecated" and not s.has_ended(now) and (s.valid_from is None or s.valid_from <= now)
    ]
    return tuple([s for s in valid if s.rank == "preferred"] or valid)


def written_time(value: EntityValue) -> str:
    """A time value as records write it: with its precision behind a slash where that is coarser than a year."""
    time, precision = value.parts[0], value.parts[1]
    return f"{time}/{precision}" if int(precision) < YEAR_PRECISION else time


def date_of(time: str) -> tuple[int, int, int] | None:
    """(year, month, day) of the first day that a Wikibase time can mean; years may be negative.

    A zero month or day is an unknown one. A precision may stand behind a slash (`+2100-00-00T00:00:00Z/7`): the century
    that ends with 2100 begins in 2001, the decade of 2015 in 2010.
    """
    time, _, precision = time.strip().partition("/")
    sign, rest = (-1, time[1:]) if time.startswith("-") else (1, time.removeprefix("+"))
    fields = rest.partition("T")[0].partition(" ")[0].split("-")
    if len(fields) != 3 or not all(field.isascii() and field.isdigit() and len(field) <= 16 for field in fields):
        return None
    year, month, day = (int(field) for field in fields)
    year *= sign
    if not (precision.isascii() and precision.isdigit() and len(precision) <= 2) or int(precision) > MONTH_PRECISION:
        return year, max(month, 1), max(day, 1)
    if int(precision) >= YEAR_PRECISION:
        return year, max(month, 1) if int(precision) == MONTH_PRECISION else 1, 1
    return _first_year(year, int(precision)), 1, 1


def _first_year(year: int, precision: int) -> int:
    """Decades are counted from their round year, centuries and longer spans up to it, and before Christ the other way."""
    span = 10 ** (YEAR_PRECISION - precision)
    if precision == YEAR_PRECISION - 1:
        return year // span * span
    return (year - 1) // span * span + 1 if year > 0 else year // span * span


def moment_of(time: str) -> datetime | None:
    """A Wikibase time as a moment in UTC; None outside the years 1 to 9999. A day that no calendar has is the month's first."""
    date = date_of(time)
    if date is None or not 1 <= date[0] <= 9999:
        return None
    for day in (date, (date[0], date[1], 1), (date[0], 1, 1)):
        try:
            return datetime(*day, tzinfo=UTC)
        except ValueError:
            continue
    return None
