"""What a night brought: update records as received, the verdicts on them, and the edit requests that came of them.

They belong to the world, not to a lineage: each night is received and judged once.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence

import pandas as pd

from warehouse.database.connection import Reader, Warehouse
from warehouse.database.frames import utc
from warehouse.digests import digest_of
from warehouse.errors import Conflict, NotFound, WarehouseError
from warehouse.nights.order import in_order, register
from warehouse.records import EditRequest, UpdateRecord, Verdict

logger = logging.getLogger(__name__)
#: Stands between an id that was used for two texts and the digest of the later one.
REUSED = "~"


def request_digest(request: EditRequest) -> str:
    """Content digest of a request; the zone in which `received_at` was written does not count.

    A request without other relations keeps the digest that it had before requests could name them.
    """
    content = request.model_copy(update={"received_at": utc(request.received_at)}).model_dump(mode="json")
    if not request.other_relations:
        del content["other_relations"]
    return digest_of(content)


def request_content(request: EditRequest) -> str:
    """What a request asks for, whenever and by whatever way it came: the same content again is the same request."""
    aside = {"received_at", "source", "other_relations", "rephrases", "also", "wordings", "carry_over"}
    return digest_of(request.model_dump(mode="json", exclude=aside))


def requests_named(wh: Reader, request_ids: Collection[str], night: str) -> dict[str, tuple[str, str]]:
    """(night, content) of the stored requests of some ids, those of one night left out."""
    columns = ", ".join(EditRequest.model_fields)
    asked = pd.DataFrame({"request_id": sorted(request_ids)}, dtype="str")
    rows = wh.rows(
        f"SELECT night, {columns} FROM edit_requests SEMI JOIN asked USING (request_id) WHERE night <> $night",
        {"night": night},
        asked=asked,
    )
    found = {}
    for row in rows:
        request = EditRequest(**{name: row[name] for name in EditRequest.model_fields})
        found[request.request_id] = (row["night"], request_content(request))
    return found


def receive(wh: Warehouse, records: Iterable[UpdateRecord]) -> int:
    """Keep update records as they came, in order of arrival; those stored already add nothing.

    A record whose id came with another text before is kept under that id, a `~` and the digest of its own text: nothing
    is lost, and the records that clash are found when the night is judged.

    Raises:
        WarehouseError: a text cannot be written as UTF-8.
    """
    records = list(records)
    for record in records:
        if not _is_text(record.raw):
            raise WarehouseError(
                f"record {record.record_id!r} of source {record.source!r} holds half of a surrogate pair, which is no "
                "text; its source must escape it"
            )
    arrived = pd.DataFrame({"source": [r.source for r in records], "record_id": [r.record_id for r in records]}, dtype="str")
    with wh.transaction():
        stored = wh.rows(
            "SELECT source, record_id, raw FROM updates SEMI JOIN arrived USING (source, record_id)", arrived=arrived
        )
        known = {(row["source"], row["record_id"]): digest_of(row["raw"]) for row in stored}
        fresh: dict[tuple[str, str], UpdateRecord] = {}
        for record in records:
            key, digest = (record.source, record.record_id), digest_of(record.raw)
            if known.setdefault(key, digest) == digest:
                fresh.setdefault(key, record)
                continue
            own = record.model_copy(update={"record_id": f"{record.record_id}{REUSED}{digest[:12]}"})
            logger.warning(
                "record id %r of %r came with another text; kept as %r", record.record_id, record.source, own.record_id
            )
            fresh.setdefault((own.source, own.record_id), own)
        asked = pd.DataFrame(list(fresh), columns=["source", "record_id"], dtype="str")
        held = wh.rows("SELECT source, record_id FROM updates SEMI JOIN asked USING (source, record_id)", asked=asked)
        for row in held:
            del fresh[row["source"], row["record_id"]]
        register(wh, (r.night for r in records))
        start = wh.scalar("SELECT coalesce(max(received_seq), 0) FROM updates")
        rows = [record.model_dump() for record in fresh.values()]
        new = wh.append("updates", [row | {"received_seq": start + 1 + i} for i, row in enumerate(rows)], "error")
    logger.info("received %d records, %d new", len(records), new)
    return new


def _is_text(raw: str) -> bool:
    try:
        raw.encode()
    except UnicodeEncodeError:
        return False
    return True


def updates_of(wh: Warehouse, night: str) -> list[UpdateRecord]:
    """The night's records in order of arrival."""
    return wh.records(
        UpdateRecord,
        "SELECT record_id, source, night, received_at, raw FROM updates WHERE night = ? ORDER BY received_seq",
        [night],
    )


def nights(wh: Warehouse) -> list[str]:
    """Nights with records, in order."""
    return in_order(wh, (row["night"] for row in wh.rows("SELECT DISTINCT night FROM updates")))


def record_verdicts(
    wh: Warehouse, night: str, source: str, verdicts: Sequence[Verdict], requests: Sequence[EditRequest]
) -> int:
    """Store the verdicts on one source's records and the edit requests that came of them, all or none.

    Returns:
        The number of new verdicts; a second call with the same arguments adds none.

    Raises:
        NotFound: a verdict is about a record that was never received, or names a request that is not given.
        Conflict: a record has another verdict already, or a request_id other content.
    """
    with wh.transaction():
        request_ids = _put_requests(wh, night, requests)
        judged = pd.DataFrame({"record_id": [v.record_id for v in verdicts]}, dtype="str").assign(source=source)
        known = wh.rows("SELECT record_id FROM updates SEMI JOIN judged USING (source, record_id)", judged=judged)
        missing = judged[~judged.record_id.isin({row["record_id"] for row in known})]
        if len(missing):
            raise NotFound(f"verdict on {missing.record_id.iloc[0]!r}: source {source!r} has no such record; receive it first")
        columns = ", ".join(Verdict.model_fields)
        stored = wh.records(
            Verdict, f"SELECT {columns} FROM verdicts SEMI JOIN judged USING (source, record_id)", judged=judged
        )
        held = {v.record_id: v for v in stored}
        fresh = []
        for verdict in verdicts:
            if verdict.request_id is not None and verdict.request_id not in request_ids:
                raise NotFound(f"verdict on {verdict.record_id!r} names request {verdict.request_id!r}, which is not given")
            if verdict.record_id not in held:
                held[verdict.record_id] = verdict
                fresh.append(verdict)
            elif held[verdict.record_id] != verdict:
                raise Conflict(
                    f"record {verdict.record_id!r} of {source!r} was judged {held[verdict.record_id].verdict} already "
                    f"and is now judged {verdict.verdict}, or for another reason; a recorded verdict does not change. A night "
                    f"that was not edited can be taken back: `errata night withdraw {night} --reason WHY`"
                )
        return wh.append("verdicts", fresh, "error", constants={"night": night, "source": source})


def _put_requests(wh: Warehouse, night: str, requests: Sequence[EditRequest]) -> set[str]:
    """Store new requests; returns the ids of all that are stored then."""
    stored = wh.rows("SELECT request_id, content_digest FROM edit_requests")
    digests = {row["request_id"]: row["content_digest"] for row in stored}
    for request in requests:
        if digests.setdefault(request.request_id, digest := request_digest(request)) != digest:
            raise Conflict(f"request {request.request_id!r} is there already with other content; give it a new id")
    register(wh, [night])
    columns = EditRequest.model_fields
    rows = [
        {name: getattr(request, name) for name in columns} | {"content_digest": digests[request.request_id]}
        for request in requests
    ]
    wh.append("edit_requests", rows, constants={"night": night})
    return set(digests)


def verdicts_of(wh: Warehouse, night: str | None = None, *, source: str | None = None) -> list[Verdict]:
    """Verdicts in the order in which their records came, of one night and one source or of all."""
    columns = ", ".join(f"v.{name}" for name in Verdict.model_fields)
    return wh.records(
        Verdict,
        f"""SELECT {columns} FROM verdicts AS v LEFT JOIN updates AS u USING (source, record_id)
            WHERE coalesce(v.night = $night, true) AND coalesce(v.source = $source, true)
            ORDER BY u.received_seq, v.record_id""",
        {"night": night, "source": source},
    )


def requests_of(wh: Warehouse, night: str) -> list[EditRequest]:
    """The night's edit requests, in the order in which their first record came."""
    columns = ", ".join(f"r.{name}" for name in EditRequest.model_fields)
    return wh.records(
        EditRequest,
        f"""SELECT {columns} FROM edit_requests AS r
            LEFT JOIN (SELECT v.request_id, min(u.received_seq) AS first_seq
                       FROM verdicts AS v JOIN updates AS u USING (source, record_id)
                       WHERE v.request_id IS NOT NULL GROUP BY ALL) AS o USING (request_id)
            WHERE r.night = ? ORDER BY o.first_seq NULLS LAST, r.request_id""",
        [night],
    )


def requests_by_id(wh: Warehouse, request_ids: Sequence[str]) -> list[EditRequest]:
    """Requests in the order asked.

    Raises:
        NotFound: one of them is not stored.
    """
    columns = ", ".join(EditRequest.model_fields)
    asked = pd.DataFrame({"request_id": list(request_ids)}, dtype="str")
    found = wh.records(EditRequest, f"SELECT {columns} FROM edit_requests SEMI JOIN asked USING (request_id)", asked=asked)
    by_id = {request.request_id: request for request in found}
    if missing := [name for name in request_ids if name not in by_id]:
        raise NotFound(f"no edit request {missing[0]!r} ({len(missing)} missing); record its verdict first")
    return [by_id[name] for name in request_ids]
