"""`errata benchmark` and `errata bench`: how good the edits are, and how fast."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from flows.commands.shared import Json, console, emit_json, errors, reported, table
from tasks.settings import configure

ALL_MODES = "single,batch,sequential,sequential-batch"
SHOWN = ("SR", "GR", "locality/neighbourhood", "locality/relation_specificity", "SRR", "GRR", "DD/known",
         "perplexity_ratio")  # fmt: skip


@reported
def benchmark(
    editors: Annotated[str, typer.Option(help="Names, separated by commas.")] = "r_rome,memit,ft_m,grace,ice",
    mode: Annotated[str, typer.Option(help=f"Modes, separated by commas: {ALL_MODES}.")] = "single",
    edits: Annotated[int, typer.Option(help="Edits of each editor and mode.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Edits of a batch; 0: all in one.")] = 0,
    task: Annotated[str, typer.Option(help="modification, insertion or erasure.")] = "modification",
    split: Annotated[str, typer.Option(help="report, or development for tuning.")] = "report",
    every: Annotated[int, typer.Option(help="In sequences, a point of the curve after so many edits.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="EDITOR.FIELD=JSON, over the preset.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of edits.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for leaderboard.md, scores.svg and curves.svg.")] = None,
    as_json: Json = False,
) -> None:
    """Measure editors in the survey's modes on facts that the model knows; rows go to the warehouse."""
    settings = configure()
    from tasks.benchmark import run_benchmark
    from tasks.leaderboard import curves_svg, leaderboard_markdown, scores_svg

    overrides: dict[str, dict[str, Any]] = {}
    for item in set_ or ():
        name, _, value = item.partition("=")
        editor, _, field = name.partition(".")
        overrides.setdefault(editor, {})[field] = json.loads(value)
    names, modes = editors.split(","), mode.split(",")
    with Progress(console=errors, transient=True, disable=not sys.stderr.isatty()) as bar:
        bars: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = bar.add_task(what, total=total)
            bar.update(bars[what], completed=done, total=total)

        rows = run_benchmark(
            settings, names, modes, edits, batch_size,  # pyright: ignore[reportArgumentType]
            split=split, task=task, overrides=overrides, seed=seed, every=every,  # pyright: ignore[reportArgumentType]
            command="errata " + " ".join(sys.argv[1:]), progress=advance,
        )  # fmt: skip
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "leaderboard.md").write_text(leaderboard_markdown(rows), encoding="utf-8")
        (out / "scores.svg").write_text(scores_svg(rows), encoding="utf-8")
        (out / "curves.svg").write_text(curves_svg(rows), encoding="utf-8")
    if as_json:
        emit_json([row.model_dump(mode="json") for row in rows])
        return
    table(
        f"{edits} edits, {task}, {split} split", ("editor", "mode", *SHOWN, "s/edit", "patch bytes", "note"),
        [[r.editor, r.mode, *(_value(r, name) for name in SHOWN), r.seconds_per_edit, r.patch_bytes, r.note] for r in rows],
    )  # fmt: skip


def _value(row: Any, name: str) -> float | None:
    found = row.scores.get(name)
    return None if found is None else found.value


@reported
def bench(
    case: Annotated[str, typer.Argument(help="edit-r_rome, edit-memit-100, edit-grace, evaluate, nightly-500, or all.")],
    model: Annotated[str | None, typer.Option(help="Folder or hub id; default from the settings.")] = None,
    threads: Annotated[int, typer.Option(help="Threads; 0: torch's default.")] = 0,
    repeat: Annotated[int, typer.Option(help="Repeats; medians are shown.")] = 3,
    as_json: Json = False,
) -> None:
    """Speed of one case, with the slow, obvious form beside it in the same run where there is one."""
    settings = configure({"model": {"name": model}} if model else None)
    from tasks.bench import CASES, result_lines, run_case

    results = [run_case(name, settings, threads, repeat) for name in (CASES if case == "all" else (case,))]
    if as_json:
        emit_json([r.model_dump(mode="json") for r in results])
        return
    for result in results:
        table(result.case, ("figure", "value"), result_lines(result))
    console.print("Ratios compare forms in one process; absolute times depend on the machine.", highlight=False)
