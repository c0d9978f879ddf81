"""The order of nights: by when each was received, those received together by the natural order of their names.

The names say nothing by themselves: `nights.place` does, and SQL asks it by the macro `place_of(night)`. A night gets its
place when the first of it arrives, and keeps it, but for one that a person lets follow the others (`move_last`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime

from warehouse.database.connection import Warehouse
from warehouse.errors import Conflict
from warehouse.night_names import BASE_NIGHT, natural


def register(wh: Warehouse, names: Iterable[str]) -> None:
    """Give each night that has no place yet the next one; several in natural order. The rest stay where they are."""
    fresh = set(names) - {BASE_NIGHT}
    if not fresh:
        return
    with wh.transaction():
        fresh -= {row["night"] for row in wh.rows("SELECT night FROM nights")}
        last = wh.scalar("SELECT max(place) FROM nights")
        rows = [{"night": name, "place": last + i} for i, name in enumerate(sorted(fresh, key=natural), 1)]
        wh.append("nights", rows, constants={"received_at": datetime.now(UTC)})


def in_order(wh: Warehouse, names: Iterable[str]) -> list[str]:
    """Nights in order; those not received yet come last."""
    place = {row["night"]: row["place"] for row in wh.rows("SELECT night, place FROM nights")}
    return sorted(set(names), key=lambda name: (place.get(name, math.inf), natural(name)))


def nights_before(wh: Warehouse, night: str) -> set[str]:
    """The nights that come before `night`."""
    return {row["night"] for row in wh.rows("SELECT night FROM nights WHERE place < place_of($night)", {"night": night})}


def last_changed(wh: Warehouse, night: str) -> str | None:
    """The last night that has changed facts, if it is later than `night`."""
    rows = wh.rows(
        """SELECT night FROM nights WHERE place > place_of($night)
           AND (night IN (SELECT known_from_night FROM facts) OR night IN (SELECT known_to_night FROM facts))
           ORDER BY place DESC LIMIT 1""",
        {"night": night},
    )
    return rows[0]["night"] if rows else None


def move_last(wh: Warehouse, night: str) -> str | None:
    """Let a night that is not judged yet follow all others, as if it were received now.

    Returns:
        The night that was the last one until now; None where this night is the last one already, or is new.

    Raises:
        Conflict: the night is judged: others were judged by what it changed.
    """
    with wh.transaction():
        register(wh, [night])
        last = wh.rows("SELECT night, place FROM nights ORDER BY place DESC LIMIT 1")[0]
        if last["night"] == night:
            return None
        if is_judged(wh, night):
            raise Conflict(
                f"night {night} is judged already and keeps its place; `errata refresh --night {night}` goes on with it"
            )
        wh.execute(
            "UPDATE nights SET place = $place, received_at = $now WHERE night = $night",
            {"place": last["place"] + 1, "now": datetime.now(UTC), "night": night},
        )
        return last["night"]


def is_judged(wh: Warehouse, night: str) -> bool:
    """Whether a record of the night has a verdict."""
    return bool(wh.scalar("SELECT count(*) FROM verdicts WHERE night = ?", [night]))


def free_night(wh: Warehouse, name: str) -> str:
    """The night of that name, or the next of its name that takes records still: `NAME-02`, `NAME-03`, ...

    Raises:
        Conflict: a hundred nights of that name are judged.
    """
    names = (name, *(f"{name}-{number:02}" for number in range(2, 100)))
    for one in names:
        if not is_judged(wh, one) and last_changed(wh, one) is None:
            return one
    raise Conflict(f"all nights from {name} to {names[-1]} are judged; give a name of your own with --night")
