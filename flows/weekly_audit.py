"""Recheck everything that the audit trail vouches for, by schedule."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.recheck.audit import AuditReport, audit_or_raise
from tasks.settings import configure


@flow(name="audit", validate_parameters=False)
def weekly_audit(lineage: str | None = None, deep: bool = True, config: dict[str, Any] | None = None) -> AuditReport:
    """`errata audit` on a lineage; a break fails the run, so that whoever is told of broken runs is told of it."""
    return audit_or_raise(configure(config, lineage=lineage), deep=deep)
