"""The command `errata`.

errata demo                 six recorded nights on the embedded model
errata refresh              the next night on the main lineage
errata status               what every night did
errata pull --out DIR       the production model as a Hugging Face folder
"""

from __future__ import annotations

import logging
import os

import typer
from rich.logging import RichHandler

from flows.commands import (
    demo,
    editors,
    entities,
    export,
    history,
    ingest,
    inside,
    measure,
    nights,
    proof,
    queue,
    reference,
    revert,
    state,
)
from flows.commands.shared import errors, reported
from tasks.settings import configure

app = typer.Typer(
    name="errata", no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_show_locals=False,
    help="Keeps the facts in a language model fresh, night after night, and can prove what it did.\n\n"
    "Start with [bold]errata demo[/bold]. Settings come from errata.toml and ERRATA_* variables; state lives in one "
    "folder (ERRATA_HOME, default .errata). Every command takes --json.",
)  # fmt: skip
app.add_typer(editors.app, name="editors")
app.add_typer(state.config_app, name="config")
app.add_typer(reference.app, name="reference")
app.add_typer(state.warehouse_app, name="warehouse")
app.add_typer(state.validate_app, name="validate")
app.add_typer(entities.app, name="entities")
app.add_typer(queue.quarantine_app, name="quarantine")
app.add_typer(queue.conflicts_app, name="conflicts")
app.add_typer(ingest.app, name="ingest")
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
app.command()(ingest.replay)
app.command()(demo.demo)


def main() -> None:
    """Entry point of the console script: quiet libraries first, then the command."""
    try:
        reported(configure)()
    except typer.Exit as stop:
        # A broken errata.toml: said in one line already, and no command can run.
        raise SystemExit(stop.exit_code) from None
    # Prefect would print a traceback for every error that the command reports in one line.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    level = os.environ.get("ERRATA_LOG", "WARNING")
    # The level on the handler too: some libraries set their own loggers to INFO.
    logging.basicConfig(level=level, format="%(message)s", handlers=[RichHandler(level, console=errors)])
    app()


if __name__ == "__main__":
    main()
