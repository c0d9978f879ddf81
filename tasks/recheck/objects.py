"""Recheck what lies in the store: every object that the audit trail vouches for, and nothing else beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tasks.night.gate import reasons
from tasks.serving.signing import check_signature
from tasks.settings import Settings
from warehouse.checkpoints.manifests import read_manifest, read_pointer
from warehouse.checkpoints.object_store import ObjectStore, channel_key, checkpoint_key
from warehouse.checkpoints.promotion import promoted_keys, verify
from warehouse.checkpoints.rejection import read_rejected, rejected_records, verify_rejected
from warehouse.checkpoints.signing import signature_key
from warehouse.errors import WarehouseError
from warehouse.lineages.audit import AuditEntry, Break, chain_id, check_chain, read_mirrored
from warehouse.records import Manifest


@dataclass
class Seen:
    """What the entries of promotions and rejections led to. `whole`: all their manifests could be read."""

    promoted: int = 0
    signatures: int = 0
    keys: set[str] = field(default_factory=set)
    whole: bool = True
    breaks: list[Break] = field(default_factory=list)

    @property
    def objects(self) -> int:
        return len(self.keys)


def look_through(settings: Settings, store: ObjectStore, chain: list[AuditEntry], progress: Callable[[str], None]) -> Seen:
    """Follow every promotion and rejection to its manifest, and every manifest to its objects and signature."""
    seen = Seen()
    for entry in chain:
        if entry.kind not in ("promotion", "rejection", "lineage"):
            continue
        progress(f"{entry.kind} {entry.subject[:12]}")
        try:
            if entry.kind == "promotion":
                _promotion(settings, store, entry, seen)
            elif entry.kind == "rejection":
                _rejection(store, entry, seen)
            else:
                _overtaken(store, entry, seen)
        except WarehouseError as error:
            seen.breaks.append(Break(what=f"checkpoint {entry.subject}", found=str(error)))
    return seen


def _promotion(settings: Settings, store: ObjectStore, entry: AuditEntry, seen: Seen) -> None:
    signed_by = entry.payload.get("signed_by")
    if signed_by:
        # Before anything can be found wrong: a broken checkpoint makes no stray of its signature.
        seen.keys.add(signature_key(entry.subject, str(signed_by)))
    manifest = _read(seen, lambda: read_manifest(store, entry.subject, expected_digest=str(entry.payload["manifest"])))
    seen.keys |= promoted_keys(manifest)
    seen.promoted += 1
    verify(store, manifest)
    if manifest.decision.verdict != "promote":
        found = f"it is promoted on the decision {manifest.decision.verdict!r}"
        seen.breaks.append(Break(what=f"checkpoint {entry.subject}", found=found))
    if signed_by:
        _signature(settings, store, entry, manifest, str(signed_by))
        seen.signatures += 1


def _rejection(store: ObjectStore, entry: AuditEntry, seen: Seen) -> None:
    manifest = _read(seen, lambda: read_rejected(store, entry.subject, expected_digest=str(entry.payload["manifest"])))
    why = reasons(manifest.decision)
    seen.keys |= {*manifest.files, *rejected_records(manifest, why)}
    verify_rejected(store, manifest, why)


def _overtaken(store: ObjectStore, entry: AuditEntry, seen: Seen) -> None:
    """A candidate that lost the race may have left its manifest and some of what that names; nothing serves them."""
    if entry.payload.get("signed_by"):
        seen.keys.add(signature_key(entry.subject, str(entry.payload["signed_by"])))
    if (digest := entry.payload.get("manifest")) is not None:
        seen.keys |= promoted_keys(_read(seen, lambda: read_manifest(store, entry.subject, expected_digest=str(digest))))


def _read(seen: Seen, read: Callable[[], Manifest]) -> Manifest:
    try:
        return read()
    except WarehouseError:
        seen.whole = False
        raise


def _signature(settings: Settings, store: ObjectStore, entry: AuditEntry, manifest: Manifest, signed_by: str) -> None:
    """WarehouseError where no trusted key's signature holds, or its file is not the one that the trail vouches for."""
    key = signature_key(entry.subject, signed_by)
    # A signature file has bytes that mean nothing to the signature: spaces, hints. The trail holds all of them.
    if "signature" in entry.payload and (found := store.digest(key)) != entry.payload["signature"]:
        raise WarehouseError(f"{key} in {store.url} has sha256 {found}, the trail says {entry.payload['signature']}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        _fetch(store, manifest, folder)
        check_signature(settings, store, manifest, folder)


def _fetch(store: ObjectStore, manifest: Manifest, folder: Path) -> None:
    own = checkpoint_key(manifest.checkpoint.checkpoint_id, "x").removesuffix("x")
    for key in (k for k in manifest.files if k.startswith(own)):
        path = folder / key.removeprefix(own)
        path.parent.mkdir(parents=True, exist_ok=True)
        store.read_to(key, path)


def strays(store: ObjectStore, chain: list[AuditEntry], seen: Seen) -> Iterator[Break]:
    """Objects that no entry of the trail leads to; the trail's own copy and channels are looked at elsewhere."""
    broken = {e.subject for e in chain if e.kind in ("promotion", "rejection")}
    try:
        for key in store.list():
            kind, _, rest = key.partition("/")
            if key in seen.keys or kind in ("audit", "channels"):
                continue
            if not seen.whole and (
                kind in ("patches", "reports", "decisions", "canaries") or rest.split("/")[0].removesuffix(".json") in broken
            ):
                # It may belong to the manifest that cannot be read, which is a break already.
                continue
            yield Break(what=key, found="the audit trail knows of no promotion or rejection that it belongs to")
    except WarehouseError as error:
        yield Break(what=store.url, found=str(error))


def channels(settings: Settings, store: ObjectStore, chain: list[AuditEntry]) -> Iterator[Break]:
    """Each channel must serve what the last move in the trail says, by the very pointer that it wrote."""
    last: dict[str, AuditEntry] = {}
    for entry in chain:
        if entry.kind in ("promotion", "rollback"):
            last[_channel_of(settings, entry)] = entry
    for name, entry in sorted(last.items()):
        what = f"channel {name}"
        wanted = str(entry.payload["to"]) if entry.kind == "rollback" else entry.subject
        try:
            found = read_pointer(store, name)
            serves = None if found is None else found[0].checkpoint_id
            if serves != wanted:
                yield Break(what=what, found=f"it serves {serves}, the trail says {wanted}")
            elif "pointer" in entry.payload and store.digest(channel_key(name)) != entry.payload["pointer"]:
                yield Break(what=what, found="its pointer is not the one that the trail vouches for")
        except WarehouseError as error:
            yield Break(what=what, found=str(error))
    known = {channel_key(name) for name in last}
    for key in store.list("channels/"):
        if key not in known:
            yield Break(what=key, found="the trail never moved a channel of this name")


def _channel_of(settings: Settings, entry: AuditEntry) -> str:
    """Entries of before there were channels in them: the channel that the lineage has by its settings."""
    mine = (
        settings if entry.lineage == settings.lineage else settings.model_copy(update={"lineage": entry.lineage, "channel": ""})
    )
    return str(entry.payload.get("channel", mine.channel_name))


def other_chains(store: ObjectStore, chain: list[AuditEntry]) -> Iterator[Break]:
    """Trails of other warehouses on this store must be whole by themselves."""
    own = chain_id(chain) if chain else ""
    for name in sorted({key.split("/")[1] for key in store.list("audit/")} - {own}):
        try:
            found = read_mirrored(store, name)
        except WarehouseError as error:
            yield Break(what=f"audit/{name}", found=str(error))
            continue
        if not found or chain_id(found) != name:
            yield Break(what=f"audit/{name}", found="it does not begin as a trail of this name does")
        yield from check_chain(found)
