"""`errata serving check`: does a running server answer from what was promoted?"""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.shared import Json, console, emit_json, reported_with, table
from tasks.settings import configure

app = typer.Typer(no_args_is_help=True, help="Prove that a running server answers from what was promoted.")
#: Of a check, for monitors.
DIFFERS, COULD_NOT_ASK = 1, 2


@app.command()
@reported_with(COULD_NOT_ASK)
def check(
    url: Annotated[str, typer.Argument(help="A server of the OpenAI-compatible completions API, such as http://host:8000.")],
    model: Annotated[str, typer.Option(help="The model's name on the server; default: `serving.model`, else its first.")] = "",
    lineage: Annotated[str | None, typer.Option(help="Lineage; default from the settings.")] = None,
    weights: Annotated[
        bool | None,
        typer.Option("--weights/--no-weights", help="Compare the engine's weights too (vLLM); default: `serving.weights`."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask a running server the canaries of the promoted checkpoint; exit code 0 agrees, 1 differs, 2 could not ask.

    Names the checkpoint that its answers fit best. The result goes into the warehouse and, where it is news, into the trail.
    """
    settings = configure(lineage=lineage)
    if weights is not None:
        settings = settings.model_copy(update={"serving": settings.serving.model_copy(update={"weights": weights})})
    from tasks.proving.check import check_server

    found = check_server(settings, url, model)
    if as_json:
        emit_json(found.model_dump(mode="json"))
    else:
        console.print(f"{found.url}: {found.sentence}", markup=False, highlight=False, soft_wrap=True)
        if wrong := found.body.get("wrong"):
            from warehouse.world.forms import told

            table("Answered otherwise", ("asked", "promoted", "server"), [(told(p), e, a) for p, e, a in wrong])
    if found.verdict != "agrees":
        raise typer.Exit(COULD_NOT_ASK if found.verdict == "unreachable" else DIFFERS)
