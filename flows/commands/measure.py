"""`errata benchmark`, `errata bench` and `errata device`: how good the edits are, how fast, and on what."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from pydantic import ValidationError

from flows.commands.given import HELP, numbers_given
from flows.commands.shared import Json, console, emit_json, numbers_of, one_of, progress_of_parts, reported, table
from tasks.settings import configure
from warehouse.errors import UsageError, problems

if TYPE_CHECKING:
    # Seconds of import that only the command itself needs.
    from tasks.quality.rows import BenchmarkRow

ALL_MODES = "single,batch,sequential,sequential-batch"
SHOWN = ("SR", "GR", "locality/neighbourhood", "locality/relation_specificity", "SRR", "GRR", "DD/known", "perplexity_ratio")


@reported
def benchmark(
    editors: Annotated[str, typer.Option(help="Names, separated by commas, or `all`.")] = "r_rome,memit,ft_m,grace,ice",
    mode: Annotated[str, typer.Option(help=f"Modes, separated by commas: {ALL_MODES}.")] = "single",
    edits: Annotated[
        int | None, typer.Option(help="Edits of each editor and mode; default 100, or the last checkpoint.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Edits of a batch; 0: all in one.")] = 0,
    task: Annotated[str, typer.Option(help="modification, insertion or erasure.")] = "modification",
    split: Annotated[
        str, typer.Option(help="report; development for tuning; report-first for streams longer than the report split.")
    ] = "report",
    every: Annotated[int, typer.Option(help="In sequences, a point of the curve after so many edits.")] = 0,
    checkpoints: Annotated[
        str | None, typer.Option(help="In sequences, points of the curve after these numbers of edits: 100,300,1000.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help=HELP)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of edits.")] = 0,
    suite: Annotated[
        str | None,
        typer.Option(
            help="`survey`, all of the leaderboard, `scaling`, `real`, for a pretrained model, or some settings by name, "
            "separated by commas; what is measured already is not measured again."
        ),
    ] = None,
    rows_in: Annotated[
        list[Path] | None, typer.Option("--rows", help="With --suite: rows.jsonl files whose settings are not measured again.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for leaderboard.md, scores.svg and curves.svg.")] = None,
    as_json: Json = False,
) -> None:
    """Measure editors in the survey's modes on facts that the model knows; rows go to the warehouse."""
    settings = configure()
    from editors.catalogue import names as all_editors
    from tasks.quality.benchmark import run_benchmark
    from tasks.quality.requests import Split, Task

    points = numbers_of("--checkpoints", checkpoints) if checkpoints else []
    edits = edits or max([*points, 0]) or 100
    names = all_editors() if editors == "all" else editors.split(",")
    overrides = numbers_given(set_ or (), names)
    # Said before anything is measured, which takes minutes.
    modes = [one_of("--mode", name, ALL_MODES.split(",")) for name in mode.split(",")]
    one_of("--task", task, get_args(Task))
    one_of("--split", split, get_args(Split))
    with progress_of_parts() as advance:
        command = "errata " + " ".join(sys.argv[1:])
        if suite is not None:
            from tasks.quality.suite import cells_named, run_suite

            cells = cells_named(suite.split(","))
            rows = run_suite(settings, names, cells, known=_read(rows_in or []), command=command, progress=advance)
        else:
            rows = run_benchmark(
                settings,
                names,
                modes,  # pyright: ignore[reportArgumentType]
                edits,
                batch_size,
                split=split,  # pyright: ignore[reportArgumentType]
                task=task,  # pyright: ignore[reportArgumentType]
                overrides=overrides,
                seed=seed,
                every=every,
                checkpoints=points,
                command=command,
                progress=advance,
            )
    if out is not None:
        _write(out, "leaderboard", rows)
    if as_json:
        emit_json([row.model_dump(mode="json") for row in rows])
        return
    table(
        f"{edits} edits, {task}, {split} split",
        ("editor", "mode", *SHOWN, "s/edit", "patch bytes", "note"),
        [[r.editor, r.mode, *(_value(r, name) for name in SHOWN), r.seconds_per_edit, r.patch_bytes, r.note] for r in rows],
    )


def _read(paths: Sequence[Path]) -> list[BenchmarkRow]:
    from tasks.quality.rows import BenchmarkRow

    rows = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{path} cannot be read: {error}; give a file of rows, as `errata leaderboard --out` writes"
            ) from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    rows.append(BenchmarkRow.model_validate_json(line))
                except ValidationError as error:
                    raise UsageError(f"{path}, line {number}: no row of a benchmark: {problems(error)}") from error
    return rows


def _before(name: str) -> str:
    """What the names of a leaderboard's other files begin with."""
    return "" if name == "leaderboard" else f"{name}-"


def _write(out: Path, name: str, rows: Sequence[BenchmarkRow]) -> None:
    from tasks.quality.leaderboard import leaderboard_markdown
    from tasks.quality.leaderboard_figures import curves_svg, scores_svg

    out.mkdir(parents=True, exist_ok=True)
    before = _before(name)
    (out / f"{name}.md").write_text(leaderboard_markdown(rows), encoding="utf-8")
    (out / f"{before}scores.svg").write_text(scores_svg(rows), encoding="utf-8")
    (out / f"{before}curves.svg").write_text(curves_svg(rows), encoding="utf-8")


@reported
def leaderboard(
    rows: Annotated[list[Path] | None, typer.Argument(help="JSON-lines files of rows; default: the warehouse.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for leaderboard.md, the figures and rows.jsonl.")] = None,
    name: Annotated[
        str, typer.Option(help="With --out: another name, such as a model's; its figures and rows are named after it.")
    ] = "leaderboard",
    as_json: Json = False,
) -> None:
    """The newest measurement of every editor and setting as Markdown and figures; `rows.jsonl` keeps the numbers."""
    from tasks.quality.leaderboard import leaderboard_markdown
    from tasks.quality.rows import load_rows, newest
    from tasks.workspace import warehouse

    settings = configure()
    if rows:
        found = newest(_read(rows))
    else:
        with warehouse(settings) as wh:
            found = load_rows(wh)
    if out is not None:
        _write(out, name, found)
        # Here alone: a run that measured some rows must not take the place of all that were kept.
        (out / f"{_before(name)}rows.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in found), encoding="utf-8")
    if as_json:
        emit_json([row.model_dump(mode="json") for row in found])
    else:
        console.print(str(out) if out else leaderboard_markdown(found), markup=False, highlight=False)


def _value(row: Any, name: str) -> float | None:
    found = row.scores.get(name)
    return None if found is None else found.value


@reported
def bench(
    case: Annotated[
        str,
        typer.Argument(
            help="edit-ledger, edit-r_rome, edit-memit-100, edit-grace, sequence-malmen, evaluate, few-shot, nightly-500, "
            "night-scale, ingest, peak-memory; all."
        ),
    ],
    model: Annotated[str | None, typer.Option(help="Folder or hub id; default from the settings.")] = None,
    threads: Annotated[int, typer.Option(help="Threads; 0: torch's default.")] = 0,
    repeat: Annotated[int, typer.Option(help="Repeats; medians are shown.")] = 3,
    as_json: Json = False,
) -> None:
    """Speed of one case, with the slow, obvious form beside it in the same run where there is one."""
    settings = configure({"model": {"name": model}} if model else None)
    from tasks.speed.bench import CASES, result_lines, run_case

    results = [run_case(name, settings, threads, repeat) for name in (CASES if case == "all" else (case,))]
    if as_json:
        emit_json([r.model_dump(mode="json") for r in results])
        return
    for result in results:
        table(result.case, ("figure", "value"), result_lines(result))
    console.print("Ratios compare forms in one process; absolute times depend on the machine.", highlight=False)


@reported
def device(
    shape: Annotated[str, typer.Option(help="Size of the random model: 8b, 1b or tiny.")] = "8b",
    on: Annotated[str, typer.Option("--device", help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    editors: Annotated[str, typer.Option(help="Names, separated by commas; empty: six of them.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write the table there as Markdown.")] = None,
    as_json: Json = False,
) -> None:
    """Edits, probes and memory of a device on random weights of Llama's shape; needs no network and no model."""
    from tasks.serving.models import device_of
    from tasks.speed.shapes import EDITORS, SHAPES, measure_shape, shape_markdown, write_shape

    one_of("--shape", shape, tuple(SHAPES))
    chosen = {name: EDITORS.get(name, 1) for name in editors.split(",")} if editors else EDITORS
    result = measure_shape(shape, device_of(on), chosen, report=lambda line: typer.echo(line, err=True))
    if out is not None:
        write_shape(result, out)
    if as_json:
        emit_json(result.model_dump(mode="json"))
    else:
        console.print(str(out) if out else shape_markdown(result), markup=False, highlight=False)
