"""What a page is given and what it gives back: the question in the address, and values for its template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.dashboard.addresses import with_query
from flows.dashboard.sheets import Sheet
from warehouse.database.connection import Warehouse
from warehouse.errors import UsageError

ROWS_OF_A_PAGE = 25
ROWS_OF_A_FILE = 10_000


@dataclass(frozen=True)
class Visit:
    """One question to a page.

    Attributes:
        wh: the published copy.
        path: the page's address without its query.
        named: what the address's path names (`lineage`, `night`, ...).
        query: what stands behind its question mark.
        lineages: names of all lineages, in order.
        lineage: the one that the page is about.
        reports: the folder of the nights' reports.
        for_file: more rows than a page has, for CSV and JSON.
    """

    wh: Warehouse
    path: str
    named: Mapping[str, str]
    query: Mapping[str, str]
    lineages: tuple[str, ...]
    lineage: str
    reports: Path
    for_file: bool = False

    def text(self, name: str) -> str:
        return self.query.get(name, "").strip()[:200]

    @property
    def page(self) -> int:
        """The page of a long table, from 1 on.

        Raises:
            UsageError: it is no number of a page.
        """
        given = self.query.get("page", "1")
        if not given.isascii() or not given.isdecimal() or not 1 <= int(given[:9]) <= 10_000_000:
            raise UsageError(f"page {given[:20]!r}: expected a number from 1 on")
        return int(given)

    @property
    def limit(self) -> int:
        return ROWS_OF_A_FILE if self.for_file else ROWS_OF_A_PAGE

    @property
    def offset(self) -> int:
        return (self.page - 1) * self.limit

    def address(self, **changes: object) -> str:
        """This page's address with a changed query."""
        return with_query(self.path, **{**self.query, **changes})

    def one_of(self, name: str, known: tuple[str, ...]) -> str:
        """A word of the query, '' where it is not given.

        Raises:
            UsageError: it is none of the known ones.
        """
        given = self.text(name)
        if given and given not in known:
            raise UsageError(f"{name} {given!r}: expected one of {', '.join(known)}")
        return given


def evidently_page(reports: Path, lineage: str, night: str) -> Path:
    """Where a night's Evidently report lies, if it has one."""
    return reports / lineage / night / "evidently.html"


@dataclass(frozen=True)
class Page:
    """What a page shows: `values` for its template, and tables that are files too."""

    title: str
    template: str
    sheets: tuple[Sheet, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)

    def sheet(self, name: str) -> Sheet | None:
        return next((sheet for sheet in self.sheets if sheet.name == name), None)


#: Every page is a function of this shape.
MakePage = Callable[[Visit], Page]
