"""What a revert would take out of what is served, and what comes back in its place."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.serving.checkpoints import SHORTEST_PREFIX, find_checkpoint
from tasks.serving.models import head_manifest
from tasks.settings import Settings
from tasks.workspace import store_of, warehouse
from warehouse.database.connection import Warehouse
from warehouse.digests import digest_of
from warehouse.errors import Conflict, NotFound, UsageError
from warehouse.lineages.chain import ancestor_ids, checkpoints
from warehouse.lineages.edits import LedgerLine, active_edits, edits_of, replaced_edits
from warehouse.nights.runs import UNFINISHED, runs
from warehouse.records import EditRequest, Manifest, Record

#: How the name of a revert's night begins, and the ledger's reason of an edit that was reverted.
NIGHT, REVERTED = "revert-", "reverted: "


class RevertPlan(Record):
    """A revert before anything is made.

    Attributes:
        target: id of the edit or checkpoint that was asked for.
        head: the checkpoint that the plan starts from.
        edits: ids of the edits that leave.
        revived: ids of the edits that those had superseded, and that are in force again without them.
    """

    night: str
    target: str
    reason: str
    head: str
    edits: tuple[str, ...]
    revived: tuple[str, ...]


def plan_revert(settings: Settings, name: str, reason: str) -> RevertPlan:
    """The plan of a revert; that of an unfinished one of the same target where there is one, so that it goes on.

    Args:
        name: the start of an edit's id, or a checkpoint as in `find_checkpoint`.

    Raises:
        NotFound: no such edit or checkpoint, or nothing of it is in force.
        Conflict: the checkpoint is a revert itself.
        UsageError: no reason was given.
    """
    if not reason.strip():
        raise UsageError("a revert needs a reason: it is read by whoever asks later why the model changed")
    target, asked = _target(settings, name)
    manifest = head_manifest(settings, store_of(settings))
    if manifest is None:
        raise NotFound(f"lineage {settings.lineage!r} serves the bare base model: there is nothing to revert")
    begun = _unfinished(settings, target, manifest)
    if begun is not None:
        return begun
    head, active = manifest.checkpoint.checkpoint_id, _active(settings)
    going = tuple(line.edit.edit_id for line in asked if line.edit.edit_id in active)
    if not going:
        said = {line.reason or line.status for line in asked}
        raise NotFound(f"nothing of {name} is in force on lineage {settings.lineage!r} ({'; '.join(sorted(said))})")
    with warehouse(settings) as wh:
        revived = _revived(wh, settings.lineage, head, going)
    return RevertPlan(
        night=NIGHT + digest_of(head, sorted(going))[:12],
        target=target,
        reason=reason.strip(),
        head=head,
        edits=going,
        revived=revived,
    )


def _unfinished(settings: Settings, target: str, served: Manifest) -> RevertPlan | None:
    """The plan of a revert of this target that was begun and not finished, unless the lineage has moved past it."""
    with warehouse(settings) as wh:
        held = [
            run.details["revert"] for run in runs(wh, settings.lineage) if run.verdict == UNFINISHED and "revert" in run.details
        ]
    plans = [RevertPlan.model_validate(plan) for plan in held if plan["target"] == target]
    # Its own night is served where it was killed between the channel's move and its last line.
    return next((p for p in plans if served.checkpoint.checkpoint_id == p.head or served.night == p.night), None)


def _active(settings: Settings) -> set[str]:
    with warehouse(settings) as wh:
        return {edit.edit_id for edit, _ in active_edits(wh, settings.lineage)}


def _target(settings: Settings, name: str) -> tuple[str, list[LedgerLine]]:
    """The whole id, and the ledger's lines of the edits meant."""
    with warehouse(settings) as wh:
        lines = [line for line in edits_of(wh, settings.lineage) if line.status != "skipped"]
    matching = [line for line in lines if len(name) >= SHORTEST_PREFIX and line.edit.edit_id.startswith(name)]
    if len(matching) > 1:
        raise NotFound(f"{name!r} begins {len(matching)} edits: {', '.join(m.edit.edit_id for m in matching)}; give more of it")
    if matching:
        return matching[0].edit.edit_id, matching
    found, why = None, ""
    try:
        found = find_checkpoint(settings, name)
    except NotFound as error:
        why = str(error)
    if why:
        raise NotFound(f"no edit begins with {name!r} on lineage {settings.lineage!r}, and {why}")
    if found is None:
        raise NotFound("the base model holds no edit to revert")
    with warehouse(settings) as wh:
        row = next((r for r in checkpoints(wh, settings.lineage) if r.checkpoint.checkpoint_id == found.checkpoint_id), None)
    if row is None:
        raise NotFound(f"checkpoint {found.checkpoint_id[:12]} is not of lineage {settings.lineage!r}")
    if row.night.startswith(NIGHT):
        raise Conflict(
            f"checkpoint {found.checkpoint_id[:12]} is a revert itself; `errata rollback {row.checkpoint.parent}` serves what "
            "was served before it"
        )
    return found.checkpoint_id, [line for line in lines if line.checkpoint_id == found.checkpoint_id]


def _revived(wh: Warehouse, lineage: str, head: str, going: Sequence[str]) -> tuple[str, ...]:
    """The edit that each leaving one had replaced in its slot, if the served chain had one that nobody reverted."""
    chain = set(ancestor_ids(wh, lineage, head))
    rows = replaced_edits(wh, lineage, going, unless_reason=REVERTED)
    newest = {row["going"]: row["edit_id"] for row in rows if {row["checkpoint_id"], row["superseded_in"]} <= chain}
    return tuple(sorted(set(newest.values()) - set(going)))


def requests_in_force(wh: Warehouse, lineage: str, edits: Sequence[str]) -> list[EditRequest]:
    """Requests of what stays in force without these edits, newest first."""
    return [request for edit, request in reversed(active_edits(wh, lineage)) if edit.edit_id not in edits]
