"""What every command shares: `--json`, tables, errors as one line, progress on a terminal."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ParamSpec, TextIO, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from flows.commands.stopping import how_far, stop_server
from flows.commands.trouble import trouble_of
from warehouse.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else.")]
#: Wide enough for a night's line where no terminal sets the width (a log, a pipe).
console = Console(width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True)
#: Of a long command whose standard error is no terminal.
SECONDS_BETWEEN_LINES = 15.0


class JsonDocument:
    """Where the one JSON document of a command goes, and whether it has gone."""

    #: Set by the program, whose standard output is then closed to everything else; None: standard output.
    out: TextIO | None = None
    is_written = False
    #: What `tell_error` told last: kind, message, next command.
    told: tuple[str, str, str] | None = None


def emit_json(value: Any) -> None:
    """One JSON document on standard output."""
    out = JsonDocument.out or sys.stdout
    out.write(json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n")
    out.flush()
    JsonDocument.is_written = True


def emit_error(kind: str, message: str, next_command: str = "") -> None:
    """The document of a command that failed, unless it has had one already."""
    if not JsonDocument.is_written:
        emit_json({"error": kind, "message": message} | ({"next": next_command} if next_command else {}))


def tell_error(kind: str, message: str, next_command: str = "") -> None:
    """The last lines that a person sees: the reason, and the next command where a night stands half done."""
    JsonDocument.told = (kind, message, next_command)
    if stop_server() and message.startswith("Prefect"):
        # The server may have been cut off in the middle of a line.
        errors.print()
    errors.print(f"[red]error[/red] ({kind}): ", end="")
    errors.print(message, markup=False, highlight=False, soft_wrap=True)
    if next_command:
        errors.print(f"what is done is kept; to go on: {next_command}", markup=False, highlight=False, soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for people; None shows as a dash, and what stands in square brackets is text like any other."""
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*("-" if v is None else f"{v:.3f}" if isinstance(v, float) else escape(str(v)) for v in row))
    console.print(drawn)


def _known_errors() -> tuple[type[Exception], ...]:
    """The roots of our packages. Anything else, a plain ValueError too, is our bug and keeps its traceback."""
    from checks.errors import ChecksError
    from editors.errors import EditorError
    from tasks.errors import TasksError
    from warehouse.errors import WarehouseError

    return (UsageError, WarehouseError, EditorError, ChecksError, TasksError)


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors that a user can mend into one line on standard error and exit code 1; with --json into a document."""
    return _reported(command, 1)


def reported_with(code: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """`reported` with another exit code, for commands whose code 1 means something else."""
    return functools.partial(_reported, code=code)


def _reported(command: Callable[P, R], code: int) -> Callable[P, R]:
    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        JsonDocument.is_written = False
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            is_known = isinstance(error, _known_errors())
            trouble = "" if is_known else trouble_of(error)
            kind, message = type(error).__name__, trouble or str(error)
            _, go_on = how_far()
            if kwargs.get("as_json"):
                emit_error(kind, message, go_on)
            if not is_known and not trouble:
                raise
            tell_error(kind, message, go_on)
            raise typer.Exit(code) from error

    return wrapper


@contextmanager
def progress_of_parts() -> Iterator[Callable[[str, int, int | None], None]]:
    """What a long command of several parts calls with (part, done, total), as often as it likes; total None: it has begun.

    A terminal shows a bar for each part; elsewhere (a log, a pipe) a line on standard error says how far a part is, now
    and then and at its end.
    """
    if sys.stderr.isatty():
        with Progress(console=errors, transient=True) as bar:
            bars: dict[str, TaskID] = {}

            def draw(what: str, done: int, total: int | None) -> None:
                if what not in bars:
                    bars[what] = bar.add_task(what, total=total)
                bar.update(bars[what], completed=done, total=total)

            yield draw
        return
    begun: dict[str, float] = {}
    last = time.monotonic()

    def tell(what: str, done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        start = begun.setdefault(what, now)
        if total is None:
            errors.print(f"{what}: begun", highlight=False, markup=False)
        elif now - last >= SECONDS_BETWEEN_LINES or done == total:
            last = now
            errors.print(f"{what}: {100 * done // max(1, total)}% after {now - start:.0f} s", highlight=False, markup=False)

    yield tell


@contextmanager
def progress_of(what: str) -> Iterator[Callable[[int, int], None]]:
    """What a long command calls with (done, total); it is said at once that it has begun."""
    with progress_of_parts() as parts:
        parts(what, 0, None)
        yield lambda done, total: parts(what, done, total)


def numbers_of(option: str, text: str) -> list[int]:
    """Whole numbers separated by commas, as an option takes them.

    Raises:
        UsageError: something between the commas is none.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r}: expected whole numbers separated by commas") from None


def one_of(option: str, value: str, known: Sequence[str]) -> str:
    """The value of an option that takes one of a few words; UsageError where it is another."""
    if value not in known:
        raise UsageError(f"{option} {value!r}: expected one of {', '.join(known)}")
    return value
