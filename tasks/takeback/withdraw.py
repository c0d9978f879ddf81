"""Take back a night that has not come into any model."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import Any

from tasks.settings import Settings
from tasks.trail import note
from tasks.workspace import lineage_lock, night_folder, warehouse
from warehouse.errors import UsageError
from warehouse.nights.runs import runs
from warehouse.nights.withdrawal import withdraw_night


def withdraw(settings: Settings, night: str, reason: str) -> dict[str, Any]:
    """Withdraw a night on every lineage that began it, with an entry in the audit trail.

    Returns:
        What was there: counts and digests, as the trail keeps them.

    Raises:
        NotFound: no such night.
        Conflict: the night was edited, or something rests on it.
        UsageError: no reason.
        LineageBusy: a run of one of the lineages is going on.
    """
    if not reason.strip():
        raise UsageError(f"to withdraw night {night!r} give a reason; it is kept for whoever asks later")
    with warehouse(settings) as wh:
        lineages = sorted({run.lineage for run in runs(wh) if run.night == night} | {settings.lineage})
    concerned = [settings.model_copy(update={"lineage": lineage}) for lineage in lineages]
    with ExitStack() as stack:
        for one in concerned:
            stack.enter_context(lineage_lock(one))
        with warehouse(settings) as wh, wh.transaction():
            was = withdraw_night(wh, night)
            note(settings, wh, "withdrawal", night, was, reason=reason.strip(), lineage="")
        for one in concerned:
            # What the scratch folder remembers of the night is of records that are gone.
            shutil.rmtree(night_folder(one, night), ignore_errors=True)
    return was
