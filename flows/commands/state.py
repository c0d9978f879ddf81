"""`errata config`, `warehouse`: what is in force and what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.shared import Json, console, emit_json, reported, table
from tasks.settings import configure, origins

config_app = typer.Typer(help="Settings: `errata.toml`, then ERRATA_* variables over it.", no_args_is_help=True)
warehouse_app = typer.Typer(help="The DuckDB warehouse.", no_args_is_help=True)


@config_app.command()
@reported
def show(as_json: Json = False) -> None:
    """Every setting, its value in force, and where it comes from."""
    settings = configure(writes=False)
    rows = []
    for name, origin in origins(settings).items():
        value: object = settings
        for part in name.split("."):
            value = getattr(value, part)
        rows.append({"setting": name, "value": value, "from": origin})
    if as_json:
        emit_json(rows)
    else:
        table("Settings in force", ("setting", "value", "from"), [list(r.values()) for r in rows])


@warehouse_app.command()
@reported
def export(
    out: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    as_json: Json = False,
) -> None:
    """Write every table as JSON lines; the audit trail keeps the digest of the whole (`errata audit --export`)."""
    from tasks.trail import export_warehouse

    digests = export_warehouse(configure(), out)
    if as_json:
        emit_json({"out": str(out), "files": digests})
    else:
        console.print(f"{len(digests)} tables in {out}", highlight=False)


@warehouse_app.command()
@reported
def publish(as_json: Json = False) -> None:
    """Bring the copy that the dashboard reads up to date; a night does so at its end."""
    from warehouse.dashboard.published import publish

    settings = configure()
    publish(settings.warehouse_path, settings.published_path)
    if as_json:
        emit_json({"published": str(settings.published_path), "bytes": settings.published_path.stat().st_size})
    else:
        console.print(f"published as {settings.published_path}", highlight=False)


@warehouse_app.command()
@reported
def check(as_json: Json = False) -> None:
    """Verify references, digests and orphans; exit code 1 where anything is wrong."""
    from tasks.workspace import warehouse
    from warehouse.upkeep.integrity import check

    with warehouse(configure()) as wh:
        findings = check(wh)
    if as_json:
        emit_json([finding.model_dump(mode="json") for finding in findings])
    else:
        for finding in findings:
            console.print(str(finding), markup=False, highlight=False)
        console.print("the warehouse is sound" if not findings else f"{len(findings)} findings")
    if findings:
        raise typer.Exit(1)


store_app = typer.Typer(help="The checkpoint store: a folder or a bucket.", no_args_is_help=True)


@store_app.command("check")
@reported
def check_store(as_json: Json = False) -> None:
    """Ask the store whether it keeps conditional writes and checksums; exit code 1 where it does not."""
    from tasks.workspace import store_of
    from warehouse.checkpoints.store_check import REQUIREMENT, check_store

    store = store_of(configure())
    findings = check_store(store)
    unfit = [finding for finding in findings if not finding.is_kept]
    if as_json:
        emit_json({"store": store.url, "is_fit": not unfit, "findings": [one.model_dump(mode="json") for one in findings]})
    else:
        rows = [("kept" if finding.is_kept else "broken", finding.check, finding.found or None) for finding in findings]
        table(store.url, ("promise", "asked", "what the server did"), rows)
        console.print(f"the store cannot be used: {REQUIREMENT}" if unfit else "the store can be used", highlight=False)
    if unfit:
        raise typer.Exit(1)


validate_app = typer.Typer(help="The rules that judge update records.", no_args_is_help=True)


@validate_app.command()
@reported
def score(
    folder: Annotated[Path, typer.Argument(help="Nights with truth labels, as night-NN.events.jsonl and .truth.jsonl.")],
    as_json: Json = False,
) -> None:
    """Replay labelled nights and hold every verdict against its label: F1 over verdicts, hard and soft apart."""
    configure()
    from checks.scoring.nights import score_nights

    result = score_nights(folder)
    if as_json:
        emit_json(result)
        return
    rows = [(name, result[name]["macro_f1"], result[name].get("n")) for name in ("hard", "soft")]
    table("Verdicts against labels", ("labels", "macro F1", "records"), rows)
