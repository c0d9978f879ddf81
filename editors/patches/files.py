"""Save and load patches: `patch.safetensors` and `patch.json`, never pickle."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from editors.base import Patch
from editors.errors import PatchError
from editors.exact import aligned
from editors.writing import writing
from warehouse.digests import canonical_json
from warehouse.errors import IntegrityError
from warehouse.limits import DEFAULT, Limits, check_folder
from warehouse.whole_files import whole_file

TENSORS, HEADER = "patch.safetensors", "patch.json"


#: (kind, form) -> class, imported on use: patches import the contract, which must not import them. A kind with several
#: shapes names its own in `meta["form"]`.
FORMS = {
    ("weight", ""): "editors.patches.weight:WeightPatch",
    ("weight", "total"): "editors.patches.total:TotalPatch",
    ("memory", "codebook"): "editors.patches.memory:MemoryPatch",
    ("memory", "side_memory"): "editors.patches.side_memory:SidePatch",
    ("module", "slots"): "editors.patches.slots:SlotPatch",
    ("memory", "codes"): "editors.patches.conditioning:ConditioningPatch",
    ("memory", "serac"): "editors.patches.serac:SeracPatch",
    ("prompt", ""): "editors.patches.prompt:PromptPatch",
    ("prompt", "retrieved"): "editors.patches.retrieved:RetrievedPromptPatch",
    ("module", "neurons"): "editors.patches.neurons:NeuronPatch",
}


def patch_class(kind: str, form: str = "") -> type[Patch]:
    """The class of a kind and form.

    Raises:
        PatchError: nothing of that name.
    """
    if (kind, form) not in FORMS:
        known = ", ".join(sorted("/".join(filter(None, key)) for key in FORMS))
        raise PatchError(f"no patch is of kind {kind!r}{f' and form {form!r}' if form else ''}; known are {known}")
    module, _, name = FORMS[kind, form].partition(":")
    return getattr(importlib.import_module(module), name)


def save_patch(patch: Patch, folder: Path) -> None:
    """Write a patch; `load_patch` of the folder gives a patch of equal digest.

    Raises:
        NotWritten: the disk is full, or the folder may not be written to.
    """
    header = {"kind": patch.kind, "meta": dict(patch.meta), "digest": patch.digest}
    # The header last: a folder with a header is whole.
    with writing(folder), whole_file(folder / HEADER) as fresh:
        fresh.write_bytes(canonical_json(header))
        with whole_file(folder / TENSORS) as tensors:
            save_file(dict(patch.tensors), tensors)


def load_patch(folder: Path, expected: str | None = None, limits: Limits = DEFAULT) -> Patch:
    """Read a patch and check it against its own digest. Nothing in the folder is ever run, whatever it holds.

    Args:
        expected: the digest that was asked for; a whole patch of another digest is refused.
        limits: sizes above which nothing is read.

    Raises:
        PatchError: a file is missing, damaged, too large, a link or a pickle, the kind is unknown, or the content has
            another digest.
    """
    try:
        check_folder(folder, limits)
        header: Any = json.loads((folder / HEADER).read_bytes())
        tensors = {name: aligned(t) for name, t in load_file(folder / TENSORS).items()}
    except IntegrityError as error:
        raise PatchError(f"patch {folder} is refused: {error}") from error
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise PatchError(f"patch {folder} cannot be read: {error}; fetch it again") from error
    try:
        patch = patch_class(str(header["kind"]), header["meta"].get("form", "")).from_parts(tensors, header["meta"])
        said = str(header["digest"])
    except PatchError as error:
        raise PatchError(f"patch {folder}: {error}") from error
    # A header that holds something else than a patch's fails in whatever way its class first trips over it.
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise PatchError(f"patch {folder} lacks a part: {error!r}; fetch it again") from error
    if patch.digest != said:
        raise PatchError(f"patch {folder} has digest {patch.digest[:12]}, its header says {said[:12]}")
    if expected is not None and said != expected:
        raise PatchError(f"patch {folder} is patch {said[:12]}, not {expected[:12]}; fetch it again")
    return patch
