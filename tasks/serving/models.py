"""Load the base model once a process, and bring it to the head of a lineage."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers.utils.logging import disable_progress_bar

from editors.base import Patch
from editors.errors import PatchError
from editors.loading import DeviceMap
from editors.model import EditableModel
from editors.patches.files import load_patch
from editors.patches.slots import SlotBook, site_of
from editors.proof.kept_rivals import recall_rivals, rivals_file
from tasks.serving.base_digests import remember, remembered, stamp_of
from tasks.settings import ModelSettings, Settings
from warehouse.checkpoints.manifests import read_manifest, read_pointer
from warehouse.checkpoints.object_store import ObjectStore, patch_key
from warehouse.errors import UsageError
from warehouse.records import Manifest, checkpoint_id
from warehouse.whole_files import whole_file

log = logging.getLogger(__name__)
_LOADED: dict[ModelSettings, EditableModel] = {}


def base_model(settings: Settings) -> EditableModel:
    """The base model with no patch on it; kept in memory between the tasks of one process."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    # Seconds of loading need no bar, and a bar would break up the tables of a command.
    disable_progress_bar()
    key = settings.model
    if key not in _LOADED:
        device = torch.device("cpu") if key.device_map else device_of(key.device)
        # One at a time: two large models rarely fit.
        _LOADED.clear()
        stamp = stamp_of(key)
        known = remembered(settings.home, key, stamp)
        model = EditableModel.from_pretrained(
            key.name,
            revision=key.revision,
            dtype=None if key.dtype == "auto" else getattr(torch, key.dtype),
            device=device,
            device_map=map_of(key),
            trust_remote_code=key.trust_remote_code,
            base_digest=known,
        )
        if stamp is not None and stamp_of(key) != stamp:
            # Its files changed while they were read.
            model.base_digest = model.read_base_digest()
        elif stamp is not None and known is None:
            remember(settings.home, key, stamp, model.base_digest)
        _LOADED[key] = model
    model = _LOADED[key]
    model.rollback(0)
    return model


def device_of(wanted: str) -> torch.device:
    """The device that `model.device` asks for.

    Raises:
        UsageError: this machine has no such device; the message says which it has.
    """
    here = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    here += ["mps"] if torch.backends.mps.is_available() else []
    here += ["cpu"]
    if wanted == "auto":
        return torch.device(here[0])
    exact = "cuda:0" if wanted == "cuda" else wanted
    if exact not in here:
        raise UsageError(
            f"model.device {wanted} is not there: torch {torch.__version__} finds {', '.join(here)}; use auto or one of these"
        )
    return torch.device(exact)


def map_of(settings: ModelSettings) -> DeviceMap | None:
    """The device map that `model.device_map` asks for; None: the model lies on one device."""
    if settings.device_map in ("", "auto"):
        return "auto" if settings.device_map else None
    return json.loads(settings.device_map)


def beside(model: EditableModel) -> dict[str, Any]:
    """Where a second model of its size is loaded to: its device, or where there is room beside a model that is spread."""
    return {"device_map": "auto"} if model.is_spread else {"device": model.device}


def shown_name(model: EditableModel) -> str:
    """A model's name for records that leave this machine: a hub id as it is, of a local folder only its last part."""
    return Path(model.name).name if Path(model.name).is_absolute() else model.name


def base_revision(settings: Settings, model: EditableModel) -> str:
    """The pinned revision, or for a local folder the digest of its content."""
    return settings.model.revision or f"sha256:{model.base_digest}"


def head_manifest(settings: Settings, store: ObjectStore) -> Manifest | None:
    """The manifest that the lineage's production channel points at; None before the first promotion."""
    found = read_pointer(store, settings.channel_name)
    if found is None:
        return None
    pointer, _ = found
    return read_manifest(store, pointer.checkpoint_id, expected_digest=pointer.manifest_digest)


def patch_folder(settings: Settings, digest: str) -> Path:
    """Where this machine keeps a patch."""
    return settings.home / "patches" / digest


def fetch_patch(settings: Settings, store: ObjectStore, digest: str) -> Path:
    """The folder of a patch, downloaded from the store if this machine lacks it; loading verifies its digest."""
    folder = patch_folder(settings, digest)
    if not (folder / "patch.json").exists():
        # The header last: a folder with a header is whole.
        for name in ("patch.safetensors", "patch.json"):
            (folder / name).unlink(missing_ok=True)
            allowed = settings.limits.json_bytes if name.endswith(".json") else settings.limits.total_bytes
            with whole_file(folder / name) as fresh:
                store.read_to(patch_key(digest, name), fresh, allowed)
    return folder


def stored_patch(settings: Settings, store: ObjectStore, digest: str) -> Patch:
    """A patch from this machine's copy, or from the store where that lacks or is damaged.

    Raises:
        PatchError: it is damaged and the store has no sound copy; the message names both places.
    """
    folder, key = patch_folder(settings, digest), patch_key(digest, "patch.json")
    if (folder / "patch.json").exists():
        try:
            return load_patch(folder, digest, settings.limits)
        except PatchError as error:
            if not store.exists(key):
                raise PatchError(
                    f"{error}; {store.url} has no copy of it. If it belongs to an unfinished night, run that night again: "
                    "it makes the patch anew"
                ) from error
            log.warning("%s; fetched again from %s", error, store.url)
            shutil.rmtree(folder)
    try:
        return load_patch(fetch_patch(settings, store, digest), digest, settings.limits)
    except PatchError as error:
        shutil.rmtree(folder)
        raise PatchError(
            f"{key} in {store.url} is damaged ({error}); put the objects of this patch back from a copy of the store, and "
            "see with `errata audit` what else is"
        ) from error


def has_patch(settings: Settings, digest: str) -> bool:
    """Is a sound copy on this machine?"""
    try:
        load_patch(patch_folder(settings, digest), digest, settings.limits)
    except PatchError as error:
        log.warning("patch %s is not usable here: %s", digest[:12], error)
        return False
    return True


class Stacked(Protocol):
    """A base and the patches that stand on it, in order: a checkpoint, or a candidate that is to become one."""

    @property
    def base_digest(self) -> str: ...
    @property
    def patch_digests(self) -> tuple[str, ...]: ...


def at_checkpoint(settings: Settings, store: ObjectStore, checkpoint: Stacked | None) -> EditableModel:
    """The base with the patches of a checkpoint or a candidate on it, in order; the base alone for None.

    Raises:
        PatchError: a patch is damaged.
        UsageError: the checkpoint was made from another base model.
    """
    model = base_model(settings)
    if checkpoint is None:
        return model
    if checkpoint.base_digest != model.base_digest:
        own = checkpoint_id(checkpoint.base_digest, checkpoint.patch_digests)
        raise UsageError(
            f"checkpoint {own[:12]} belongs to base {checkpoint.base_digest[:12]}, but {settings.model.name} has "
            f"{model.base_digest[:12]}; use another lineage"
        )
    for digest in checkpoint.patch_digests:
        model.push(stored_patch(settings, store, digest))
    for name, book in model.memories.items():
        if isinstance(book, SlotBook) and not book.rivals.found():
            recall_rivals(rivals_file(settings.proofs, model, site_of(name)), book)
    return model
