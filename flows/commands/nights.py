"""`errata refresh`, `status`, `demo` and what one asks of a lineage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.shared import Json, console, emit_json, reported, table
from flows.commands.stopping import at_once
from tasks.settings import configure
from warehouse.errors import UsageError
from warehouse.records import Manifest

if TYPE_CHECKING:
    from tasks.settings import Settings
    from warehouse.nights.record_list import JudgedRecord
    from warehouse.records import Manifest

Lineage = Annotated[str | None, typer.Option(help="Lineage; default from the settings.")]
STATUS_COLUMNS = (
    "night",
    "lineage",
    "editor",
    "records",
    "accepted",
    "edited",
    "SR",
    "GR",
    "locality",
    "SRR",
    "DD",
    "verdict",
    "seconds",
)


def status_row(line: dict[str, Any]) -> list[Any]:
    """One row of the status table from a run's line."""
    return [line["scores"].get(c, line.get(c)) for c in STATUS_COLUMNS]


@reported
def refresh(
    night: Annotated[str | None, typer.Option(help="A night of the source; default: the next unfinished one.")] = None,
    lineage: Lineage = None,
    editor: Annotated[str | None, typer.Option(help="Editor; `errata editors` lists them.")] = None,
    all_nights: Annotated[bool, typer.Option("--all", help="Run every unfinished night, in order.")] = False,
    late: Annotated[
        bool, typer.Option("--late", help="Take --night as received now, after nights that changed facts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a night: ingest, validate, edit, evaluate, gate, promote or reject, report.

    A finished night does nothing when it is run again; a broken one goes on from what is done.
    """
    if late and (night is None or all_nights):
        raise UsageError("--late moves one night behind the others: name it with --night")
    settings = configure(lineage=lineage, editor=editor)
    from flows.nightly import nightly_refresh
    from tasks.night.ingest import nights_of

    wanted = list(nights_of(settings)) if all_nights else [night]
    with at_once():
        lines = [nightly_refresh(night=n, lineage=lineage, editor=editor, late=late).model_dump(mode="json") for n in wanted]
    if as_json:
        emit_json(lines if all_nights else lines[0])
        return
    table("Nights", STATUS_COLUMNS, [status_row(line) for line in lines])
    for line in lines:
        for sentence in _why_not(settings, line):
            console.print(sentence, markup=False, highlight=False)


def _why_not(settings: Settings, line: dict[str, Any]) -> list[str]:
    """Why a night does not serve, rule by rule, what no removal of edits could have cured, and where to look."""
    from checks.gates.hopeless import hopeless
    from tasks.night.gate import reasons
    from tasks.workspace import warehouse
    from warehouse.lineages.reports import load_decision

    found = line["details"].get("decision_id")
    if line["verdict"] not in ("reject", "hold") or found is None:
        return []
    with warehouse(settings) as wh:
        made = load_decision(wh, found)
    return [
        f"{line['night']} does not serve ({line['verdict']}): {' '.join(reasons(made))}",
        *hopeless(made, line["edited"]),
        f"errata records {line['night']}  shows what became of each record",
    ]


@reported
def status(
    night: Annotated[str | None, typer.Argument(help="One night, with what became of each of its records.")] = None,
    lineage: Lineage = None,
    as_json: Json = False,
) -> None:
    """Every night of every lineage, in order: what came, what was done, what was measured, what was decided."""
    from tasks.workspace import warehouse
    from warehouse.nights.record_list import night_records
    from warehouse.nights.runs import runs

    with warehouse(configure()) as wh:
        lines = [r.model_dump(mode="json") for r in runs(wh, lineage) if night in (None, r.night)]
        found = night_records(wh, night) if night is not None else []
    if as_json:
        emit_json(lines if night is None else {"night": night, "runs": lines, "records": [r.model_dump() for r in found]})
        return
    table("Nights", STATUS_COLUMNS, [status_row(line) for line in lines])
    if night is not None:
        _records_table(night, found)


@reported
def records(
    night: Annotated[str, typer.Argument(help="A night; `errata status` lists them.")],
    verdict: Annotated[str | None, typer.Option(help="Only those of one verdict, such as reject or quarantine.")] = None,
    as_json: Json = False,
) -> None:
    """What became of each record of a night, and why: verdict, reason and a sentence."""
    from tasks.workspace import warehouse
    from warehouse.nights.record_list import night_records

    with warehouse(configure()) as wh:
        found = night_records(wh, night, verdict)
    if as_json:
        emit_json([record.model_dump(mode="json") for record in found])
    else:
        _records_table(night, found)


def _records_table(night: str, found: Sequence[JudgedRecord]) -> None:
    table(
        f"Records of {night}",
        ("record", "verdict", "reason", "why"),
        [(r.record_id, r.verdict, r.reason, r.sentence) for r in found],
    )
    counts = Counter(r.verdict for r in found)
    console.print(f"{len(found)} records" + "".join(f", {n} {name}" for name, n in counts.most_common()), highlight=False)
    if counts["quarantine"]:
        console.print(f"errata quarantine list --night {night}  shows what can be released", markup=False, highlight=False)


@reported
def ask(
    prompt: Annotated[str, typer.Argument(help="Text for the model to go on from.")],
    lineage: Lineage = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the unedited base model instead.")] = False,
    tokens: Annotated[int, typer.Option(help="Most new tokens.")] = 12,
    as_json: Json = False,
) -> None:
    """Ask the model that a lineage's production channel serves."""
    from tasks.serving.models import at_checkpoint, head_manifest
    from tasks.workspace import store_of

    if tokens < 1:
        raise UsageError(f"--tokens {tokens}: an answer has at least 1 token")
    settings = configure(lineage=lineage)
    store = store_of(settings)
    manifest = None if base else head_manifest(settings, store)
    model = at_checkpoint(settings, store, manifest.checkpoint if manifest else None)
    answer = model.generate([prompt], tokens)[0]
    checkpoint = manifest.checkpoint.checkpoint_id if manifest else "base"
    if as_json:
        emit_json({"prompt": prompt, "answer": answer, "checkpoint": checkpoint})
    else:
        console.print(f"{prompt}[bold]{answer}[/bold]  [dim]({checkpoint[:12]})[/dim]", highlight=False)


@reported
def pull(
    out: Annotated[Path, typer.Option(help="Folder to make; must not hold anything else.")],
    channel: Annotated[str | None, typer.Option(help="Channel or checkpoint id; default: the lineage's own.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also where the weights do not show every edit.")] = False,
    lineage: Lineage = None,
    as_json: Json = False,
) -> None:
    """Download a promoted checkpoint as a Hugging Face folder, every digest verified.

    Refused where plain weights do not show every edit: memories, texts, and slots on an architecture without room for them.
    """
    from editors.export.plain import check_whole
    from tasks.serving.signing import check_signature
    from tasks.workspace import store_of
    from warehouse.checkpoints.pull import pull

    settings = configure(lineage=lineage)
    store = store_of(settings)

    def check(folder: Path, manifest: Manifest) -> None:
        check_signature(settings, store, manifest, folder)
        if not anyway:
            check_whole(folder)

    manifest = pull(
        store,
        channel or settings.channel_name,
        out,
        limits=settings.limits,
        allow_code=settings.model.trust_remote_code,
        check=check,
    )
    found = {"out": str(out), "checkpoint": manifest.checkpoint.checkpoint_id, "night": manifest.night}
    emit_json(found) if as_json else console.print(
        f"{out}: checkpoint {manifest.checkpoint.checkpoint_id[:12]} of {manifest.night}", highlight=False
    )


@reported
def rollback(
    checkpoint: Annotated[str, typer.Argument(help="An earlier promoted checkpoint of the lineage.")],
    reason: Annotated[str, typer.Option(help="Why; kept for whoever asks later.")],
    lineage: Lineage = None,
    as_json: Json = False,
) -> None:
    """Serve an earlier checkpoint again. It is verified whole first, and nothing is deleted."""
    settings = configure(lineage=lineage)
    from flows.rollback import roll_back

    with at_once():
        pointer = roll_back(checkpoint, reason, lineage=settings.lineage)
    found = pointer.model_dump(mode="json")
    emit_json(found) if as_json else console.print(f"{settings.channel_name} serves {checkpoint[:12]} again")
