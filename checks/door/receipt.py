"""When a night was: its own end from the times of its records, bounded by when it was received.

One wrong clock must not move the night, so the latest time counts only where it is not far away from all the others. A
time that cannot be one at which an update came is the fault of its record alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from checks.door.identity import Fault

#: Before the first wiki edit no update of a fact was sent; a clock that was never set says 1970.
EARLIEST = datetime(2001, 1, 15, tzinfo=UTC)
#: Clocks differ, and a sender may write local time without its zone.
SLACK = timedelta(days=1)
#: So far our own clock may be behind (a machine without a battery); a night from further away is wrong as a whole.
OURS = timedelta(days=3650)
#: A night that is named by its date is over two days after that date began, wherever it was.
NIGHT = timedelta(days=2)
#: At most this share of a night (and always one of three) may be set aside as wrong clocks.
WRONG_SHARE = 10
_DATE = re.compile(r"(?<!\d)(\d{4})-?(\d{2})-?(\d{2})(?!\d)")


def night_end(night: str, times: Mapping[str, datetime | None], received: datetime) -> tuple[datetime, dict[str, Fault]]:
    """The moment that P580 and P582 of a night's records are held against, and the records whose time cannot be.

    Args:
        night: a date in its name (`2026-11-28`) says which night it was.
        times: when each record came, by its source; None where that is not said.
        received: when we received the night.
    """
    received = received.astimezone(UTC)
    known = sorted(time for time in times.values() if time is not None and time >= EARLIEST)
    bound = received + SLACK
    # Where most of a night comes after we received it, and in one time that may be, the wrong clock is ours.
    ahead = [time for time in known if bound < time < received + OURS]
    if len(ahead) >= 3 and 2 * len(ahead) > len(known):
        bound = ahead[len(ahead) // 2] + NIGHT
    sane = [time for time in known if time <= bound]
    faults = {
        record_id: Fault("implausible_time", _sentence(time, received))
        for record_id, time in times.items()
        if time is not None and not EARLIEST <= time <= bound
    }
    latest = max(received, bound - SLACK)
    begin = _named_date(night)
    if begin is not None:
        within = [time for time in sane if begin <= time < begin + NIGHT]
        return min(_last(within) if within else begin + NIGHT / 2, latest), faults
    return min(_last(sane), latest) if sane else received, faults


def _sentence(time: datetime, received: datetime) -> str:
    what = "before there were updates" if time < EARLIEST else f"after it was received ({received:%Y-%m-%d})"
    return f"it says that it came on {time:%Y-%m-%d %H:%M} UTC, {what}; its clock is wrong."


def _named_date(night: str) -> datetime | None:
    if match := _DATE.search(night):
        try:
            found = datetime(*map(int, match.groups()), tzinfo=UTC)
        except ValueError:
            return None
        return found if found >= EARLIEST and found.year < 9999 else None
    return None


def _last(times: list[datetime]) -> datetime:
    """The latest of sorted times, but for a few that stand further off than all the others are apart."""
    most = max(1, len(times) // WRONG_SHARE) if len(times) >= 3 else 0
    for dropped in range(most, 0, -1):
        kept = times[:-dropped]
        if times[-dropped] - kept[-1] > max(NIGHT, kept[-1] - kept[0]):
            return kept[-1]
    return times[-1]
