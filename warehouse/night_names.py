"""Names of nights: one rule for what a name may be, how a day's night is named, and how names sort."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from warehouse.errors import UsageError

BASE_NIGHT = ""
#: Names of nights are names of files and folders.
MAX_NAME_CHARS = 200
_PIECES = re.compile(r"[0-9]+|[^0-9]+")
_DAY = re.compile(r"^(?:night-)?([0-9]{4}-[0-9]{2}-[0-9]{2})(?:-[0-9]+)?$")
#: `2026-11-28` and `night-2026-11-28` are named by one rule, with and without the word.
_WORD = re.compile(r"^night[-_ ]?(?=[0-9])")


def natural(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key of a name: its numbers count as numbers, so that `week-9` comes before `week-10`."""
    pieces = _PIECES.findall(_WORD.sub("", name.casefold()))
    return tuple((0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in pieces), name


def check_name(night: str) -> str:
    """The name, if a file could bear it.

    Raises:
        UsageError: it is empty, too long, has a slash, a control character or a space at an end, or is `.` or `..`.
    """
    bad = night != night.strip() or night in ("", ".", "..") or len(night) > MAX_NAME_CHARS
    if bad or any(c in "/\\" or not c.isprintable() for c in night):
        raise UsageError(
            f"{night[:80]!r} is no name of a night: give up to {MAX_NAME_CHARS} letters, digits, '-', '_' or '.', as in "
            "night-2026-11-28"
        )
    return night


def day_name(moment: datetime) -> str:
    """The name of the night of a day (UTC), whichever command makes it."""
    return f"night-{moment.astimezone(UTC):%Y-%m-%d}"


def day_of(night: str) -> datetime | None:
    """The day (UTC) that a night is named by, its later nights too (`night-2026-11-28-2`); None for any other name."""
    found = _DAY.match(night)
    try:
        return datetime.strptime(found[1], "%Y-%m-%d").replace(tzinfo=UTC) if found else None
    except ValueError:
        return None
