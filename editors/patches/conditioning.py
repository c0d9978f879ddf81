"""Codes of edits beside a frozen model: prompts that an edit is about are modulated by its code, all others pass as they are.

The form of a conditional neural process (see `mechanics/conditioning.py`). A patch holds codes alone; a stack's first patch
carries the trained networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from editors.asking.calls import PromptPositions
from editors.base import Patch, PatchKind
from editors.model import EditableModel, Undo
from editors.nets.conditioning import PREFIX, CodedEdit, ConditionNet, Points
from editors.nets.scope import Features
from editors.patches.scope_index import SCOPE, Classifier, ScopeIndex, check_network

MEMORY = "codes"


@dataclass(frozen=True)
class _Decision:
    """Which rows of one batch are in scope, taken when their prompts pass, and what they are shown.

    Attributes:
        rows: (hit,) rows in scope; `points` are theirs, in this order, and `reach` how many answer tokens they have.
    """

    positions: PromptPositions
    rows: Tensor
    points: Points | None
    reach: Tensor


class ConditioningMemory:
    """Codes of all edits of a model, oldest first, and the hooks that show them.

    Later tokens of a generation go by the decision that was taken for their prompt.
    """

    def __init__(self, network: str, classifier: Classifier, net: ConditionNet, most: int) -> None:
        self.network, self.net, self.most = network, net, most
        self.index = ScopeIndex(classifier)
        self.edits: list[CodedEdit] = []
        self._seen: dict[int, Tensor] = {}
        self._decision: _Decision | None = None
        self._active: tuple[Tensor, Tensor, Tensor] | None = None

    def extend(self, edits: Sequence[CodedEdit], vectors: Tensor, slots: Sequence[str]) -> None:
        self.edits += edits
        self.index.extend(vectors, slots)
        self._decision = None

    def truncate(self, count: int) -> None:
        del self.edits[count:]
        self.index.truncate(count)
        self._decision = None

    def install(self, model: EditableModel) -> Undo:
        """Hook the blocks that the classifier reads and those that are modulated."""
        read = {self.index.classifier.token_layer, self.index.classifier.prompt_layer}
        layers = sorted(read | set(self.net.layers))
        undos = [model.hook(model.anatomy.block.format(layer=layer), self._hook(model, layer)) for layer in layers]

        def undo() -> None:
            for remove in undos:
                remove()

        return undo

    def _hook(self, model: EditableModel, layer: int) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        first = self.net.layers[0]

        def modulate(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
            positions = model.positions
            if positions is None or positions.prompt_mask is None:
                return None
            states = output[0] if isinstance(output, tuple) else output
            if positions.offset == 0:
                self._seen[layer] = states
            if layer not in self.net.layers:
                return None
            if layer == first:
                self._begin(positions, states)
            if self._active is None:
                return None
            row, at, code = self._active
            changed = states.clone()
            changed[row, at] = self.net.film(layer, states[row, at].float(), code).to(states.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return modulate

    def _begin(self, positions: PromptPositions, states: Tensor) -> None:
        """Take the batch's decision if it is new, and gather the codes of the places that this pass modulates."""
        if self._decision is None or self._decision.positions is not positions:
            self._decision = self._decide(positions)
        decision, self._active = self._decision, None
        self._seen.clear()
        if decision.points is None:
            return
        place = torch.arange(states.shape[1], device=states.device)[None, :] - positions.local()[decision.rows, None]
        hit, at = ((place >= 0) & (place < decision.reach[:, None])).nonzero(as_tuple=True)
        if not len(hit):
            return
        row = decision.rows[hit]
        code = self.net.gather(states[row, at].float(), place[hit, at], decision.points.select(hit))
        self._active = (row, at, code)

    def _decide(self, positions: PromptPositions) -> _Decision:
        classifier, mask = self.index.classifier, positions.prompt_mask
        assert mask is not None
        pooled, asked = self._seen.get(classifier.token_layer), self._seen.get(classifier.prompt_layer)
        nobody = torch.zeros(0, dtype=torch.long, device=mask.device)
        # A pass that begins behind the prompt's start (a cache from elsewhere) shows too little to decide on.
        if pooled is None or asked is None or not self.edits:
            return _Decision(positions, nobody, None, nobody)
        width, every = min(mask.shape[1], pooled.shape[1]), torch.arange(len(pooled), device=pooled.device)
        with torch.inference_mode(False), torch.no_grad():
            features = Features(
                pooled[:, :width].detach().float().cpu(),
                mask[:, :width].cpu(),
                asked[every, positions.last_prompt].detach().float().cpu(),
            )
            found = self.index.nearest_features(features, self.most)
        rows = [row for row, edits in enumerate(found) if edits]
        if not rows:
            return _Decision(positions, nobody, None, nobody)
        shown = [self._shown(found[row]) for row in rows]
        reach = [max(len(self.edits[number].keys) for number, _ in found[row]) for row in rows]
        return _Decision(
            positions, torch.tensor(rows, device=mask.device), Points.stack(shown), torch.tensor(reach, device=mask.device)
        )

    def _shown(self, found: Sequence[tuple[int, float]]) -> tuple[Tensor, Tensor, Tensor]:
        """Points of the edits in scope; the less alike an edit is, the less it is attended to."""
        scale, likest = float(self.index.classifier.net.line[0]), found[0][1]
        edits = [self.edits[number] for number, _ in found]
        bias = [e.keys.new_full((len(e.keys),), scale * (c - likest)) for e, (_, c) in zip(edits, found, strict=True)]
        return torch.cat([e.keys for e in edits]), torch.cat([e.codes for e in edits]), torch.cat(bias)


@final
class ConditioningPatch(Patch):
    """Codes of one batch's edits with their prompts' vectors.

    Args:
        network: digest of the preparation that the networks are from.
        layers: the two layers that the classifier reads.
        most: edits shown to one prompt, at most.
        networks: the trained tensors, empty in all but a stack's first patch.
    """

    kind: ClassVar[PatchKind] = "memory"

    def __init__(
        self,
        edits: Sequence[CodedEdit],
        vectors: Tensor,
        slots: Sequence[str],
        request_ids: Sequence[str],
        network: str,
        layers: tuple[int, int],
        most: int,
        networks: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not len(edits) == len(vectors) == len(slots) == len(request_ids):
            raise ValueError(f"{len(edits)} codes, {len(vectors)} vectors, {len(slots)} slots, {len(request_ids)} requests")
        self.edits = tuple(CodedEdit(*(t.detach().float().cpu().contiguous() for t in (e.keys, e.codes))) for e in edits)
        self.vectors = vectors.detach().float().cpu().contiguous()
        self.slots, self.request_ids = tuple(slots), tuple(request_ids)
        self.network, self.layers, self.most = network, layers, most
        self.networks = {name: t.detach().cpu().contiguous() for name, t in (networks or {}).items()}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {
            "vectors": self.vectors,
            "keys": torch.cat([e.keys for e in self.edits]),
            "codes": torch.cat([e.codes for e in self.edits]),
            **self.networks,
        }

    @property
    def meta(self) -> Mapping[str, Any]:
        return {
            "form": "codes",
            "network": self.network,
            "token_layer": self.layers[0],
            "prompt_layer": self.layers[1],
            "most": self.most,
            "slots": list(self.slots),
            "request_ids": list(self.request_ids),
            "points": [len(e.keys) for e in self.edits],
        }

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> ConditioningPatch:
        keys, codes = (tensors[name].split(meta["points"]) for name in ("keys", "codes"))
        networks = {name: t for name, t in tensors.items() if name.startswith((SCOPE, PREFIX))}
        return cls(
            [CodedEdit(k, c) for k, c in zip(keys, codes, strict=True)],
            tensors["vectors"],
            meta["slots"],
            meta["request_ids"],
            meta["network"],
            (meta["token_layer"], meta["prompt_layer"]),
            meta["most"],
            networks,
        )

    def attach(self, model: EditableModel) -> Undo:
        """Append the codes; the first patch of a stack brings the networks and installs the hooks.

        Raises:
            PatchError: the networks are missing, or the patches below go by others.
        """
        known: ConditioningMemory | None = model.memories.get(MEMORY)
        check_network(self, known.network if known else None, self.network, bool(self.networks))
        remove: Undo | None = None
        if known is None:
            net = ConditionNet.from_tensors(self.networks, model.device)
            known = ConditioningMemory(self.network, Classifier.from_tensors(self.networks, self.meta), net, self.most)
            model.memories[MEMORY] = known
            remove = known.install(model)
        memory, before, device = known, len(known.edits), model.device
        memory.extend([CodedEdit(e.keys.to(device), e.codes.to(device)) for e in self.edits], self.vectors, self.slots)

        def undo() -> None:
            memory.truncate(before)
            if remove is not None:
                remove()
                model.memories.pop(MEMORY, None)

        return undo
