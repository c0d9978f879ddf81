"""`errata doctor`: can tonight's night run here, and what to do where it cannot?"""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.shared import Json, console, emit_json, one_of, reported_with
from tasks.settings import configure

COLOURS = {"ok": "green", "warning": "yellow", "fault": "red"}
#: Of a doctor who could not begin, as the worst of monitors' codes.
UNKNOWN = 3


@reported_with(UNKNOWN)
def doctor(
    lineage: Annotated[str | None, typer.Option(help="Lineage; default from the settings.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="A check to leave out, such as `model`, which loads it.")] = None,
    as_json: Json = False,
) -> None:
    """Check versions, machine, store, source, servers, Prefect and nights; exit code 0 ok, 1 warnings, 2 faults, 3 unknown."""
    settings = configure(lineage=lineage)
    from tasks.doctor.examine import CHECKS, examine
    from tasks.doctor.health import EXIT_CODES, Health, worst

    leave_out = tuple(one_of("--without", name, list(CHECKS)) for name in without or ())
    lines: list[Health] = []
    for line in examine(settings, leave_out=leave_out):
        lines.append(line)
        if not as_json:
            colour = COLOURS[line.level]
            console.print(f"[{colour}]{line.level:8}[/{colour}]{line.check:10}", end="")
            console.print(line.found, markup=False, highlight=False, soft_wrap=True)
            if line.to_do:
                console.print(f"{'':18}-> {line.to_do}", markup=False, highlight=False, soft_wrap=True)
    level = worst(lines)
    if as_json:
        emit_json({"level": level, "checks": [line.model_dump(mode="json") for line in lines]})
    else:
        console.print(f"{len(lines)} checks: {', '.join(f'{sum(x.level == n for x in lines)} {n}' for n in EXIT_CODES)}")
    if level != "ok":
        raise typer.Exit(EXIT_CODES[level])
