"""`errata audit` and `errata key`: recheck everything that was done, and the keys that sign it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.shared import Json, console, emit_json, errors, reported, table
from tasks.settings import configure


@reported
def audit(
    deep: Annotated[bool, typer.Option("--deep", help="Also ask production everything again and compare.")] = False,
    exported: Annotated[Path | None, typer.Option("--export", help="Also check this export of the warehouse.")] = None,
    lineage: Annotated[str | None, typer.Option(help="Lineage; default from the settings.")] = None,
    as_json: Json = False,
) -> None:
    """Recheck the audit chain, every object, decision and signature, and production's weights; exit code 1 on a break."""
    settings = configure(lineage=lineage)
    from tasks.recheck.audit import audit

    with errors.status("auditing", spinner="dots") as shown:
        if not sys.stderr.isatty():
            shown.stop()
        found = audit(settings, deep=deep, exported=exported, progress=lambda what: shown.update(f"auditing: {what}"))
    if as_json:
        emit_json(found.model_dump(mode="json"))
    else:
        console.print(
            f"{found.entries} entries of the trail, {found.checkpoints} promoted checkpoints, {found.objects} objects, "
            f"{found.signatures} signatures" + (", production's answers" if found.evaluated else ""),
            highlight=False,
        )
        for word in found.notes:
            console.print(word, highlight=False, markup=False)
        if found.breaks:
            table(f"{len(found.breaks)} breaks", ("what", "found"), [(b.what, b.found) for b in found.breaks])
        else:
            console.print("everything holds")
    if found.breaks:
        raise typer.Exit(1)


@reported
def key(
    private: Annotated[Path, typer.Option(help="File for the private key, its owner's alone.")] = Path("errata-key.pem"),
    public: Annotated[Path, typer.Option(help="File for the public key.")] = Path("errata-key.pub"),
    as_json: Json = False,
) -> None:
    """Make a key pair that signs promoted checkpoints; give its private half as `signing.private_key`."""
    from warehouse.checkpoints.signing import generate_key

    configure()
    made = generate_key(private, public)
    if as_json:
        emit_json({"private": str(private), "public": str(public), "fingerprint": made})
    else:
        console.print(f"{private} and {public}, fingerprint {made[:16]}", highlight=False)
