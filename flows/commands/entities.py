"""`errata entities`: the parser of entity documents held against real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.shared import Json, console, emit_json, reported, table
from tasks.settings import configure

app = typer.Typer(no_args_is_help=True, help="Entity documents: how well they are read and compared.")


@app.command()
@reported
def score(
    folder: Annotated[Path, typer.Argument(help="Folder with entity documents, revisions/ and real_diffs.jsonl.")],
    as_json: Json = False,
) -> None:
    """Read every entity document of a folder and hold the diff of each revision pair against the recorded one."""
    from checks.scoring.entities import score_entities

    found = score_entities(folder)
    if as_json:
        emit_json(found)
        return
    documents, diffs = found["documents"], found["diffs"]
    counted = ", ".join(f"{n} {reason}" for reason, n in documents["set_aside"].items()) or "none"
    console.print(
        f"{documents['n']} documents, {documents['entities']} entities, {documents['statements']} statements; "
        f"set aside: {counted}; errors: {len(documents['errors'])}",
        highlight=False,
    )
    rows = [[kind, row["precision"], row["recall"], row["n"], row["found"]] for kind, row in diffs["by_kind"].items()]
    rows.append(["all", diffs["precision"], diffs["recall"], diffs["n"], diffs["found"]])
    table("Changes between revisions", ["kind", "precision", "recall", "recorded", "found"], rows)
    if found["temporal"] is not None:
        console.print(f"start, end and rank: {found['temporal']['right']} of {found['temporal']['n']} right", highlight=False)


@app.command()
@reported
def unstated(
    night: Annotated[str | None, typer.Option(help="One night; default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Properties that came in dumps or over the stream and that no template states, the most frequent first."""
    from tasks.workspace import warehouse
    from warehouse.ingest.entity_tables import unstated as listed

    with warehouse(configure()) as wh:
        found = listed(wh, night)
    if as_json:
        emit_json([one.model_dump() for one in found])
        return
    table(
        "Properties without templates",
        ("property", "label", "statements"),
        [(one.pid, one.label or None, one.statements) for one in found],
    )
