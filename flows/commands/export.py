"""`errata export`: a checkpoint for programs that are not Errata."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editors.export.formats import ExportFormat, GgufType
from flows.commands.shared import Json, console, emit_json, reported, table
from tasks.settings import configure
from warehouse.errors import UsageError


@reported
def export(
    checkpoint: Annotated[str, typer.Argument(help="base, production, a channel, or the start of a checkpoint id.")],
    out: Annotated[Path, typer.Option(help="A new or empty folder; of a GGUF a new file.")],
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format", help="A Hugging Face folder, one GGUF file (llama.cpp, Ollama), or a LoRA adapter for the base."
        ),
    ] = "hf",
    kind: Annotated[
        GgufType | None, typer.Option("--type", help="With --format gguf: numbers of the matrices; default F32.")
    ] = None,
    peft: Annotated[bool, typer.Option("--peft", help="The same as --format peft.")] = False,
    max_rank: Annotated[
        int | None, typer.Option(help="With --format peft: cut updates of higher rank down to this one.")
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also where the weights do not show every edit.")] = False,
    lineage: Annotated[str | None, typer.Option(help="Lineage; default from the settings.")] = None,
    as_json: Json = False,
) -> None:
    """Write any checkpoint, promoted or not, as a Hugging Face folder, as one GGUF file, or its updates as a LoRA adapter.

    Refused where the files would not show every edit: memories, texts, and slots on an architecture without room for them.
    """
    if peft and form == "gguf":
        raise UsageError("--peft is --format peft; give one of the two forms")
    settings = configure(lineage=lineage)
    from tasks.serving.export import export

    form = "peft" if peft else form
    found = export(settings, checkpoint, out, form=form, kind=kind, max_rank=max_rank, anyway=anyway)
    if as_json:
        emit_json(found.model_dump(mode="json"))
        return
    console.print(f"{out}: {found.form} of checkpoint {found.checkpoint_id[:12]}, {found.patches} patches", highlight=False)
    if found.room:
        console.print(found.room, highlight=False)
    if found.wider:
        console.print(f"{found.wider} matrices stayed float16: their rows are no whole blocks of 32", highlight=False)
    if found.modules:
        table(
            "Modules",
            ("module", "rank", "relative error"),
            [(m.module, m.rank, f"{m.relative_error:.1e}") for m in found.modules],
        )
