"""Make what an editor needs before its first edit, so that no night has to."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.serving.prepare import prepare
from tasks.settings import configure


@flow(name="prepare", validate_parameters=False)
def prepare_editor(lineage: str | None = None, editor: str | None = None, config: dict[str, Any] | None = None) -> str:
    """Make or find the preparation; returns its digest. Safe to kill: training goes on from its last saved state."""
    return prepare(configure(config, lineage=lineage, editor=editor))
