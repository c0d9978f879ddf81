"""Events of the tasks in the audit trail."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from typing import Any

from tasks.settings import Settings
from tasks.workspace import store_of, warehouse
from warehouse.audit import AuditEntry, AuditKind, append, mirror
from warehouse.promotion import manifest_digest
from warehouse.records import Manifest
from warehouse.store import Warehouse


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
    settings: Settings, wh: Warehouse, kind: AuditKind, subject: str, payload: Mapping[str, Any], *, reason: str = "",
    lineage: str | None = None,
) -> AuditEntry:  # fmt: skip
    """Add an event in the caller's transaction; the same event again is not added twice."""
    return append(
        wh, kind, subject, actor=actor_of(settings), payload=payload, reason=reason,
        lineage=settings.lineage if lineage is None else lineage,
    )  # fmt: skip


def mirror_audit(settings: Settings) -> int:
    """Copy new entries into the store; safe to run at any time."""
    with warehouse(settings) as wh:
        return mirror(wh, store_of(settings))


def promotion_payload(manifest: Manifest, signed_by: str | None) -> dict[str, Any]:
    """What the trail keeps of a promotion or a rejection."""
    return {
        "manifest": manifest_digest(manifest), "parent": manifest.checkpoint.parent, "night": manifest.night,
        "decision": manifest.decision.decision_id, "signed_by": signed_by,
    }  # fmt: skip
