"""Recheck everything that the audit trail vouches for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from checks.gates.decide import decide, same_judgement
from tasks.errors import TasksError
from tasks.recheck.objects import channels, look_through, other_chains, strays
from tasks.recheck.weights import rederived
from tasks.settings import Settings
from tasks.workspace import store_of, warehouse
from warehouse.checkpoints.object_store import ObjectStore
from warehouse.database.connection import Warehouse
from warehouse.digests import digest_of
from warehouse.errors import NotFound, WarehouseError
from warehouse.lineages.audit import AuditEntry, Break, check_chain, check_mirror, edits_payload, entries, verdicts_payload
from warehouse.lineages.reports import load_decision, load_policy, load_report
from warehouse.records import Record
from warehouse.upkeep.tables_out import check_export

log = logging.getLogger(__name__)
Progress = Callable[[str], None]
#: In an error's message.
SHOWN_BREAKS = 5


# ---------------------------------------------------------------- the audit


class AuditReport(Record):
    """What `errata audit` looked at, and what does not hold.

    `notes`: what holds, but to a tolerance only, and why.
    """

    entries: int
    checkpoints: int
    objects: int
    signatures: int
    evaluated: bool
    breaks: tuple[Break, ...]
    notes: tuple[str, ...] = ()


def audit(
    settings: Settings,
    *,
    deep: bool = False,
    exported: Path | None = None,
    progress: Progress = lambda _what: None,
) -> AuditReport:
    """Recheck the chain, every object, every decision, every signature, and production's weights.

    Args:
        deep: also evaluate production again and compare its answers, and ask a sample of what was proved.
        exported: also check this export of the warehouse.

    Raises:
        NotFound: nothing was ever done here, so that nothing could be found wrong either.
    """
    if not settings.warehouse_path.is_file():
        raise NotFound(
            f"there is nothing to audit: no warehouse at {settings.warehouse_path}; check `home` (ERRATA_HOME), or bring the "
            "warehouse back from a copy"
        )
    store = store_of(settings)
    with warehouse(settings) as wh:
        chain = entries(wh)
        _refuse_nothing(settings, store, chain)
        progress("the chain")
        breaks = [*check_chain(chain), *check_mirror(chain, store), *_vouched(wh, chain)]
        progress("decisions")
        breaks += _decisions(wh, chain)
    if exported is not None:
        progress("the export")
        breaks += check_export(exported, chain)
    seen = look_through(settings, store, chain, progress)
    breaks += [*seen.breaks, *strays(store, chain, seen), *channels(settings, store, chain), *other_chains(store, chain)]
    progress("production's weights from the base and its patches")
    again = rederived(settings, store)
    breaks += again.breaks
    if deep:
        from tasks.recheck.answers import evaluated_again, proved_again

        progress("evaluating production again")
        breaks += evaluated_again(settings)
        progress("asking proved answers again")
        breaks += proved_again(settings)
    return AuditReport(
        entries=len(chain),
        checkpoints=seen.promoted,
        objects=seen.objects,
        signatures=seen.signatures,
        evaluated=deep,
        breaks=tuple(breaks),
        notes=again.notes,
    )


class AuditFailed(TasksError):
    """Something that the trail vouches for does not hold; names what."""


def audit_or_raise(settings: Settings, *, deep: bool) -> AuditReport:
    """`audit` where only a sound result is an answer.

    Raises:
        AuditFailed: something does not hold.
        NotFound: nothing was ever done here.
    """
    found = audit(settings, deep=deep)
    if found.breaks:
        said = "; ".join(f"{one.what}: {one.found}" for one in found.breaks[:SHOWN_BREAKS])
        more = f"; and {len(found.breaks) - SHOWN_BREAKS} more" if len(found.breaks) > SHOWN_BREAKS else ""
        raise AuditFailed(f"{len(found.breaks)} breaks: {said}{more}. `errata audit` lists them")
    return found


def _refuse_nothing(settings: Settings, store: ObjectStore, chain: list[AuditEntry]) -> None:
    """An empty trail over objects in the store is a break like any other; over nothing it says nothing."""
    if not chain and not any(True for _ in store.list()):
        raise NotFound(
            f"there is nothing to audit: the trail in {settings.warehouse_path} is empty and {store.url} holds nothing; run a "
            "night first, or check `home` (ERRATA_HOME) and `store`"
        )
    known = {e.lineage for e in chain if e.kind in ("promotion", "rejection")}
    if known and settings.lineage not in known:
        raise NotFound(f"there is nothing to audit on lineage {settings.lineage!r}: the trail knows {', '.join(sorted(known))}")


def _vouched(wh: Warehouse, chain: list[AuditEntry]) -> Iterator[Break]:
    """Rows that an entry holds a digest of must still have it."""
    # A night that was overtaken after its culprits were found adds edits: the last entry vouches for all of them.
    last = {(e.subject, e.lineage): e.seq for e in chain if e.kind == "edits"}
    withdrawn = {e.subject: e.seq for e in chain if e.kind == "withdrawal"}
    for entry in chain:
        if entry.kind == "verdicts" and entry.seq < withdrawn.get(entry.subject, 0):
            continue
        if entry.kind == "edits" and last[entry.subject, entry.lineage] != entry.seq:
            continue
        if entry.kind == "verdicts":
            now: Mapping[str, Any] = verdicts_payload(wh, entry.subject)
        elif entry.kind == "edits":
            now = edits_payload(wh, entry.subject, entry.lineage)
        else:
            continue
        for name, was in entry.payload.items():
            if now.get(name) != was:
                yield Break(
                    what=f"{name} of night {entry.subject}",
                    found=f"the warehouse holds {now.get(name)}, the audit trail vouches for {was}",
                )


def _decisions(wh: Warehouse, chain: list[AuditEntry]) -> Iterator[Break]:
    """A decision must follow from its report under its policy, today as then."""
    for entry in (e for e in chain if e.kind == "decision"):
        try:
            decision = load_decision(wh, entry.subject)
            report, policy = load_report(wh, decision.report_id), load_policy(wh, decision.policy_digest)
        except WarehouseError as error:
            yield Break(what=f"decision {entry.subject}", found=str(error))
            continue
        if digest_of(decision) != entry.payload["decision"] or digest_of(report) != entry.payload["report"]:
            yield Break(what=f"decision {entry.subject}", found="it, or its report, is not what the audit trail vouches for")
            continue
        again = decide(policy, report, decision.decided_at)
        # Not the ids, nor the words: a policy of an earlier release has another digest today, and a rule is told otherwise.
        if not same_judgement(again, decision):
            yield Break(what=f"decision {entry.subject}", found="its policy decides otherwise on its report")
