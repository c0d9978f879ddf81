"""A second copy of one output projection, and a router that decides once per prompt which of the two is used.

WISE (Wang et al. 2024, arXiv:2405.14768). A patch holds only what one edit added to its shard of the side memory; shards
and their merge are a function of the patches in order, so any suffix can be taken off exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editors.asking.calls import PromptPositions
from editors.base import Patch, PatchKind
from editors.errors import PatchError
from editors.model import EditableModel, Undo

if TYPE_CHECKING:
    from collections.abc import Iterator

    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Bool, Float, Int


def side_memory_name(site: str) -> str:
    """Key of a projection's side memory in `EditableModel.memories`."""
    return f"side-memory:{site}"


@dataclass(frozen=True)
class SideRules:
    """How shards become memories; equal for all patches of one site.

    Attributes:
        shard_size: edits after which a shard is closed.
        shards_per_merge: closed shards are merged, so many at a time; 0: never (WISE-Retrieve).
        density: share of a shard's entries, the largest, that enter a merge (TIES).
        ratio: a memory answers above this share of the least activity that its edits' prompts have, or above the activity
            of unrelated prompts where that is less.
    """

    shard_size: int
    shards_per_merge: int
    density: float
    ratio: float


@dataclass(frozen=True)
class Memory:
    """One side weight as its difference from the main one (d_out, d_in), and its threshold."""

    delta: Tensor
    threshold: float


def activity(delta: Tensor, keys: Float[Tensor, "rows tokens d_in"], mask: Tensor) -> Float[Tensor, " rows"]:
    """D(x): norm of what the side weight changes in the projection's output, mean over the tokens of the mask (eq. 3)."""
    counted = mask.to(keys.dtype)
    # The small number gives the norm a gradient where the side weight is still the main one.
    norms = (F.linear(keys, delta).square().sum(-1) + 1e-12).sqrt()
    return (norms * counted).sum(1) / counted.sum(1).clamp(min=1)


def ties_merge(deltas: Sequence[Tensor], density: float) -> Tensor:
    """TIES (Yadav et al. 2023): trim each to its largest entries, elect each entry's sign, average those that agree."""
    trimmed = torch.stack([_largest(delta, density) for delta in deltas])
    sign = trimmed.sum(0).sign()
    agrees = (trimmed.sign() == sign) & (trimmed != 0)
    return (trimmed * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _largest(delta: Tensor, density: float) -> Tensor:
    count = max(1, int(density * delta.numel()))
    kept = torch.zeros(delta.numel(), dtype=torch.bool, device=delta.device)
    kept[delta.abs().flatten().topk(count).indices] = True
    return delta * kept.view_as(delta)


class SideMemory:
    """The side weights of one projection, from the patches in their order, and the router as a hook."""

    def __init__(self, shape: tuple[int, int], rules: SideRules, device: torch.device) -> None:
        self.rules = rules
        self._shape, self._device = shape, device
        self._patches: list[SidePatch] = []
        self._shards: dict[int, Tensor] | None = {}
        self._memories: list[Memory] | None = []
        self._decided: tuple[PromptPositions, Tensor] | None = None
        self._resting = False

    def __len__(self) -> int:
        return len(self._patches)

    def append(self, patch: SidePatch) -> None:
        shards = self.shards
        shards[patch.shard] = shards.get(patch.shard, torch.zeros(self._shape, device=self._device)) + patch.delta(self._device)
        self._patches.append(patch)
        self._memories = None

    def truncate(self, count: int) -> None:
        """Take off later patches. The shards are summed anew when next read: taking away would leave rounding behind."""
        del self._patches[count:]
        self._shards = self._memories = None

    def num_edits(self, shard: int) -> int:
        return len(self._activities(shard))

    def edits(self, shard: int) -> list[tuple[str, str]]:
        """Prompt and answer of each edit in a shard, oldest first."""
        return [edit for p in self._patches if p.shard == shard for edit in p.edits]

    def _activities(self, shard: int) -> tuple[float, ...]:
        """Of all edits of a shard, as its last patch left them."""
        return () if (last := self._last(shard)) is None else last.activities

    def _last(self, shard: int) -> SidePatch | None:
        return next((p for p in reversed(self._patches) if p.shard == shard), None)

    @property
    def open_shard(self) -> int:
        """The shard that the next edit trains."""
        last = max((p.shard for p in self._patches), default=0)
        return last + 1 if self.num_edits(last) >= self.rules.shard_size else last

    @property
    def shards(self) -> dict[int, Tensor]:
        """Shard -> its difference from the main weight."""
        if self._shards is None:
            self._shards = {}
            for patch in self._patches:
                before = self._shards.get(patch.shard, torch.zeros(self._shape, device=self._device))
                self._shards[patch.shard] = before + patch.delta(self._device)
        return self._shards

    @property
    def memories(self) -> list[Memory]:
        """What the router chooses from: the merge of all full groups of closed shards, then each other shard."""
        if self._memories is None:
            shards, size = self.shards, self.rules.shards_per_merge
            closed = [s for s in sorted(shards) if self.num_edits(s) >= self.rules.shard_size]
            merged = closed[: len(closed) // size * size] if size else []
            groups = ([merged] if merged else []) + [[s] for s in sorted(shards) if s not in merged]
            self._memories = [self._memory(group) for group in groups]
        return self._memories

    def _memory(self, group: Sequence[int]) -> Memory:
        deltas = [self.shards[s] for s in group]
        limit = self.rules.ratio * min(a for shard in group for a in self._activities(shard))
        if len(group) > 1:
            return Memory(ties_merge(deltas, self.rules.density), limit)
        # What a shard does to unrelated prompts is known of the shard alone, not of a merge.
        last = self._last(group[0])
        if last is not None and last.unrelated is not None:
            limit = min(limit, last.unrelated)
        return Memory(deltas[0], limit)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Answer with the main weight alone for the length of a block."""
        self._resting = True
        try:
            yield
        finally:
            self._resting = False

    def route(self, keys: Float[Tensor, "rows tokens d_in"], mask: Bool[Tensor, "rows tokens"]) -> Int[Tensor, " rows"]:
        """The memory that answers each prompt, -1 for the main weight: the most active one that is above its threshold."""
        scores = torch.stack([activity(m.delta, keys.float(), mask) for m in self.memories])
        limits = torch.tensor([m.threshold for m in self.memories], device=scores.device)
        best, index = scores.masked_fill(scores <= limits[:, None], float("-inf")).max(0)
        return index.masked_fill(best == float("-inf"), -1)

    def hook(self, model: EditableModel) -> Any:
        """A forward hook; it decides when the prompt passes, for every token of the row and for later ones of a generation."""

        def answer(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            positions = model.positions
            if positions is None or self._resting or not self._patches:
                return None
            chosen = self._decide(positions, inputs[0])
            if not bool((chosen >= 0).any()):
                return None
            changed = output.float()
            for number, memory in enumerate(self.memories):
                rows = (chosen == number).nonzero()[:, 0]
                if len(rows):
                    changed = changed.index_add(0, rows, F.linear(inputs[0][rows].float(), memory.delta))
            return changed.to(output.dtype)

        return answer

    def _decide(self, positions: PromptPositions, keys: Tensor) -> Tensor:
        if positions.offset and self._decided is not None and self._decided[0] is positions:
            return self._decided[1]
        place = torch.arange(keys.shape[1], device=keys.device)
        mask = place <= positions.local()[:, None]
        if positions.prompt_mask is not None:
            width = min(keys.shape[1], positions.prompt_mask.shape[1])
            mask = mask[:, :width] & positions.prompt_mask[:, :width]
        chosen = self.route(keys[:, : mask.shape[1]], mask)
        self._decided = (positions, chosen)
        return chosen


@final
class SidePatch(Patch):
    """What one batch added to shard `shard` of the side memory beside the projection `site`.

    Attributes:
        mask: (d_out, d_in) entries that the shard may change; `values` are the changes there, in row-major order.
        activities: D(x_e) after this edit for every edit of the shard so far, this one's last: a later edit moves the
            shard for all of them, so the threshold is taken anew.
        edits: prompt and answer of each request of this batch.
        unrelated: D(x) after this edit that all but a few unrelated prompts stay below; None: not taken.
        start: how many patches of this site lie below: a patch fits only the memory that it was made on.
    """

    kind: ClassVar[PatchKind] = "memory"

    def __init__(
        self,
        site: str,
        start: int,
        shard: int,
        mask: Bool[Tensor, "d_out d_in"],
        values: Float[Tensor, " entries"],
        activities: Sequence[float],
        rules: SideRules,
        edits: Sequence[tuple[str, str]],
        unrelated: float | None = None,
    ) -> None:
        if int(mask.sum()) != len(values) or len(activities) < len(edits):
            raise ValueError(
                f"{len(values)} values for {int(mask.sum())} entries, {len(activities)} activities for {len(edits)} edits"
            )
        self.site, self.start, self.shard, self.rules = site, start, shard, rules
        self.mask, self.values = mask.detach().cpu(), values.detach().float().cpu().contiguous()
        self.activities, self.edits = tuple(activities), tuple((prompt, answer) for prompt, answer in edits)
        self.unrelated = unrelated

    def delta(self, device: torch.device) -> Tensor:
        """(d_out, d_in), fp32."""
        dense = torch.zeros(self.mask.shape)
        dense[self.mask] = self.values
        return dense.to(device)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        # One bit an entry: as indices the mask would be twice as large as the values.
        return {"mask": torch.from_numpy(np.packbits(self.mask.numpy().reshape(-1))), "values": self.values}

    @property
    def meta(self) -> Mapping[str, Any]:
        return {
            "form": "side_memory",
            "site": self.site,
            "start": self.start,
            "shard": self.shard,
            "shape": list(self.mask.shape),
            "activities": list(self.activities),
            "rules": vars(self.rules),
            "edits": [list(edit) for edit in self.edits],
            # Named only where it was taken: patches of before keep their digest.
            **({} if self.unrelated is None else {"unrelated": self.unrelated}),
        }

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> SidePatch:
        rows, columns = meta["shape"]
        bits = np.unpackbits(tensors["mask"].numpy(), count=rows * columns).astype(bool)
        return cls(
            meta["site"],
            meta["start"],
            meta["shard"],
            torch.from_numpy(bits).view(rows, columns),
            tensors["values"],
            meta["activities"],
            SideRules(**meta["rules"]),
            meta["edits"],
            meta.get("unrelated"),
        )

    def attach(self, model: EditableModel) -> Undo:
        """Add the values to their shard; the first patch of a site installs the hook.

        Raises:
            PatchError: another number of patches lies below than at the edit, or they follow other rules.
        """
        name = side_memory_name(self.site)
        found: SideMemory | None = model.memories.get(name)
        have = 0 if found is None else len(found)
        if have != self.start:
            raise PatchError(
                f"side-memory patch for {self.site} was made on {self.start} patches, the model has {have}; "
                "push the patches in the order of their checkpoint"
            )
        if found is not None and found.rules != self.rules:
            raise PatchError(f"side memory of {self.site} follows {found.rules}, the patch {self.rules}; edit with one preset")
        remove: Undo | None = None
        if found is None:
            found = SideMemory((self.mask.shape[0], self.mask.shape[1]), self.rules, model.device)
            model.memories[name] = found
            remove = model.hook(self.site, found.hook(model))
        memory = found
        memory.append(self)

        def undo() -> None:
            memory.truncate(self.start)
            if remove is not None:
                remove()
                model.memories.pop(name, None)

        return undo
