"""`errata export`: a checkpoint for programs that are not Errata."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.shared import Json, console, emit_json, reported, table
from tasks.settings import configure


@reported
def export(
    checkpoint: Annotated[str, typer.Argument(help="base, production, a channel, or the start of a checkpoint id.")],
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    peft: Annotated[bool, typer.Option("--peft", help="A LoRA adapter for the base model instead of a whole model.")] = False,
    max_rank: Annotated[int | None, typer.Option(help="With --peft: cut updates of higher rank down to this one.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also where the weights do not show every edit.")] = False,
    lineage: Annotated[str | None, typer.Option(help="Lineage; default from the settings.")] = None,
    as_json: Json = False,
) -> None:
    """Write any checkpoint, promoted or not, as a Hugging Face folder, or its weight updates as a LoRA adapter.

    Refused where the files would not show every edit: memories, texts, and slots on an architecture without room for them.
    """
    settings = configure(lineage=lineage)
    from tasks.serving.export import export

    found = export(settings, checkpoint, out, peft=peft, max_rank=max_rank, anyway=anyway)
    if as_json:
        emit_json(found.model_dump(mode="json"))
        return
    console.print(f"{out}: {found.form} of checkpoint {found.checkpoint_id[:12]}, {found.patches} patches", highlight=False)
    if found.room:
        console.print(found.room, highlight=False)
    if found.modules:
        table(
            "Modules",
            ("module", "rank", "relative error"),
            [(m.module, m.rank, f"{m.relative_error:.1e}") for m in found.modules],
        )
