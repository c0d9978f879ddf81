"""What every command shares: `--json`, tables, errors as one line, progress on a terminal."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

P = ParamSpec("P")
R = TypeVar("R")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else.")]
#: Wide enough for a night's line where no terminal sets the width (a log, a pipe).
console = Console(width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True)


def emit_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for people; None shows as a dash, and what stands in square brackets is text like any other."""
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*("-" if v is None else f"{v:.3f}" if isinstance(v, float) else escape(str(v)) for v in row))
    console.print(drawn)


def _known_errors() -> tuple[type[BaseException], ...]:
    from pydantic import ValidationError

    from checks.errors import ChecksError
    from checks.evaluation import EvaluationError
    from checks.gates import PolicyError
    from editors.errors import EditorError
    from tasks.workspace import LineageBusy
    from warehouse.errors import WarehouseError

    # Also what a wrong argument raises. Anything else is our bug and keeps its traceback.
    return (
        WarehouseError, EditorError, ChecksError, EvaluationError, PolicyError, LineageBusy, ValidationError,
        ValueError, FileNotFoundError,
    )  # fmt: skip


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors that a user can mend into one line on standard error and exit code 1."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            if not isinstance(error, _known_errors()):
                raise
            if kwargs.get("as_json"):
                emit_json({"error": type(error).__name__, "message": str(error)})
            errors.print(f"[red]error[/red] ({type(error).__name__}): ", end="")
            errors.print(str(error), markup=False, highlight=False)
            raise typer.Exit(1) from error

    return wrapper
