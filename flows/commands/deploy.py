"""`errata deploy`: put deployments of lineages and the alarms on a Prefect server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.shared import Json, emit_json, errors, reported, table
from tasks.settings import configure


@reported
def deploy(
    lineage: Annotated[list[str] | None, typer.Option(help="A lineage, as often as there are; default: the settings'.")] = None,
    pool: Annotated[str, typer.Option(help="Work pool; made for process workers where it is missing.")] = "local",
    cron: Annotated[str, typer.Option(help="When its nights begin; default: as deployments/prefect.yaml says.")] = "",
    editor: Annotated[str, typer.Option(help="Editor of its nights; default: the worker's settings.")] = "",
    as_json: Json = False,
) -> None:
    """Put deployments of lineages, recipients of alerts and automations on the Prefect server; twice changes nothing.

    Run it in the repository's root, with PREFECT_API_URL set, and again after a change of `alerts.*`.
    """
    settings = configure()
    from tasks.deploying.deploy import deploy

    done = deploy(settings, lineage or [settings.lineage], Path.cwd(), pool=pool, cron=cron, editor=editor)
    if as_json:
        emit_json(done.model_dump(mode="json"))
        return
    rows = [("work pool", pool, done.pool), *(("deployment", name, "there") for name in done.deployments)]
    table("On the server", ("what", "name", "now"), [*rows, *(("automation", n, what) for n, what in done.automations.items())])
    for warning in done.warnings:
        errors.print(f"[yellow]warning[/yellow] {warning}", highlight=False)
