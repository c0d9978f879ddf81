"""Recheck everything that the audit trail vouches for."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from checks.gates import decide
from tasks.models import at_checkpoint
from tasks.promote import NOTE, materialise
from tasks.settings import Settings
from tasks.signing import check_signature
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
from warehouse.errors import WarehouseError
from warehouse.export import check_export
from warehouse.promotion import read_manifest, read_pointer, verify
from warehouse.records import Manifest, Record
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
    found, objects, signatures = [], 0, 0
    for entry in (e for e in chain if e.kind in ("promotion", "rejection")):
        progress(f"{entry.kind} {entry.subject[:12]}")
        if entry.kind == "promotion":
            manifest, problems, signed = _promotion(settings, store, entry)
            breaks += problems
            signatures += signed
            if manifest is not None:
                objects += len(manifest.files) + 3
                found.append(manifest)
    breaks += list(_strays(store, chain, found))
    breaks += _channel(settings, store, chain)
    progress("production's weights from the base and its patches")
    breaks += _derived(settings, store)
    if deep:
        from tasks.audit_deep import evaluated_again

        progress("evaluating production again")
        breaks += evaluated_again(settings)
    return AuditReport(
        entries=len(chain), checkpoints=len(found), objects=objects, signatures=signatures, evaluated=deep,
        breaks=tuple(breaks),
    )  # fmt: skip


def _vouched(wh: Warehouse, chain: list[AuditEntry]) -> Iterator[Break]:
    """Rows that an entry holds a digest of must still have it."""
    for entry in chain:
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


def _promotion(
    settings: Settings, store: ObjectStore, entry: AuditEntry
) -> tuple[Manifest | None, list[Break], int]:  # fmt: skip
    what = f"checkpoint {entry.subject}"
    try:
        manifest = read_manifest(store, entry.subject, expected_digest=str(entry.payload["manifest"]))
        verify(store, manifest)
    except WarehouseError as error:
        return None, [Break(what=what, found=str(error))], 0
    if manifest.decision.verdict != "promote":
        return manifest, [Break(what=what, found=f"it is promoted on the decision {manifest.decision.verdict!r}")], 0
    signed_by = entry.payload.get("signed_by")
    if not signed_by:
        return manifest, [], 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        _fetch(store, manifest, folder)
        try:
            check_signature(settings, store, manifest, folder)
        except WarehouseError as error:
            return manifest, [Break(what=what, found=str(error))], 0
    return manifest, [], 1


def _fetch(store: ObjectStore, manifest: Manifest, folder: Path) -> None:
    own = checkpoint_key(manifest.checkpoint.checkpoint_id, "x").removesuffix("x")
    for key in (k for k in manifest.files if k.startswith(own)):
        path = folder / key.removeprefix(own)
        path.parent.mkdir(parents=True, exist_ok=True)
        store.read_to(key, path)


def _strays(store: ObjectStore, chain: list[AuditEntry], manifests: list[Manifest]) -> Iterator[Break]:
    """Objects under checkpoints and manifests that no promotion in the trail speaks of."""
    promoted = {e.subject for e in chain if e.kind == "promotion"}
    named = {key for manifest in manifests for key in manifest.files}
    for key in store.list("manifests/"):
        if key.removeprefix("manifests/").removesuffix(".json") not in promoted:
            yield Break(what=key, found="the audit trail knows of no such promotion")
    known = {m.checkpoint.checkpoint_id for m in manifests}
    for key in store.list("checkpoints/"):
        if key not in named and (key.split("/")[1] in known or key.split("/")[1] not in promoted):
            yield Break(what=key, found="no promoted manifest names it")


def _channel(settings: Settings, store: ObjectStore, chain: list[AuditEntry]) -> list[Break]:
    """The channel must serve what the last move in the trail says."""
    moves = [e for e in chain if e.kind in ("promotion", "rollback") and e.lineage == settings.lineage]
    what = f"channel {settings.channel_name}"
    try:
        found = read_pointer(store, settings.channel_name)
    except WarehouseError as error:
        return [Break(what=what, found=str(error))]
    if not moves:
        return [] if found is None else [Break(what=what, found="it serves a checkpoint that the trail never moved it to")]
    last = moves[-1]
    wanted = str(last.payload["to"]) if last.kind == "rollback" else last.subject
    serves = None if found is None else found[0].checkpoint_id
    return [] if serves == wanted else [Break(what=what, found=f"it serves {serves}, the trail says {wanted}")]


def _derived(settings: Settings, store: ObjectStore) -> list[Break]:
    """Production's files made again from the base and the patches, bit for bit."""
    try:
        found = read_pointer(store, settings.channel_name)
        if found is None:
            return []
        manifest = read_manifest(store, found[0].checkpoint_id)
        model = at_checkpoint(settings, store, manifest.checkpoint)
    except (WarehouseError, ValueError) as error:
        return [Break(what=f"channel {settings.channel_name}", found=str(error))]
    own = checkpoint_key(manifest.checkpoint.checkpoint_id, "x").removesuffix("x")
    folder = Path(tempfile.mkdtemp())
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
