"""What became of each record of a night: the question of whoever sent it."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal, get_args

from warehouse.database.connection import Warehouse
from warehouse.errors import NotFound, UsageError
from warehouse.nights.order import in_order
from warehouse.records import Record, VerdictName

#: Of a record that was received and not judged yet: its night is broken off or going on.
WAITING = "waiting"
RecordState = VerdictName | Literal["waiting"]
STATES: tuple[str, ...] = (*get_args(VerdictName), WAITING)


class JudgedRecord(Record):
    """One record with its verdict; `rule`, `reason` and `sentence` are empty while there is none."""

    record_id: str
    source: str
    verdict: RecordState
    reason: str
    rule: str
    sentence: str
    related: tuple[str, ...]
    request_id: str | None


def night_records(wh: Warehouse, night: str, verdict: str | None = None) -> list[JudgedRecord]:
    """The night's records in order of arrival, each with its verdict; of one verdict, or of all.

    Raises:
        UsageError: no verdict has that name.
        NotFound: the warehouse has no such night; names those that it has.
    """
    if verdict is not None and verdict not in STATES:
        raise UsageError(f"no verdict {verdict!r}; give one of {', '.join(STATES)}")
    found = wh.records(
        JudgedRecord,
        f"""SELECT u.record_id, u.source, coalesce(v.verdict, '{WAITING}') AS verdict, coalesce(v.reason, '') AS reason,
                   coalesce(v.rule, '') AS rule, coalesce(v.sentence, '') AS sentence, coalesce(v.related, []) AS related,
                   v.request_id
            FROM updates AS u LEFT JOIN verdicts AS v USING (source, record_id) WHERE u.night = $night
            ORDER BY u.received_seq""",
        {"night": night},
    )
    if not found:
        _require_night(wh, night)
    return [record for record in found if verdict in (None, record.verdict)]


def _require_night(wh: Warehouse, night: str) -> None:
    known = in_order(wh, (row["night"] for row in wh.rows("SELECT night FROM nights WHERE night <> ''")))
    if night in known:
        return
    if not known:
        raise NotFound(f"no night {night!r}: none was received yet; `errata refresh --night {night}` runs one of the source")
    near = get_close_matches(night, known, 5, 0.3) or known[-5:]
    raise NotFound(
        f"no night {night!r} was received; there are {', '.join(near)} ({len(known)} in all); `errata refresh --night {night}` "
        "runs it if the source has it"
    )
