"""Save and load patches: `patch.safetensors` and `patch.json`, never pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from editors.base import Patch
from editors.errors import PatchError
from warehouse.digests import canonical_json

TENSORS, HEADER = "patch.safetensors", "patch.json"


def patch_kinds() -> dict[str, type[Patch]]:
    """Every kind of patch by its name. Imported here: patches import the contract, which must not import them."""
    from editors.patches.memory import MemoryPatch
    from editors.patches.prompt import PromptPatch
    from editors.patches.weight import WeightPatch

    return {p.kind: p for p in (WeightPatch, MemoryPatch, PromptPatch)}


def save_patch(patch: Patch, folder: Path) -> None:
    """Write a patch; `load_patch` of the folder gives a patch of equal digest."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {"kind": patch.kind, "meta": dict(patch.meta), "digest": patch.digest}
    save_file(dict(patch.tensors), folder / (TENSORS + ".new"))
    (folder / (HEADER + ".new")).write_bytes(canonical_json(header))
    (folder / (TENSORS + ".new")).replace(folder / TENSORS)
    (folder / (HEADER + ".new")).replace(folder / HEADER)


def load_patch(folder: Path) -> Patch:
    """Read a patch and check it against its own digest.

    Raises:
        PatchError: a file is missing or damaged, the kind is unknown, or the content has another digest.
    """
    try:
        header: dict[str, Any] = json.loads((folder / HEADER).read_bytes())
        tensors = load_file(folder / TENSORS)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise PatchError(f"patch {folder} cannot be read: {error}; fetch it again") from error
    kinds = patch_kinds()
    if header.get("kind") not in kinds:
        raise PatchError(f"patch {folder} is of kind {header.get('kind')!r}; known are {', '.join(kinds)}")
    try:
        patch = kinds[header["kind"]].from_parts(tensors, header["meta"])
    except (KeyError, ValueError, TypeError) as error:
        raise PatchError(f"patch {folder} lacks a part: {error!r}; fetch it again") from error
    if patch.digest != header.get("digest"):
        raise PatchError(f"patch {folder} has digest {patch.digest[:12]}, its header says {str(header.get('digest'))[:12]}")
    return patch
