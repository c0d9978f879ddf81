"""One line of `errata doctor`: what was checked, how it stands, what was found and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from warehouse.records import Record

Level = Literal["ok", "warning", "fault"]
#: By what a monitor reads of its plugins (Nagios and its heirs): the worst line decides.
EXIT_CODES: dict[Level, int] = {"ok": 0, "warning": 1, "fault": 2}


class Health(Record):
    """One check. `fault`: a night cannot run or be trusted; `warning`: it can, and something is not as it should be."""

    check: str
    level: Level
    found: str
    to_do: str = ""


def ok(check: str, found: str) -> Health:
    return Health(check=check, level="ok", found=found)


def warning(check: str, found: str, to_do: str) -> Health:
    return Health(check=check, level="warning", found=found, to_do=to_do)


def fault(check: str, found: str, to_do: str) -> Health:
    return Health(check=check, level="fault", found=found, to_do=to_do)


def worst(lines: Iterable[Health]) -> Level:
    """The level of the worst line; of none, ok."""
    found = {line.level for line in lines}
    return "fault" if "fault" in found else "warning" if "warning" in found else "ok"


def gib(number: float) -> str:
    """Bytes as people read them."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
