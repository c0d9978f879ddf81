"""Taking back a night that has not come into any model: its records, verdicts, requests and changes of facts."""

from __future__ import annotations

from typing import Any

from warehouse.database.connection import Warehouse
from warehouse.errors import Conflict, NotFound
from warehouse.lineages.audit import verdicts_payload
from warehouse.nights.order import last_changed
from warehouse.nights.runs import RUN_STATES

#: From here on objects of the night may be in the store.
_DECIDED = RUN_STATES.index("decided")


def withdraw_night(wh: Warehouse, night: str) -> dict[str, Any]:
    """Remove what a night brought into the warehouse, so that its source can be read again under the same name.

    Records that were released into the night stay in it and are judged again with it.

    Returns:
        What an auditor needs to know of what was there: counts and digests of records, verdicts and requests.

    Raises:
        NotFound: nothing of the night was ever received.
        Conflict: the night was edited, came over the live stream, a later night rests on it, or a person has acted on
            one of its records; the message names the way out.
    """
    with wh.transaction():
        if not wh.scalar("SELECT count(*) FROM updates WHERE night = ?", [night]) and not wh.scalar(
            "SELECT count(*) FROM runs WHERE night = ?", [night]
        ):
            raise NotFound(f"no night {night!r} was received; `errata status` lists those that were")
        _refuse(wh, night)
        payload = verdicts_payload(wh, night)
        payload["facts"] = {
            "begun": wh.scalar("SELECT count(*) FROM facts WHERE known_from_night = ?", [night]),
            "ended": wh.scalar("SELECT count(*) FROM facts WHERE known_to_night = ?", [night]),
        }
        payload["withdrawals"] = wh.scalar("SELECT count(*) FROM audit WHERE kind = 'withdrawal' AND subject = ?", [night])
        wh.execute("DELETE FROM facts WHERE known_from_night = ?", [night])
        wh.execute("UPDATE facts SET known_to_night = NULL WHERE known_to_night = ?", [night])
        wh.execute("DELETE FROM verdicts WHERE night = ?", [night])
        wh.execute("DELETE FROM edit_requests WHERE night = ?", [night])
        # What a person released into the night is not of its source: it waits for the corrected one.
        wh.execute(
            """DELETE FROM updates WHERE night = $night AND (source, record_id) NOT IN
               (SELECT (source, joined_as) FROM quarantine_actions WHERE action = 'join' AND joined_night = $night)""",
            {"night": night},
        )
        wh.execute("DELETE FROM runs WHERE night = ?", [night])
    return payload


def _refuse(wh: Warehouse, night: str) -> None:
    edited = wh.rows(
        "SELECT DISTINCT lineage FROM edits WHERE night = $night AND status <> 'skipped' UNION "
        "SELECT lineage FROM checkpoints WHERE night = $night ORDER BY 1",
        {"night": night},
    )
    begun = wh.rows("SELECT lineage, state, verdict, checkpoint_id FROM runs WHERE night = ? ORDER BY 1", [night])
    late = [r["lineage"] for r in begun if RUN_STATES.index(r["state"]) == _DECIDED]
    if lineages := [r["lineage"] for r in edited] or late:
        raise Conflict(
            f"night {night} was edited on lineage {', '.join(lineages)}: it stays in its history. Finish it by `errata refresh "
            f"--night {night}`, take edits out by `errata revert`, and give corrected records a file of another name"
        )
    if wh.scalar("SELECT count(*) FROM stream_events WHERE night = ?", [night]):
        raise Conflict(
            f"night {night} came over the live stream, which cannot be read again; reject single records by "
            "`errata quarantine reject`, or run the night and take its edits out by `errata revert`"
        )
    later = last_changed(wh, night)
    if later is not None:
        raise Conflict(
            f"night {later} was judged on what night {night} changed; withdraw night {later} first, or put the "
            "corrected records into a file of another name"
        )
    acted = wh.rows(
        "SELECT record_id, action FROM quarantine_actions "
        "SEMI JOIN (SELECT source, record_id FROM updates WHERE night = ?) AS u USING (source, record_id) ORDER BY seq",
        [night],
    )
    if acted:
        raise Conflict(
            f"record {acted[0]['record_id']!r} of {night} was acted on ({acted[0]['action']}) in the quarantine queue, "
            "and that stands; put the corrected records into a file of another name, with ids of their own"
        )
