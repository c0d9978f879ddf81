"""What MALMEN's least squares knows of the edits that are on the model already: their keys, which the patches carry."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from editors.base import Patch
from editors.model import EditableModel
from editors.patches.weight import LowRank, WeightPatch
from editors.solvers.held_keys import HeldKeys


class EarlierEdits:
    """The keys of the MALMEN patches on a model, taken up patch by patch and remembered from one edit to the next.

    Memory alone: the stack of patches is the state, and a process that begins in the middle of it finds the same.
    """

    def __init__(self) -> None:
        self._ridges: Mapping[str, float] = {}
        self._device: torch.device | None = None
        self._taken: list[str] = []
        self._held: dict[str, HeldKeys] = {}

    def held(self, model: EditableModel, ridges: Mapping[str, float]) -> Mapping[str, HeldKeys]:
        """Path -> what is held there, of the paths that earlier patches wrote.

        Args:
            ridges: path -> lambda, in the units of its keys.
        """
        patches = malmen_patches(model)
        digests, device = [patch.digest for patch in patches], model.device
        grew = digests[: len(self._taken)] == self._taken
        if not grew or self._ridges != ridges or self._device != device:
            self._ridges, self._device, self._taken, self._held = dict(ridges), device, [], {}
        for patch in patches[len(self._taken) :]:
            for path, keys in keys_of(patch, ridges).items():
                if path not in self._held:
                    self._held[path] = HeldKeys(len(keys), ridges[path], device)
                self._held[path].hold(keys.to(device))
            self._taken.append(patch.digest)
        return self._held


def released_keys(model: EditableModel, paths: Collection[str], subjects: Collection[str]) -> dict[str, Tensor]:
    """Path -> keys (d_in, tokens) of those subjects in earlier patches, of the paths that have any."""
    found: dict[str, list[Tensor]] = {}
    for patch in malmen_patches(model):
        for path, keys in keys_of(patch, paths, subjects).items():
            found.setdefault(path, []).append(keys.to(model.device))
    return {path: torch.cat(keys, dim=1) for path, keys in found.items()}


def malmen_patches(model: EditableModel) -> list[WeightPatch]:
    return [p for p in model.patches if isinstance(p, WeightPatch) and _note(p).get("editor") == "malmen"]


def keys_of(patch: WeightPatch, paths: Collection[str], subjects: Collection[str] | None = None) -> dict[str, Tensor]:
    """Path -> keys (d_in, tokens) of a patch, in its tokens' order; where subjects are given, theirs alone."""
    found: dict[str, Tensor] = {}
    for path, owners in _note(patch)["owners"].items():
        update = patch.updates[f"{path}.weight"]
        assert isinstance(update, LowRank), "MALMEN writes factors, which carry its keys behind their own columns"
        chosen = [i - len(owners) for i, subject in enumerate(owners) if subjects is None or subject in subjects]
        if path in paths and chosen:
            found[path] = update.right[:, chosen]
    return found


def _note(patch: Patch) -> Mapping[str, Any]:
    return patch.meta.get("note", {})
