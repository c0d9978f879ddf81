"""`errata world`: what the configured model knows of the shipped world, and how it is asked."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.commands.shared import Json, console, emit_json, progress_of, reported, table
from tasks.settings import configure

app = typer.Typer(help="What a model knows of the shipped world, and how it is asked.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """What a model knows of the shipped world, and how it is asked."""


@app.command()
@reported
def known(
    model: Annotated[str, typer.Option("--model", help="Folder, .gguf file or hub id; default: `model.name`.")] = "",
    each: Annotated[int, typer.Option(help="At most so many facts of a relation; 0: all.")] = 0,
    as_json: Json = False,
) -> None:
    """Ask a model the shipped facts that a small general model can know; list by relation and form what it answers.

    The answers are kept: a second call asks nothing again, and nights and benchmarks take their bystanders from them. The
    embedded model knows its own world and is asked nothing.
    """
    settings = configure({"model": {"name": model}} if model else None)
    from tasks.serving.known import ask_known, known_table

    with progress_of("known facts") as advance:
        asker = ask_known(settings, each=each, progress=advance)
    found = known_table(settings)
    if as_json:
        emit_json({"forms": asker.forms.model_dump(mode="json"), "known": [row.model_dump(mode="json") for row in found]})
        return
    forms = list(dict.fromkeys(form for row in found for form in row.forms))
    rows: list[list[Any]] = [
        [row.relation, row.label, row.asked, row.known, *(row.forms.get(form) for form in forms)] for row in found
    ]
    table("Facts that the model knows", ("relation", "", "asked", "known", *forms), rows)
    total, asked = sum(row.known for row in found), sum(row.asked for row in found)
    console.print(f"{total} of {asked} facts over {sum(row.known > 0 for row in found)} relations")
    console.print(f"on calibration facts it answers, of what it knows: {asker.forms.describe()}")
