"""Recheck everything that the audit trail vouches for."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from checks.gates import decide
from editors.errors import EditorError
from tasks.audit_store import channels, look_through, other_chains, strays
from tasks.models import at_checkpoint
from tasks.promote import NOTE, materialise
from tasks.settings import Settings
from tasks.workspace import store_of, warehouse
from warehouse.artifacts import ObjectStore, checkpoint_key
from warehouse.audit import (
    AuditEntry,
    Break,
    check_chain,
    check_mirror,
    edits_payload,
    entries,
    verdicts_payload,
)
from warehouse.digests import digest_of, sha256_file
from warehouse.errors import UsageError, WarehouseError
from warehouse.export import check_export
from warehouse.promotion import read_manifest, read_pointer
from warehouse.records import Record
from warehouse.reports import load_decision, load_policy, load_report
from warehouse.store import Warehouse

log = logging.getLogger(__name__)
Progress = Callable[[str], None]


# ---------------------------------------------------------------- the audit


class AuditReport(Record):
    """What `errata audit` looked at, and what does not hold."""

    entries: int
    checkpoints: int
    objects: int
    signatures: int
    evaluated: bool
    breaks: tuple[Break, ...]


def audit(
    settings: Settings, *, deep: bool = False, exported: Path | None = None, progress: Progress = lambda _what: None,
) -> AuditReport:  # fmt: skip
    """Recheck the chain, every object, every decision, every signature, and production's weights.

    Args:
        deep: also evaluate production again and compare its answers.
        exported: also check this export of the warehouse.
    """
    store = store_of(settings)
    with warehouse(settings) as wh:
        chain = entries(wh)
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
    breaks += _derived(settings, store)
    if deep:
        from tasks.audit_deep import evaluated_again

        progress("evaluating production again")
        breaks += evaluated_again(settings)
    return AuditReport(
        entries=len(chain), checkpoints=seen.promoted, objects=seen.objects, signatures=seen.signatures, evaluated=deep,
        breaks=tuple(breaks),
    )  # fmt: skip


def _vouched(wh: Warehouse, chain: list[AuditEntry]) -> Iterator[Break]:
    """Rows that an entry holds a digest of must still have it."""
    # A night that was overtaken after its culprits were found adds edits: the last entry vouches for all of them.
    last = {(e.subject, e.lineage): e.seq for e in chain if e.kind == "edits"}
    for entry in chain:
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
        # Not the ids: a policy of an earlier release has another digest today.
        if (again.verdict, again.results) != (decision.verdict, decision.results):
            yield Break(what=f"decision {entry.subject}", found="its policy decides otherwise on its report")


def _derived(settings: Settings, store: ObjectStore) -> list[Break]:
    """Production's files made again from the base and the patches of the store, bit for bit."""
    folder = Path(tempfile.mkdtemp())
    try:
        found = read_pointer(store, settings.channel_name)
        if found is None:
            return []
        manifest = read_manifest(store, found[0].checkpoint_id)
        # An empty home: what this machine keeps of patches is no witness.
        model = at_checkpoint(settings.model_copy(update={"home": folder}), store, manifest.checkpoint)
    except (WarehouseError, EditorError, UsageError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        return [Break(what=f"channel {settings.channel_name}", found=str(error))]
    own = checkpoint_key(manifest.checkpoint.checkpoint_id, "x").removesuffix("x")
    try:
        materialise(model, manifest.checkpoint, folder / "model")
        made = {p.relative_to(folder / "model").as_posix(): p for p in (folder / "model").rglob("*") if p.is_file()}
        breaks = []
        for key, digest in manifest.files.items():
            name = key.removeprefix(own)
            if not key.startswith(own) or name == NOTE:
                continue
            if name not in made or sha256_file(made[name]) != digest:
                breaks.append(Break(what=key, found="the base and the patches do not give this file"))
        return breaks
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        model.rollback(0)
