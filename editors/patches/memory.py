"""A codebook beside a module: where a prompt's last token falls within an entry's radius, its value is the output.

GRACE's memory (Hartvigsen et al. 2023, arXiv:2211.11031). A patch holds only what one edit added and which older radii
it changed, so any suffix of patches can be taken off exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn

from editors.base import Patch, PatchKind
from editors.errors import PatchError
from editors.model import EditableModel, Undo

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float, Int

#: Radius of an entry that a later edit of the same prompt has replaced; it never answers.
RETIRED = -1.0


def codebook_name(site: str) -> str:
    """Key of a module's codebook in `EditableModel.memories`."""
    return f"codebook:{site}"


class Codebook:
    """Entries of one site in preallocated buffers, oldest first."""

    def __init__(self, d_key: int, d_value: int, device: torch.device) -> None:
        self._count = 0
        self._keys = torch.zeros(16, d_key, device=device)
        self._values = torch.zeros(16, d_value, device=device)
        self._radii = torch.zeros(16, device=device)
        self.labels: list[tuple[int, ...]] = []
        self.request_ids: list[str] = []

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> Float[Tensor, "entries d_key"]:
        return self._keys[: self._count]

    @property
    def values(self) -> Float[Tensor, "entries d_value"]:
        return self._values[: self._count]

    @property
    def radii(self) -> Float[Tensor, " entries"]:
        return self._radii[: self._count]

    def copy(self) -> Codebook:
        """The same entries in buffers of their own."""
        other = Codebook(self._keys.shape[1], self._values.shape[1], self._keys.device)
        other.append(self.keys, self.values, self.radii, self.labels, self.request_ids)
        return other

    def append(
        self, keys: Tensor, values: Tensor, radii: Tensor, labels: Sequence[tuple[int, ...]], ids: Sequence[str]
    ) -> None:
        needed = self._count + len(keys)
        if needed > len(self._keys):
            # Doubling: ten thousand edits copy the buffers ten times, not ten thousand.
            extra = max(needed, 2 * len(self._keys)) - len(self._keys)
            self._keys, self._values, self._radii = (
                torch.cat([t, t.new_zeros(extra, *t.shape[1:])]) for t in (self._keys, self._values, self._radii)
            )
        self._keys[self._count : needed] = keys
        self._values[self._count : needed] = values
        self._radii[self._count : needed] = radii
        self.labels += labels
        self.request_ids += ids
        self._count = needed

    def truncate(self, count: int) -> None:
        self._count = count
        del self.labels[count:], self.request_ids[count:]

    def nearest(self, queries: Float[Tensor, "rows d_key"]) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Index of and Euclidean distance to the nearest entry in force; infinite where there is none."""
        if self._count == 0:
            return torch.zeros(len(queries), dtype=torch.long), torch.full((len(queries),), float("inf"))
        # No matrix product: its cancellation error is larger than a small radius and changes with the batch.
        distances = torch.cdist(queries.float(), self.keys, compute_mode="donot_use_mm_for_euclid_dist")
        distance, index = distances.masked_fill(self.radii < 0, float("inf")).min(1)
        return index, distance

    def hook(self, model: EditableModel) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        """A forward hook that decides once per prompt, when its last token passes.

        Later tokens of a generation need no decision: they read the replaced value through attention, from the KV cache
        or computed again.
        """

        def replace(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            if model.positions is None or self._count == 0:
                return None
            hidden, out = inputs[0], output[0] if isinstance(output, tuple) else output
            at = model.positions.local()
            # Negative: in the KV cache already. Beyond the end: still to come, in a prefill by chunks.
            rows = ((at >= 0) & (at < hidden.shape[1])).nonzero()[:, 0]
            if not len(rows):
                return None
            index, distance = self.nearest(hidden[rows, at[rows]])
            hit = distance <= self.radii[index]
            if not bool(hit.any()):
                return None
            changed = out.clone()
            changed[rows[hit], at[rows[hit]]] = self.values[index[hit]].to(out.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return replace


@dataclass(frozen=True)
class RadiusChange:
    """Entry `index` went from radius `old` to `new`."""

    index: int
    old: float
    new: float


@final
class MemoryPatch(Patch):
    """New entries of the codebook at `site`, and changed radii of older ones.

    `start` is how many entries lie below: a patch fits only the codebook that it was made on.
    """

    kind: ClassVar[PatchKind] = "memory"

    def __init__(
        self,
        site: str,
        start: int,
        keys: Float[Tensor, "new d_key"],
        values: Float[Tensor, "new d_value"],
        radii: Float[Tensor, " new"],
        labels: Sequence[Sequence[int]],
        request_ids: Sequence[str],
        changes: Sequence[RadiusChange] = (),
    ) -> None:
        if not len(keys) == len(values) == len(radii) == len(labels) == len(request_ids):
            raise ValueError(f"{len(keys)} keys, {len(values)} values, {len(radii)} radii, {len(labels)} labels")
        self.site, self.start = site, start
        self.keys, self.values, self.radii = (t.detach().float().cpu().contiguous() for t in (keys, values, radii))
        self.labels = tuple(tuple(label) for label in labels)
        self.request_ids, self.changes = tuple(request_ids), tuple(changes)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {
            "keys": self.keys,
            "values": self.values,
            "radii": self.radii,
            "changed_index": torch.tensor([c.index for c in self.changes], dtype=torch.long),
            "changed_old": torch.tensor([c.old for c in self.changes], dtype=torch.float32),
            "changed_new": torch.tensor([c.new for c in self.changes], dtype=torch.float32),
        }

    @property
    def meta(self) -> Mapping[str, Any]:
        return {
            "form": "codebook",
            "site": self.site,
            "start": self.start,
            "labels": [list(label) for label in self.labels],
            "request_ids": list(self.request_ids),
        }

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> MemoryPatch:
        index, old, new = (tensors[f"changed_{part}"].tolist() for part in ("index", "old", "new"))
        changes = [RadiusChange(*row) for row in zip(index, old, new, strict=True)]
        return cls(
            meta["site"],
            meta["start"],
            tensors["keys"],
            tensors["values"],
            tensors["radii"],
            meta["labels"],
            meta["request_ids"],
            changes,
        )

    def attach(self, model: EditableModel) -> Undo:
        """Append the entries and set the radii; the first patch of a site installs the hook.

        Raises:
            PatchError: the codebook below has another number of entries, or other radii, than the one edited.
        """
        name = codebook_name(self.site)
        book: Codebook | None = model.memories.get(name)
        have = 0 if book is None else len(book)
        if have != self.start:
            raise PatchError(
                f"memory patch for {self.site} was made on {self.start} entries, the model has {have}; "
                "push the patches in the order of their checkpoint"
            )
        for change in self.changes:
            found = float(book.radii[change.index]) if book is not None else None
            if found != change.old:
                raise PatchError(f"entry {change.index} of {self.site} has radius {found}, the patch expects {change.old}")
        remove: Undo | None = None
        if book is None:
            book = Codebook(self.keys.shape[1], self.values.shape[1], model.device)
            model.memories[name] = book
            remove = model.hook(self.site, book.hook(model), by_token=True)
        entries = book
        entries.append(self.keys, self.values, self.radii, self.labels, self.request_ids)
        for change in self.changes:
            entries.radii[change.index] = change.new

        def undo() -> None:
            entries.truncate(self.start)
            for change in reversed(self.changes):
                entries.radii[change.index] = change.old
            if remove is not None:
                remove()
                model.memories.pop(name, None)

        return undo
