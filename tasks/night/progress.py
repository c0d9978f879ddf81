"""Show how far a night has come as a Prefect progress artifact."""

from __future__ import annotations

import re

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext

from tasks.night.course import Night
from warehouse.nights.runs import RUN_STATES, RunStateName


def artifact_key(name: str) -> str:
    """The name as a key of a Prefect artifact, which takes lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9-]+", "-", name.lower())


def show_progress(run: Night) -> None:
    """Keep one progress artifact of the flow run up to date with the night's states; nothing outside a flow run."""
    if FlowRunContext.get() is None:
        return
    key = artifact_key(f"progress-{run.settings.lineage}-{run.night}")
    artifact = create_progress_artifact(0.0, key=key, description=f"Night {run.night} on lineage {run.settings.lineage}")

    def update(state: RunStateName) -> None:
        done = RUN_STATES.index(state) + 1
        update_progress_artifact(artifact, progress=100.0 * done / len(RUN_STATES))  # pyright: ignore[reportArgumentType]

    run.on_reach = update
