"""The command `errata`.

errata demo                 six recorded nights on the embedded model
errata refresh              the next night on the main lineage
errata status               what every night did
errata pull --out DIR       the production model as a Hugging Face folder
"""

from __future__ import annotations

import atexit
import logging
import os
import shlex
import sys
import threading
import traceback
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import typer
from rich.logging import RichHandler
from typer.core import TyperGroup
from typer.main import get_command

from flows.commands import (
    dashboard,
    demo,
    deploy,
    doctor,
    editors,
    entities,
    export,
    history,
    ingest,
    inside,
    measure,
    models,
    nights,
    proof,
    queue,
    reference,
    revert,
    serving,
    state,
    withdraw,
    world,
)
from flows.commands.shared import JsonDocument, emit_error, errors, reported, tell_error
from flows.commands.stopping import how_far, listen, received, stop_server
from tasks.settings import configure
from warehouse.errors import UsageError

#: Root of all usage errors, of whichever click this Typer comes with.
UsageProblem: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class Commands(TyperGroup):
    """The commands; with --json a wrong call has its document too."""

    def main(
        self,
        args: Any = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        JsonDocument.is_written = False
        try:
            code = super().main(given, prog_name, complete_var, False, windows_expand_args, **extra)
        except UsageProblem as problem:
            code = problem.exit_code
            _show_usage(problem)
            if "--json" in given:
                emit_error("UsageError", problem.format_message(), f"{_path(problem, prog_name)} --help")
        except typer.Abort:
            errors.print("Aborted.")
            code = 1
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


def _path(problem: Any, prog_name: str | None) -> str:
    return problem.ctx.command_path if getattr(problem, "ctx", None) is not None else prog_name or "errata"


def _show_usage(problem: Any) -> None:
    from typer.rich_utils import rich_format_error

    rich_format_error(problem)


app = typer.Typer(
    name="errata",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="Keeps the facts in a language model fresh, night after night, and can prove what it did.\n\n"
    "Start with [bold]errata demo[/bold]. Settings come from errata.toml and ERRATA_* variables; state lives in one "
    "folder (ERRATA_HOME, default .errata). Every command takes --json.",
)
app.add_typer(editors.app, name="editors")
app.add_typer(state.config_app, name="config")
app.add_typer(reference.app, name="reference")
app.add_typer(models.app, name="models")
app.add_typer(world.app, name="world")
app.add_typer(state.warehouse_app, name="warehouse")
app.add_typer(state.store_app, name="store")
app.add_typer(state.validate_app, name="validate")
app.add_typer(entities.app, name="entities")
app.add_typer(queue.quarantine_app, name="quarantine")
app.add_typer(queue.conflicts_app, name="conflicts")
app.add_typer(ingest.app, name="ingest")
app.add_typer(serving.app, name="serving")
app.add_typer(withdraw.night_app, name="night")
app.command()(nights.refresh)
app.command()(nights.status)
app.command()(nights.records)
app.command()(nights.ask)
app.command()(nights.pull)
app.command()(export.export)
app.command()(revert.revert)
app.command()(nights.rollback)
app.command()(editors.prepare)
app.command()(history.log)
app.command()(history.show)
app.command()(history.diff)
app.command()(history.blame)
app.command()(proof.audit)
app.command()(proof.key)
app.command()(inside.locate)
app.command()(inside.footprint)
app.command()(measure.benchmark)
app.command()(measure.leaderboard)
app.command()(measure.bench)
app.command()(measure.device)
app.command()(doctor.doctor)
app.command()(deploy.deploy)
app.command()(ingest.replay)
app.command()(dashboard.dashboard)
app.command()(demo.demo)


def _log_level(name: str) -> int:
    """A level of logging by its name in any case, or its number; nothing means warnings.

    Raises:
        UsageError: no such level.
    """
    name = name.strip()
    levels = logging.getLevelNamesMapping()
    if name.isdecimal():
        return int(name)
    if (name.upper() or "WARNING") not in levels:
        raise UsageError(f"ERRATA_LOG={name!r} is no level; there are debug, info, warning, error and critical")
    return levels[name.upper() or "WARNING"]


def main() -> None:
    """Entry point of the console script: quiet libraries first, then the command, then an end without a traceback."""
    with_json = "--json" in sys.argv[1:]
    if with_json:
        # Whatever else would print to standard output, in this process or in one that it starts, goes to standard error.
        JsonDocument.out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
    listen(partial(_end_at_once, with_json))
    leave(run(with_json))


def run(with_json: bool = False) -> int:
    """Run the command of `sys.argv`; returns its exit code.

    An error that nobody foresaw keeps its traceback, above the line that says what it was.
    """
    try:
        # Help needs no settings, and is what a person asks for whose settings are broken.
        if "--help" not in sys.argv[1:]:
            reported(configure)(writes=False)
        level = reported(_log_level)(os.environ.get("ERRATA_LOG", ""))
        # Prefect would print a traceback for every error that the command reports in one line.
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
        # The level on the handler too: some libraries set their own loggers to INFO.
        logging.basicConfig(level=level, format="%(message)s", handlers=[RichHandler(level, console=errors)])
        code = get_command(app).main(prog_name="errata", standalone_mode=False)
        code = code if isinstance(code, int) else 0
    except typer.Exit as stop:
        # A broken errata.toml or level: said in one line already, and no command can run.
        code = stop.exit_code
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        traceback.print_exception(error)
        tell_error(type(error).__name__, f"{error} (nobody foresaw this: please report it with the lines above)", how_far()[1])
        code = 1
    if code and (number := received()) is not None:
        return _tell_stopped(number, with_json)
    if code and with_json:
        emit_error(*(JsonDocument.told or ("Failed", f"the command ended with code {code}; standard error says why")))
    return code


def _tell_stopped(number: int, with_json: bool) -> int:
    """One sentence: where it stopped, and how to go on."""
    stop_server()
    place, command = how_far()
    again = f"run it again to go on: {command or shlex.join(['errata', *sys.argv[1:]])}"
    sentence = " ".join(part for part in ("stopped", place) if part) + "; " + again
    errors.print(sentence, markup=False, highlight=False, soft_wrap=True)
    if with_json:
        emit_error("Stopped", sentence, command)
    return 128 + number


def _end_at_once(with_json: bool, number: int) -> None:
    os._exit(_tell_stopped(number, with_json))


def leave(code: int) -> NoReturn:
    """End the process after everything that waits for its end, but without taking the interpreter apart.

    Prefect's threads stay alive until then and hold frames, and through them the DuckDB module: its binding (nanobind)
    reports every type and function that outlives the interpreter as leaked, 43 lines after the one that matters.
    """
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr, JsonDocument.out):
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
