"""The audit log: a hash chain of everything that changed what is served, in the warehouse and, create-only, in the store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from warehouse.checkpoints.object_store import ObjectStore, validate_key
from warehouse.database.connection import Warehouse
from warehouse.digests import canonical_json, digest_of
from warehouse.errors import IntegrityError, NotFound
from warehouse.records import Record

AuditKind = Literal[
    "verdicts",
    "quarantine",
    "edits",
    "decision",
    "promotion",
    "rejection",
    "culprits",
    "revert",
    "rollback",
    "policy",
    "key",
    "export",
    "lineage",
    "withdrawal",
    "serving",
]
#: What stands before the first entry.
GENESIS = "0" * 64
MAX_ENTRY_BYTES = 4 << 20


class AuditEntry(Record):
    """One event. `digest` covers all other fields, `previous` is the digest of the entry before."""

    seq: int
    kind: AuditKind
    subject: str
    lineage: str
    actor: str
    reason: str
    noted_at: datetime
    payload: dict[str, Any]
    previous: str
    digest: str

    def computed_digest(self) -> str:
        """What `digest` must be."""
        return digest_of(self.model_dump(mode="json", exclude={"digest"}))


class Break(Record):
    """Something that does not hold. `what` names the row, object or file; `found` says what is wrong with it."""

    what: str
    found: str


def append(
    wh: Warehouse,
    kind: AuditKind,
    subject: str,
    *,
    actor: str,
    payload: Mapping[str, Any],
    reason: str = "",
    lineage: str = "",
    noted_at: datetime | None = None,
) -> AuditEntry:
    """Add an event to the end of the chain. The same event again, by all but its time and actor, is not added twice.

    Args:
        payload: plain JSON: digests and numbers that let an auditor recompute what the event says.
    """
    with wh.transaction():
        plain = json.loads(canonical_json(dict(payload)))
        # What was noted of a night before it was taken back is no longer there to be the same.
        withdrawn = wh.scalar("SELECT coalesce(max(seq), 0) FROM audit WHERE kind = 'withdrawal' AND subject = ?", [subject])
        same = [
            e
            for e in entries(
                wh,
                "kind = $kind AND subject = $subject AND lineage = $lineage",
                {"kind": kind, "subject": subject, "lineage": lineage},
            )
            if (e.payload, e.reason) == (plain, reason) and (e.seq > withdrawn or kind == "withdrawal")
        ]
        if same:
            return same[-1]
        last = entries(wh, "seq = (SELECT max(seq) FROM audit)")
        # Microseconds are what the column keeps; a digest must survive the round trip.
        draft = AuditEntry(
            seq=last[0].seq + 1 if last else 1,
            kind=kind,
            subject=subject,
            lineage=lineage,
            actor=actor,
            reason=reason,
            noted_at=(noted_at or datetime.now(UTC)).astimezone(UTC),
            payload=plain,
            previous=last[0].digest if last else GENESIS,
            digest="",
        )
        entry = draft.model_copy(update={"digest": draft.computed_digest()})
        wh.append("audit", [entry.model_dump() | {"payload": canonical_json(entry.payload).decode()}], "error")
        return entry


def entries(wh: Warehouse, where: str = "true", params: Mapping[str, Any] | None = None) -> list[AuditEntry]:
    """Entries of the chain, oldest first."""
    rows = wh.rows(f"SELECT * REPLACE (payload::TEXT AS payload) FROM audit WHERE {where} ORDER BY seq", dict(params or {}))
    return [
        AuditEntry(**{**row, "payload": json.loads(row["payload"]), "noted_at": row["noted_at"].astimezone(UTC)})
        for row in rows
    ]


def last_of(wh: Warehouse, kind: AuditKind, lineage: str) -> AuditEntry | None:
    """The newest entry of a kind on a lineage."""
    found = entries(wh, "kind = $kind AND lineage = $lineage", {"kind": kind, "lineage": lineage})
    return found[-1] if found else None


def chain_id(chain: Sequence[AuditEntry]) -> str:
    """The name of a chain: the digest of its first entry; two warehouses on one store never share one."""
    return chain[0].digest[:24]


def check_chain(chain: Iterable[AuditEntry]) -> list[Break]:
    """Every gap, every entry whose digest or link is wrong."""
    breaks: list[Break] = []
    previous, expected = GENESIS, 1
    for entry in chain:
        what = f"audit entry {entry.seq}"
        if entry.seq != expected:
            breaks.append(Break(what=what, found=f"entry {expected} is missing"))
        if entry.computed_digest() != entry.digest:
            breaks.append(Break(what=what, found="its content does not have its digest"))
        if entry.previous != previous:
            breaks.append(Break(what=what, found="it does not follow the entry before it"))
        previous, expected = entry.digest, entry.seq + 1
    return breaks


# ---------------------------------------------------------------- in the store


def entry_key(chain: str, seq: int) -> str:
    return validate_key(f"audit/{chain}/{seq:010d}.json")


def mirror(wh: Warehouse, store: ObjectStore) -> int:
    """Copy entries that the store lacks; create-only, so an entry there never changes.

    Returns:
        How many were copied.

    Raises:
        Conflict: the store holds another entry of that number: one of the two chains was rewritten.
    """
    chain = entries(wh)
    if not chain:
        return 0
    name = chain_id(chain)
    held = set(store.list(f"audit/{name}/"))
    missing = [e for e in chain if entry_key(name, e.seq) not in held]
    for entry in missing:
        store.create(entry_key(name, entry.seq), canonical_json(entry))
    return len(missing)


def check_mirror(chain: Sequence[AuditEntry], store: ObjectStore) -> list[Break]:
    """Every entry must be in the store byte for byte, and nothing else under the chain's name."""
    if not chain:
        return []
    name = chain_id(chain)
    wanted = {entry_key(name, e.seq): canonical_json(e) for e in chain}
    breaks = []
    for key, data in wanted.items():
        try:
            found = store.read(key, MAX_ENTRY_BYTES)
        except NotFound:
            breaks.append(Break(what=key, found="the store lacks this entry"))
            continue
        if found != data:
            breaks.append(Break(what=key, found="the store holds another entry than the warehouse"))
    extra = [key for key in store.list(f"audit/{name}/") if key not in wanted]
    return breaks + [Break(what=key, found="the warehouse has no such entry") for key in extra]


def read_mirrored(store: ObjectStore, chain: str) -> list[AuditEntry]:
    """A chain as the store holds it, for an auditor who has no warehouse.

    Raises:
        IntegrityError: an object there is no entry.
    """
    found = []
    for key in store.list(f"audit/{chain}/"):
        try:
            found.append(AuditEntry.model_validate_json(store.read(key, MAX_ENTRY_BYTES)))
        except ValidationError as error:
            raise IntegrityError(f"{key} in {store.url} is no audit entry: {error.errors()[0]['msg']}") from error
    return found


# ---------------------------------------------------------------- what an entry vouches for


_FORMS = "also, wordings, carry_over"


def verdicts_payload(wh: Warehouse, night: str) -> dict[str, Any]:
    """Counts and digests of a night's records and verdicts, as they stand in the warehouse."""
    return {
        "records": _digest_of_rows(wh, "SELECT record_id, source, raw FROM updates WHERE night = ?", night),
        "verdicts": _digest_of_rows(wh, "SELECT * FROM verdicts WHERE night = ?", night),
        "requests": _digest_of_rows(
            wh, f"SELECT * EXCLUDE (received_at, other_relations, {_FORMS}) FROM edit_requests WHERE night = ?", night
        ),
        # Apart: entries from before there were such columns vouch for the rest of the row.
        "other_relations": _digest_of_rows(wh, "SELECT request_id, other_relations FROM edit_requests WHERE night = ?", night),
        "forms": _digest_of_rows(wh, f"SELECT request_id, {_FORMS} FROM edit_requests WHERE night = ?", night),
    }


def edits_payload(wh: Warehouse, night: str, lineage: str) -> dict[str, Any]:
    """Count and digest of the edits of a night on a lineage: what never changes of them, whatever becomes of them."""
    stable = "edit_id, request_id, batch_id, editor, config_digest, patch_digest"
    return {"edits": _digest_of_rows(wh, f"SELECT {stable} FROM edits WHERE night = ? AND lineage = ?", night, lineage)}


def _digest_of_rows(wh: Warehouse, sql: str, *params: str) -> dict[str, Any]:
    rows = wh.rows(f"SELECT to_json(t)::TEXT AS line FROM ({sql}) AS t ORDER BY line", list(params))
    return {"rows": len(rows), "digest": digest_of([row["line"] for row in rows])}
