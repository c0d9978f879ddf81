"""Slots beside a feed-forward layer: one gated neuron for each edited subject, at the subject's last token.

    out += sum_i ramp((w_i . (h - mu) - low_i) / (high_i - low_i)) d_i ,   ramp clamps to [0, 1]

Thresholds are a function of the whole set of slots, so any order and any batching of one set gives the same module, on
every machine: what a slot is made of is stored, and what is computed from slots is computed by `editors.exact`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn

from editors.base import Patch, PatchKind
from editors.errors import PatchError
from editors.exact import BITS, exact_dense, exact_rows, on_grid
from editors.model import EditableModel, Undo
from editors.patches.rivals import Rivals, by_mean
from warehouse.records import EditRequest

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

#: Where the largest foreign score lies above this share of the own one, the threshold is taken here.
MOST_FOREIGN = 0.9
#: Room for the rounding of single operations on scores and thresholds, relative to them.
SMALLEST = 2.0**-20
#: Pairs of a token and a slot whose exact scores are taken at once.
PAIRS_AT_ONCE = 4096


def slots_name(site: str) -> str:
    """Key of a module's slots in `EditableModel.memories`."""
    return f"slots:{site}"


def site_of(name: str) -> str:
    """The module of a key that `slots_name` made."""
    return name.removeprefix("slots:")


@dataclass(frozen=True)
class Slot:
    """All active edits of one subject.

    Attributes:
        requests: the edits, by relation; one of each.
        states: (forms, d_model) the site's input at the subject's last token in the base model.
        filter: (d_model,) answers near 1 to the states.
        own: smallest answer to the own states (a low quantile).
        foreign: largest answer to the bank of known subjects and plain text.
        value: (d_model,) what is added to the site's output.
        mean: (d_model,) the preparation's mean, around which `own` and `foreign` were measured. A preparation that is made
            anew, on another machine or after the first was lost, has another one.
    """

    subject: str
    requests: tuple[EditRequest, ...]
    states: Tensor
    filter: Tensor
    own: float
    foreign: float
    value: Tensor
    mean: Tensor


@dataclass(frozen=True)
class SlotGates:
    """The slots as matrices, sorted by subject. `low`, `high`: (slots,) ends of each ramp."""

    filters: Float[Tensor, "slots d_model"]
    offsets: Float[Tensor, " slots"]
    low: Float[Tensor, " slots"]
    high: Float[Tensor, " slots"]
    values: Float[Tensor, "slots d_model"]

    def opening(self, hidden: Float[Tensor, "... d_model"]) -> Float[Tensor, "... slots"]:
        """How far each slot is open at each token, 0 to 1."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        found = self.opened(rows)
        dense = torch.zeros(len(rows), len(self.low), device=found.shares.device)
        dense[found.tokens, found.slots] = found.shares
        return dense.reshape(*hidden.shape[:-1], -1)

    def opened(self, hidden: Float[Tensor, "tokens d_model"]) -> Opened:
        """Where any slot opens; each share is a function of the token's state and its slot alone, to the bit.

        A fast product finds what may be open, with room for the most that it can be off; of those few the scores are taken
        exactly. So neither other slots nor other tokens can show.
        """
        states = hidden.float()
        # |fl(h w) - h w| <= d u / (1 - d u) |h| |w| with u = 2^-24; twice that covers what else is rounded.
        slack = (states.shape[1] + 8) * 2.0**-23 * states.norm(dim=-1)
        shut = (states @ self.filters.t()).addr_(slack, self._lengths) < self._limits
        # Not what is at or above its limit: a state that is no number must show.
        tokens, slots = (~shut).nonzero(as_tuple=True)
        shares = torch.empty(len(tokens), device=states.device)
        for part in torch.arange(len(tokens), device=states.device).split(PAIRS_AT_ONCE):
            # Filters lie on the grid, so these sums are exact in any order.
            scores = exact_rows(states[tokens[part]], self.filters[slots[part]]) - self.offsets[slots[part]]
            low, high = self.low[slots[part]], self.high[slots[part]]
            shares[part] = ((scores - low) / (high - low)).clamp(0, 1)
        kept = ~(shares <= 0)
        return Opened(tokens[kept], slots[kept], shares[kept])

    def only(self, slots: Tensor) -> SlotGates:
        """The gates of some slots, in their order; what they do at a token is what they do beside the others."""
        return self._each(lambda tensor: tensor[slots])

    def on(self, device: torch.device | str) -> SlotGates:
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, function: Callable[[Tensor], Tensor]) -> SlotGates:
        return SlotGates(*(function(getattr(self, part.name)) for part in fields(self)))

    # What every pass asks for, and no pass changes. Not as inference tensors: the next pass may be one that learns.
    @cached_property
    def _lengths(self) -> Tensor:
        with torch.inference_mode(False):
            return self.filters.norm(dim=-1)

    @cached_property
    def _limits(self) -> Tensor:
        with torch.inference_mode(False):
            return self.low + self.offsets - SMALLEST * (self.low.abs() + self.offsets.abs())


@dataclass(frozen=True)
class Opened:
    """(token, slot) pairs at which a slot is open, by token and then by slot, and how far; three tensors of one length."""

    tokens: Tensor
    slots: Tensor
    shares: Tensor

    def change(self, values: Float[Tensor, "slots d_model"]) -> tuple[Tensor, Float[Tensor, "opened d_model"]]:
        """The tokens that change, and what is added at each: its slots one after the other, so that their order is fixed."""
        where, counts = torch.unique_consecutive(self.tokens, return_counts=True)
        first = counts.cumsum(0) - counts
        total = self.shares[first, None] * values[self.slots[first]]
        for rank in range(1, int(counts.max()) if len(counts) else 0):
            more = (counts > rank).nonzero()[:, 0]
            pair = first[more] + rank
            total[more] = total[more] + self.shares[pair, None] * values[self.slots[pair]]
        return where, total


def gates_of(slots: Sequence[Slot], gap_share: float, ramp_share: float, rivals: Rivals[Slot] | None = None) -> SlotGates:
    """Thresholds between each slot's smallest own answer and its largest answer to anything else known.

    Anything else: the bank, and the states of every other slot. The ramp begins at `gap_share` of the way from foreign
    to own, and is open at `ramp_share` of what is left.

    Filters are those of the grid of `editors.exact`, on which slots of today lie anyway.

    Args:
        rivals: what is known of an earlier set already; the same gates, from the pairs alone that it lacks.
    """
    ordered = sorted(slots, key=lambda s: s.subject)
    grid = on_grid(torch.stack([s.filter for s in ordered]))
    values = torch.stack([s.value for s in ordered])
    own, foreign = torch.tensor([s.own for s in ordered]), torch.tensor([s.foreign for s in ordered])
    offsets = torch.empty(len(ordered))
    for centre, members in by_mean(ordered):
        offsets[members] = exact_dense(grid[members].float(), centre[None])[:, 0]
    foreign = torch.maximum(foreign, (rivals or Rivals()).answers(ordered))
    foreign = torch.minimum(foreign, MOST_FOREIGN * own)
    low = foreign + gap_share * (own - foreign)
    return SlotGates(grid.float(), offsets, low, low + ramp_share * (own - low), values)


class SlotBook:
    """The active slots of one site; the gates are made when they are next needed."""

    def __init__(self, gap_share: float, ramp_share: float, device: torch.device, rivals: Rivals[Slot] | None = None) -> None:
        self.slots: dict[str, Slot] = {}
        self.rivals: Rivals[Slot] = rivals or Rivals()
        self.gap_share, self.ramp_share, self.device = gap_share, ramp_share, device
        #: Off while an edit looks at the base model.
        self.silent = False
        #: The gates of the slots that can open in what is being asked, where that is known; None: all.
        self.shown: SlotGates | None = None
        self._gates: SlotGates | None = None

    def put(self, subject: str, slot: Slot | None) -> None:
        """Set or remove a subject's slot."""
        if slot is None:
            self.slots.pop(subject, None)
        else:
            self.slots[subject] = slot
        self._gates = None

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """The slots keep shut for the length of a block."""
        before, self.silent = self.silent, True
        try:
            yield
        finally:
            self.silent = before

    @property
    def gates(self) -> SlotGates:
        if self._gates is None:
            made = gates_of(list(self.slots.values()), self.gap_share, self.ramp_share, self.rivals)
            self._gates = made.on(self.device)
        return self._gates

    def hook(self, _module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """A forward hook; every token decides for itself, so generation needs nothing special."""
        if self.silent or not self.slots:
            return None
        out = output[0] if isinstance(output, tuple) else output
        gates = self.gates if self.shown is None else self.shown
        found = gates.opened(inputs[0].reshape(-1, inputs[0].shape[-1]))
        if not len(found.tokens):
            return None
        where, change = found.change(gates.values)
        changed = out.reshape(-1, out.shape[-1]).clone()
        changed[where] = (changed[where].float() + change).to(out.dtype)
        changed = changed.reshape(out.shape)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


@torch.inference_mode()
def opened_tokens(model: EditableModel, texts: Sequence[str]) -> list[tuple[int, int]] | None:
    """(tokens at which any slot opens, tokens) of each text; None where the model wears no slot."""
    books = {site_of(name): b for name, b in model.memories.items() if isinstance(b, SlotBook) and b.slots}
    if not books:
        return None
    seen: dict[str, Tensor] = {}

    def watch(site: str, book: SlotBook) -> Undo:
        def note(_module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
            seen[site] = (book.gates.opening(inputs[0]) > 0).any(-1)

        return model.hook(site, note)

    undos, counts = [watch(site, book) for site, book in books.items()], []
    try:
        for text in texts:
            # One at a time, so that no padding is counted.
            model.next_token_log_probs([text])
            anywhere = torch.stack(list(seen.values())).any(0)
            counts.append((int(anywhere.sum()), anywhere.numel()))
    finally:
        for undo in undos:
            undo()
    return counts


@final
class SlotPatch(Patch):
    """Slots set (or, for None, removed) by one batch; each replaces the subject's slot below it.

    Args:
        grid: bits of the grid that filters lie on (see `editors.exact`); 0 for patches of before it, whose checkpoints
            have the last bits of the machine that wrote them.
    """

    kind: ClassVar[PatchKind] = "module"

    def __init__(
        self,
        site: str,
        mean: Float[Tensor, " d_model"],
        gap_share: float,
        ramp_share: float,
        changes: Mapping[str, Slot | None],
        grid: int = BITS,
    ) -> None:
        if grid not in (0, BITS):
            raise PatchError(f"the filters at {site} lie on a grid of {grid} bits, this release has {BITS}; update errata")
        self.site, self.gap_share, self.ramp_share, self.grid = site, gap_share, ramp_share, grid
        self.mean = mean.detach().float().cpu().contiguous()
        self.changes = {subject: None if s is None else _plain_slot(s) for subject, s in sorted(changes.items())}

    @property
    def _strangers(self) -> dict[str, Tensor]:
        """Subject -> mean of its slot, where that is not the patch's."""
        put = {subject: s.mean for subject, s in self.changes.items() if s is not None}
        return {subject: mean for subject, mean in put.items() if not torch.equal(mean, self.mean)}

    @property
    def rederivable(self) -> bool:
        return self.grid == BITS

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        put = [s for s in self.changes.values() if s is not None]
        width = len(self.mean)
        return {
            "mean": self.mean,
            "states": torch.cat([torch.empty(0, width), *(s.states for s in put)]),
            "filters": torch.stack([s.filter for s in put]) if put else torch.empty(0, width),
            "values": torch.stack([s.value for s in put]) if put else torch.empty(0, width),
            "own": torch.tensor([s.own for s in put]),
            "foreign": torch.tensor([s.foreign for s in put]),
            **({"other_means": torch.stack(list(self._strangers.values()))} if self._strangers else {}),
        }

    @property
    def meta(self) -> Mapping[str, Any]:
        slots = [
            {
                "subject": subject,
                "forms": None if s is None else len(s.states),
                "requests": [] if s is None else [r.model_dump(mode="json") for r in s.requests],
            }
            for subject, s in self.changes.items()
        ]
        settings = {"site": self.site, "gap_share": self.gap_share, "ramp_share": self.ramp_share}
        strangers = {"other_means": list(self._strangers)} if self._strangers else {}
        return {"form": "slots", **settings, "slots": slots, **strangers, **({"grid": self.grid} if self.grid else {})}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> SlotPatch:
        changes: dict[str, Slot | None] = {}
        means = dict(zip(meta.get("other_means", ()), tensors.get("other_means", ()), strict=True))
        number = at = 0
        for row in meta["slots"]:
            if row["forms"] is None:
                changes[row["subject"]] = None
                continue
            changes[row["subject"]] = Slot(
                row["subject"],
                tuple(EditRequest.model_validate(r, strict=False) for r in row["requests"]),
                tensors["states"][at : at + row["forms"]].clone(),
                tensors["filters"][number].clone(),
                float(tensors["own"][number]),
                float(tensors["foreign"][number]),
                tensors["values"][number].clone(),
                means.get(row["subject"], tensors["mean"]),
            )
            at, number = at + row["forms"], number + 1
        return cls(meta["site"], tensors["mean"], meta["gap_share"], meta["ramp_share"], changes, int(meta.get("grid", 0)))

    def attach(self, model: EditableModel) -> Undo:
        """Set the slots; the first patch of a site installs the hook.

        Raises:
            PatchError: the slots below were made with other settings, or a slot to be removed is not there.
        """
        name = slots_name(self.site)
        book: SlotBook | None = model.memories.get(name)
        remove: Undo | None = None
        if book is None:
            # What was found of slots holds of them whatever else is pushed.
            rivals = model.derived.setdefault(name, Rivals())
            book = SlotBook(self.gap_share, self.ramp_share, model.device, rivals)
        elif (book.gap_share, book.ramp_share) != (self.gap_share, self.ramp_share):
            raise PatchError(
                f"the slots of {self.site} on the model have gap_share {book.gap_share} and ramp_share {book.ramp_share}, the "
                f"patch has {self.gap_share} and {self.ramp_share}; edit this lineage with the settings that it began with"
            )
        missing = [s for s, slot in self.changes.items() if slot is None and s not in book.slots]
        if missing:
            raise PatchError(f"{self.site} has no slot of {missing[0]!r} to take out; push the patches in their order")
        if name not in model.memories:
            model.memories[name] = book
            remove = model.hook(self.site, book.hook, by_token=True)
        held = book
        before = {subject: held.slots.get(subject) for subject in self.changes}
        for subject, slot in self.changes.items():
            held.put(subject, slot)

        def undo() -> None:
            for subject, slot in before.items():
                held.put(subject, slot)
            if remove is not None:
                remove()
                model.memories.pop(name, None)

        return undo


def _plain_slot(slot: Slot) -> Slot:
    tensors = {name: _plain(value) for name, value in vars(slot).items() if isinstance(value, Tensor)}
    return replace(slot, **tensors)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().contiguous()
