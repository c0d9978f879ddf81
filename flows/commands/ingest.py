"""`errata ingest` and `errata replay`: the live source, and a recording of it to try it on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands import dumps
from flows.commands.shared import Json, console, emit_json, reported, table
from tasks.settings import configure

app = typer.Typer(help="Bring updates into the warehouse without a night's run.", no_args_is_help=True)
app.command()(dumps.dump)


@app.command()
@reported
def wikidata(
    replay: Annotated[str, typer.Option(help="Address of `errata replay`; default: the real stream.")] = "",
    night: Annotated[str, typer.Option(help="Night to fill; default: today's.")] = "",
    since: Annotated[str, typer.Option(help="ISO time to begin at where no cursor is kept; default: now.")] = "",
    until: Annotated[str, typer.Option(help="End at HH:MM (UTC) or an ISO time.")] = "",
    max_events: Annotated[int, typer.Option(help="End after so many new events; 0: without end.")] = 0,
    idle: Annotated[float | None, typer.Option(help="End after so many seconds without a new event (replay: 2).")] = None,
    properties: Annotated[str, typer.Option(help="P6,P35 or all; default: those that the warehouse knows.")] = "",
    latest: Annotated[bool, typer.Option("--latest", help="Compare with current documents, 50 a request.")] = False,
    as_json: Json = False,
) -> None:
    """Read Wikidata's stream of recent changes into a night; `errata refresh` then runs that night.

    Goes on from where the last run ended. Stop it as you like: what was read is kept, and nothing twice.
    """
    settings = configure()
    from tasks.night.live_ingest import IngestOptions, ingest_wikidata

    options = IngestOptions(
        night=night,
        replay=replay,
        since=since,
        until=until,
        max_events=max_events,
        idle_s=idle,
        properties=tuple(name.strip() for name in properties.split(",") if name.strip()),
        mode="latest" if latest else "revisions",
    )
    found = ingest_wikidata(settings, options)
    emit_json(found) if as_json else _show(found)


def _show(found: dict[str, Any]) -> None:
    for part in ("events", "refused", "outcomes", "other_properties"):
        rows = list(found.get(part, {}).items())[:20]
        if rows:
            table(part.replace("_", " "), ("what", "number"), rows)
    run = found["run"]
    console.print(
        f"{found['night']}: {found['records']} records, {found['pending']} events wait; this run read {run['frames']} events "
        f"in {run['seconds']} s with {run['requests']} requests",
        highlight=False,
    )
    if run["problem"]:
        console.print(f"documents are missing: {run['problem']}", markup=False, highlight=False)


@reported
def replay(
    folder: Annotated[Path | None, typer.Argument(help="Folder with *.sse; default: the embedded sample.")] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0: a free one.")] = 8400,
    entities: Annotated[Path | None, typer.Option(help="Folder of entity documents; default: FOLDER/entities.")] = None,
    faults: Annotated[float, typer.Option(help="Chance of every kind of fault.")] = 0.0,
    drop: Annotated[float | None, typer.Option(help="Chance of a cut connection.")] = None,
    delay: Annotated[float | None, typer.Option(help="Chance of a pause.")] = None,
    duplicate: Annotated[float | None, typer.Option(help="Chance of an event sent again.")] = None,
    garbage: Annotated[float | None, typer.Option(help="Chance of a broken frame or document.")] = None,
    too_many: Annotated[float | None, typer.Option("--429", help="Chance of HTTP 429.")] = None,
    unavailable: Annotated[float | None, typer.Option("--503", help="Chance of HTTP 503.")] = None,
    lag: Annotated[float | None, typer.Option(help="Chance of the API's maxlag error.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the faults.")] = 0,
    rate: Annotated[float, typer.Option(help="Events a second; 0: as fast as they are read.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Serve a recorded stream with its entity documents on this machine, with faults on demand; Ctrl-C ends it."""
    configure()
    from warehouse.reference import HERE
    from warehouse.stream.recording import load_recording
    from warehouse.stream.replay import KINDS, Faults, ReplayServer

    recording = load_recording(folder or HERE / "stream", entities)
    own = {
        "drop": drop,
        "delay": delay,
        "duplicate": duplicate,
        "garbage": garbage,
        "too_many": too_many,
        "unavailable": unavailable,
        "lag": lag,
    }
    chances = dict.fromkeys(KINDS, faults) | {name: chance for name, chance in own.items() if chance is not None}
    server = ReplayServer(recording, port, Faults(**chances, seed=seed), rate=rate)
    about = {"url": server.url, "frames": len(recording.frames), "documents": len(recording.revisions)}
    if as_json:
        emit_json(about)
    else:
        console.print(f"{server.url} replays {about['frames']} frames with {about['documents']} documents", highlight=False)
        console.print(f"errata ingest wikidata --replay {server.url}", highlight=False)
    # A reader behind a pipe waits for the address.
    sys.stdout.flush()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.is_closing.set()
    finally:
        server.server_close()
