"""`errata quarantine`: the records that wait for a person, and `errata conflicts score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.shared import Json, console, emit_json, one_of, reported, table
from tasks.settings import configure
from warehouse.reference.world import NIGHTS

quarantine_app = typer.Typer(help="Records that wait for a person: look, release, reject.", no_args_is_help=True)
conflicts_app = typer.Typer(help="Requests that contradict each other or past edits.", no_args_is_help=True)

RecordId = Annotated[str, typer.Argument(help="Id of a quarantined record or edit; `errata quarantine list` names them.")]
Source = Annotated[str | None, typer.Option(help="Its source, where records of several sources share the id.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the audit trail.")]
Actor = Annotated[str | None, typer.Option("--by", help="Who acts; default the name of the account.")]
STATES = ("waiting", "released", "joined", "rejected")


@quarantine_app.command(name="list")
@reported
def list_(
    state: Annotated[str, typer.Option(help=f"{', '.join(STATES)}, or all.")] = "waiting",
    night: Annotated[str | None, typer.Option(help="Only the records of one night.")] = None,
    as_json: Json = False,
) -> None:
    """The queue, oldest first: what waits, and which rule holds it; then edits that isolation took out of a night."""
    from tasks.workspace import warehouse
    from warehouse.nights.quarantine import entries

    one_of("--state", state, (*STATES, "all"))
    with warehouse(configure()) as wh:
        found = [e for e in entries(wh, night=night) if state in ("all", e.state)]
    if as_json:
        emit_json([entry.model_dump(mode="json") for entry in found])
        return
    rows = [(e.record_id, e.night, e.state, e.rule, e.sentence) for e in found]
    table("Quarantine", ("record or edit", "night", "state", "rule", "why"), rows)


@quarantine_app.command()
@reported
def show(record_id: RecordId, source: Source = None, as_json: Json = False) -> None:
    """One record as it came, its verdict and its later one; of an edit the probes that it broke; and what was done with it."""
    from tasks.workspace import warehouse
    from warehouse.nights.held_edits import held_edit
    from warehouse.nights.intake import requests_by_id, verdicts_of
    from warehouse.nights.quarantine import actions, entry_of, update_of

    with warehouse(configure()) as wh:
        entry = entry_of(wh, record_id, source)
        if entry.kind == "edit":
            (request,) = requests_by_id(wh, list(entry.related))
            came: dict[str, Any] = {
                "edit": request.model_dump(mode="json"),
                "evidence": held_edit(wh, entry).model_dump(mode="json"),
            }
        else:
            came = {"record": _parsed(update_of(wh, entry).raw)}
        trail = [a for a in actions(wh, record_id) if a.source == entry.source]
        later = [v for v in verdicts_of(wh, source=entry.source) if v.record_id == entry.joined_as]
    found: dict[str, Any] = {
        **entry.model_dump(mode="json"),
        **came,
        "audit": [a.model_dump(mode="json") for a in trail],
        "verdict_after_release": later[0].model_dump(mode="json") if later else None,
    }
    if as_json:
        emit_json(found)
        return
    table(record_id, ("", ""), [(k, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for k, v in found.items()])


def _parsed(raw: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw


@quarantine_app.command()
@reported
def release(record_id: RecordId, reason: Reason, actor: Actor = None, source: Source = None, as_json: Json = False) -> None:
    """Let a record join the next night, judged again without only the rule that held it; an edit goes to its editor."""
    _act("release", record_id, reason, actor, source, as_json)


@quarantine_app.command()
@reported
def reject(record_id: RecordId, reason: Reason, actor: Actor = None, source: Source = None, as_json: Json = False) -> None:
    """Keep a record, or an edit, out for good."""
    _act("reject", record_id, reason, actor, source, as_json)


def _act(verb: str, record_id: str, reason: str, actor: str | None, source: str | None, as_json: bool) -> None:
    from tasks.trail import actor_of, note_action
    from tasks.workspace import warehouse
    from warehouse.nights import quarantine

    act = quarantine.release if verb == "release" else quarantine.reject
    settings = configure()
    with warehouse(settings) as wh, wh.transaction():
        action, fresh = act(wh, record_id, reason=reason, actor=actor or actor_of(settings), source=source)
        note_action(settings, wh, action)
    if as_json:
        emit_json({**action.model_dump(mode="json"), "new": fresh})
        return
    done = {"release": "released; it joins the next night", "reject": "rejected; it never joins a night"}[verb]
    before = "" if fresh else f" already, by {action.actor} on {action.acted_at:%Y-%m-%d %H:%M}; nothing changes"
    console.print(f"{record_id} is {done}{before}", markup=False, highlight=False)


@conflicts_app.command()
@reported
def score(
    file: Annotated[Path, typer.Argument(help="Labelled conflict cases, one a line, .jsonl or .jsonl.gz.")],
    nights: Annotated[Path, typer.Option(help="Labelled nights for the false alarms.")] = NIGHTS,
    as_json: Json = False,
) -> None:
    """Judge labelled pairs of edits, in one night and a night apart: recall by kind, and false alarms on good updates."""
    configure()
    from checks.scoring.conflicts import score_conflicts

    result = score_conflicts(file, nights)
    if as_json:
        emit_json(result)
        return
    rows = [
        (kind, strength, cell["n"], cell["same_night"], cell["later_night"], cell["both"])
        for kind, cells in result["recall"].items()
        for strength, cell in cells.items()
    ]
    table("Conflicts found", ("kind", "label", "cases", "in one night", "a night apart", "both"), rows)
    alarms = result["false_alarms"]
    console.print(f"{alarms['found']} false alarms on {alarms['n']} good updates; {len(result['set_aside'])} cases set aside")
