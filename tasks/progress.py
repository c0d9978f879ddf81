"""Show how far a night has come as a Prefect progress artifact."""

from __future__ import annotations

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext

from tasks.night import Night
from warehouse.runs import RUN_STATES, RunStateName


def show_progress(run: Night) -> None:
    """Keep one progress artifact of the flow run up to date with the night's states; nothing outside a flow run."""
    if FlowRunContext.get() is None:
        return
    key = f"progress-{run.settings.lineage}-{run.night}".lower().replace("_", "-")
    artifact = create_progress_artifact(0.0, key=key, description=f"Night {run.night} on lineage {run.settings.lineage}")

    def update(state: RunStateName) -> None:
        done = RUN_STATES.index(state) + 1
        update_progress_artifact(artifact, progress=100.0 * done / len(RUN_STATES))  # pyright: ignore[reportArgumentType]

    run.on_reach = update
