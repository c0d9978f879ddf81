"""`errata night withdraw`: a night that failed before it was edited."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.shared import Json, console, emit_json, reported
from tasks.settings import configure

night_app = typer.Typer(help="What can be done with a whole night.", no_args_is_help=True)


@night_app.callback()
def _night() -> None:
    """Keeps `withdraw` a command of its own while it is the only one."""


@night_app.command()
@reported
def withdraw(
    night: Annotated[str, typer.Argument(help="The night, as `errata status` names it.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit trail.")],
    as_json: Json = False,
) -> None:
    """Take back a night that no model was edited with, so that its corrected file is read again."""
    from tasks.takeback.withdraw import withdraw as take_back

    was = take_back(configure(), night, reason)
    if as_json:
        emit_json({"night": night, "reason": reason, **was})
        return
    console.print(
        f"{night} is withdrawn: {was['records']['rows']} records, {was['verdicts']['rows']} verdicts, "
        f"{was['requests']['rows']} requests. `errata refresh --night {night}` reads its file again."
    )
