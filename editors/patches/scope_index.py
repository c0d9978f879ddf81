"""Which edits a prompt is about: prompts of edits embedded once, newest of each slot in force, one matrix product a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editors.base import Patch
from editors.errors import PatchError
from editors.model import EditableModel
from editors.nets.scope import Features, ScopeNet, features_of
from warehouse.records import EditRequest

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

#: Tensors of the trained classifier, in a preparation and in the patch that carries it.
SCOPE = "scope."


def slot_of(request: EditRequest) -> str:
    """What a newer edit replaces: the same relation of the same subject, or the same prompt where no relation is named."""
    return f"{request.subject}|{request.relation}" if request.relation else request.prompt


@dataclass(frozen=True)
class Classifier:
    """A trained scope net with the layers that it reads."""

    net: ScopeNet
    token_layer: int
    prompt_layer: int

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Classifier:
        """`meta` of a preparation or a patch names the layers."""
        return cls(ScopeNet.from_tensors(tensors), int(meta["token_layer"]), int(meta["prompt_layer"]))

    def embed(self, model: EditableModel, prompts: Sequence[str]) -> Float[Tensor, "rows dim"]:
        """Unit vectors, on the CPU; empty prompts have none and must not be asked for."""
        with torch.inference_mode(False), torch.no_grad():
            return self.net.embed(features_of(model, prompts, self.token_layer, self.prompt_layer))


class ScopeIndex:
    """Vectors and slots of all edits of a stack, oldest first."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self._vectors: list[Tensor] = []
        self._slots: list[str] = []
        self._matrix: Tensor | None = None
        self._active: list[int] = []

    def __len__(self) -> int:
        return len(self._slots)

    def extend(self, vectors: Float[Tensor, "new dim"], slots: Sequence[str]) -> None:
        self._vectors += list(vectors)
        self._slots += slots
        self._matrix = None

    def truncate(self, count: int) -> None:
        del self._vectors[count:], self._slots[count:]
        self._matrix = None

    def nearest(self, model: EditableModel, prompts: Sequence[str], most: int = 1) -> list[list[int]]:
        """For each prompt the edits that it is about, the likest first: at most `most`, none where none is alike enough.

        A text with no prompt is about nothing.
        """
        asked = [i for i, prompt in enumerate(prompts) if prompt]
        found: list[list[int]] = [[] for _ in prompts]
        if not asked or not self._slots:
            return found
        vectors = self.classifier.embed(model, [prompts[i] for i in asked])
        for i, chosen in zip(asked, self.nearest_to(vectors, most), strict=True):
            found[i] = [number for number, _ in chosen]
        return found

    def nearest_to(self, vectors: Float[Tensor, "rows dim"], most: int = 1) -> list[list[tuple[int, float]]]:
        """(edit, likeness) of the edits in scope of each vector, the likest first."""
        if not self._slots:
            return [[] for _ in vectors]
        if self._matrix is None:
            newest = {slot: number for number, slot in enumerate(self._slots)}
            self._active = sorted(newest.values())
            self._matrix = torch.stack([self._vectors[i] for i in self._active])
        cosine, place = (vectors @ self._matrix.t()).topk(min(most, len(self._active)), dim=1)
        limit = self.classifier.net.cosine
        return [
            [(self._active[p], c) for c, p in zip(likeness, places, strict=True) if c >= limit]
            for likeness, places in zip(cosine.tolist(), place.tolist(), strict=True)
        ]

    def nearest_features(self, features: Features, most: int = 1) -> list[list[tuple[int, float]]]:
        """The same for prompts that a pass has read already."""
        return self.nearest_to(self.classifier.net.embed(features), most)


def check_network(patch: Patch, known: str | None, wanted: str, carried: bool) -> None:
    """Does a patch that answers with trained networks find them?

    Raises:
        PatchError: the patches below carry other networks, or this is the first and carries none.
    """
    if known is not None and known != wanted:
        raise PatchError(
            f"{patch.kind} patch {patch.digest[:12]} answers with the networks {wanted[:12]}, the patches below it with "
            f"{known[:12]}; a preparation serves a whole stack, so start a new one"
        )
    if known is None and not carried:
        raise PatchError(
            f"{patch.kind} patch {patch.digest[:12]} needs the networks {wanted[:12]}, which the first patch of its stack "
            "carries; push the patches in the order of their checkpoint"
        )
