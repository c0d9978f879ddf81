"""Addresses of pages: one function for each, so that every link is made in one place and quoted."""

from __future__ import annotations

from urllib.parse import quote, urlencode


def with_query(path: str, **query: object) -> str:
    """The path with a query of what is neither empty nor None."""
    given = {name: value for name, value in query.items() if value not in ("", None)}
    return f"{path}?{urlencode(given)}" if given else path


def night_page(lineage: str, night: str) -> str:
    return f"/nights/{quote(lineage, safe='')}/{quote(night, safe='')}"


def fact_page(key: str, lineage: str = "") -> str:
    return with_query("/fact", subject=key, lineage=lineage)


def record_page(source: str, record_id: str) -> str:
    return with_query("/record", source=source, id=record_id)


def lineage_page(lineage: str) -> str:
    return f"/lineage/{quote(lineage, safe='')}"


def policy_page(digest: str) -> str:
    return f"/policies/{quote(digest, safe='')}"


def entry_page(seq: int) -> str:
    return f"/audit/{seq}"
