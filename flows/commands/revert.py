"""`errata revert`: take edits out of what is served."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.shared import Json, console, emit_json, reported
from flows.commands.stopping import at_once
from tasks.settings import configure


@reported
def revert(
    target: Annotated[str, typer.Argument(help="The start of an edit's id (see `errata blame`), or a checkpoint.")],
    reason: Annotated[str, typer.Option(help="Why; kept for whoever asks later.")],
    lineage: Annotated[str | None, typer.Option(help="Lineage; default from the settings.")] = None,
    as_json: Json = False,
) -> None:
    """Take one edit, or all edits of a checkpoint, out of the model; gated before production moves, like any night."""
    settings = configure(lineage=lineage)
    from flows.revert import revert_edits
    from tasks.workspace import report_folder

    with at_once():
        line = revert_edits(target, reason, lineage=settings.lineage)
    if as_json:
        emit_json(line.model_dump(mode="json"))
        return
    plan = line.details["revert"]
    console.print(
        f"{line.night}: {len(plan['edits'])} edits out, {len(plan['revived'])} in force again, "
        f"{line.edited - len(plan['revived'])} made again; "
        f"{line.verdict}, checkpoint {(line.checkpoint_id or '')[:12]}",
        markup=False,
        highlight=False,
    )
    console.print(f"{report_folder(settings, line.night) / 'summary.md'}", highlight=False)
