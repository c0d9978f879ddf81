"""`errata ingest dump`: a first fill from a Wikidata dump, or a catch-up from one dump to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from flows.commands.shared import Json, console, emit_json, errors, reported, table
from tasks.settings import configure

#: Rows of the list of properties without templates; `--json` has them all.
MAX_ROWS = 20


@reported
def dump(
    old: Annotated[Path, typer.Argument(help="A Wikidata JSON dump or a slice: plain, .gz, .bz2 or .xz.")],
    new: Annotated[Path | None, typer.Argument(help="A later dump: the differences become update records.")] = None,
    night: Annotated[str | None, typer.Option(help="Night of the facts or records; default: today.")] = None,
    as_json: Json = False,
) -> None:
    """Fill the warehouse from a dump, or turn the differences of two dumps into the update records of a night."""
    settings = configure()
    from tasks.workspace import todays_night, warehouse
    from warehouse.ingest.dump_ingest import catch_up, fill
    from warehouse.world.templates import templates_of

    now = datetime.now(UTC)
    night = night or todays_night(settings)
    opener = partial(warehouse, settings)
    with opener() as wh:
        stated = templates_of(wh).keys()
    settings.work.mkdir(parents=True, exist_ok=True)
    with _progress(shown=not as_json) as progress:
        if new is None:
            report = fill(opener, old, night, stated, now=now, folder=settings.work, progress=progress)
        else:
            report = catch_up(opener, old, new, night, stated, folder=settings.work, progress=progress)
    if as_json:
        emit_json(report.model_dump(mode="json"))
        return
    done = f"{report.facts} facts" if new is None else f"{report.records} update records"
    read = f"{report.entities} items in {report.bytes_read} bytes read"
    console.print(f"night {night}: {read}, {done}, {report.aliases} aliases", highlight=False)
    rows = [
        (kind, reason, n) for kind in ("set_aside", "left_out", "skipped") for reason, n in getattr(report, kind).items() if n
    ]
    if report.only_in_old:
        rows.append(("skipped", "only_in_old", report.only_in_old))
    if rows:
        table("Not used", ("what", "reason", "number"), rows)
    if report.unstated:
        table(
            "Properties without templates",
            ("property", "label", "statements"),
            [(p.pid, p.label or None, p.statements) for p in report.unstated[:MAX_ROWS]],
        )


@contextmanager
def _progress(*, shown: bool) -> Iterator[partial[None] | None]:
    """A bar over the bytes of each file on a terminal; nothing elsewhere."""
    if not shown or not errors.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        yield partial(_advance, bar, {})


def _advance(bar: Progress, started: dict[Path, TaskID], path: Path, done: int) -> None:
    if path not in started:
        started[path] = bar.add_task(path.name, total=path.stat().st_size)
    bar.update(started[path], completed=done)
