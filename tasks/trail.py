"""Events of the tasks in the audit trail."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.settings import Settings
from tasks.workspace import store_of, warehouse
from warehouse.checkpoints.manifests import manifest_digest
from warehouse.database.connection import Warehouse
from warehouse.digests import canonical_json, sha256_bytes
from warehouse.lineages.audit import AuditEntry, AuditKind, append, mirror
from warehouse.nights.quarantine import QuarantineAction
from warehouse.records import ChannelPointer, Manifest
from warehouse.upkeep.tables_out import export_digest, export_tables


def actor_of(settings: Settings) -> str:
    """Who acts: the setting, else the login name."""
    if settings.actor:
        return settings.actor
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container without a user table.
        return "unknown"


def note(
    settings: Settings,
    wh: Warehouse,
    kind: AuditKind,
    subject: str,
    payload: Mapping[str, Any],
    *,
    reason: str = "",
    lineage: str | None = None,
) -> AuditEntry:
    """Add an event in the caller's transaction; the same event again is not added twice."""
    return append(
        wh,
        kind,
        subject,
        actor=actor_of(settings),
        payload=payload,
        reason=reason,
        lineage=settings.lineage if lineage is None else lineage,
    )


def note_action(settings: Settings, wh: Warehouse, action: QuarantineAction) -> None:
    """A release or a rejection from the quarantine queue, with its place in the queue's own chain."""
    payload = {"action": action.action, "source": action.source, "rule": action.rule, "place": action.seq}
    note(settings, wh, "quarantine", action.record_id, payload, reason=action.reason, lineage="")


def export_warehouse(settings: Settings, folder: Path) -> dict[str, str]:
    """Write the warehouse as plain files, and the digest of all of them into the audit trail.

    The trail's entry is made after the files, so the export holds the trail up to itself.

    Raises:
        Conflict: the folder holds something.
    """
    with warehouse(settings) as wh:
        digests = export_tables(wh, folder)
        digest = export_digest(digests)
        note(
            settings,
            wh,
            "export",
            digest[:24],
            {"digest": digest, "files": len(digests)},
            reason="the tables were written as plain files",
            lineage="",
        )
    mirror_audit(settings)
    return digests


def mirror_audit(settings: Settings) -> int:
    """Copy new entries into the store; safe to run at any time."""
    with warehouse(settings) as wh:
        return mirror(wh, store_of(settings))


def promotion_payload(manifest: Manifest, proof: Mapping[str, Any]) -> dict[str, Any]:
    """What the trail keeps of a promotion or a rejection; `proof`: who signed it, and where the channel was moved to."""
    return {
        "manifest": manifest_digest(manifest),
        "parent": manifest.checkpoint.parent,
        "night": manifest.night,
        "decision": manifest.decision.decision_id,
        **proof,
    }


def pointer_payload(pointer: ChannelPointer) -> dict[str, Any]:
    """The channel and the digest of its pointer as the store holds it: its time and parent are vouched for as well."""
    return {"channel": pointer.channel, "pointer": sha256_bytes(canonical_json(pointer))}
