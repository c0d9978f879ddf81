"""What the slots' layer reads at every token of a text: computed once for each base, kept on disk, met with every gate once.

A row of tokens is known by the digest of its tokens, so tokenizer and form of the question are part of it. States lie in
portions of a few megabytes; beside each lies which gates it has met and where they opened. A gate is known by its own
numbers: one whose threshold has moved is another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from editors.model import tensor_bytes
from editors.patches.slots import SlotGates
from editors.proof.sealed import read_sealed, write_sealed

#: Bytes of a digest that names a row, a gate or a view.
NAME = 16
#: Bytes of states in one portion.
PORTION_BYTES = 1 << 25
#: So many portions of less than half of that are made one.
SMALL_PORTIONS = 8
#: Scores of tokens and gates that are held at once.
SCORES_AT_ONCE = 1 << 23
#: Gates that a portion has met and that are no longer there are forgotten when they are this many times as many as the others.
FORGOTTEN_AT = 3
#: (token, slot, bits of the share)
Opening = tuple[int, int, int]
#: Where no slot opens.
BASE = bytes(NAME)


def name_of(*parts: bytes | memoryview) -> bytes:
    """The digest of some bytes, each part with its length."""
    found = hashlib.blake2b(digest_size=NAME)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()


def row_name(ids: Sequence[int]) -> bytes:
    """The name of a row of tokens."""
    return name_of(torch.tensor(ids, dtype=torch.int32).numpy().tobytes())


@dataclass(frozen=True)
class NamedGates:
    """Gates with their names: `gates` of what decides where each opens, `values` of what it adds there."""

    gates: SlotGates
    names: tuple[bytes, ...]
    values: tuple[bytes, ...]

    @classmethod
    def of(cls, gates: SlotGates) -> NamedGates:
        gates = gates.on("cpu")
        ends = torch.stack([gates.offsets, gates.low, gates.high], 1)
        names = tuple(name_of(tensor_bytes(f), tensor_bytes(e)) for f, e in zip(gates.filters, ends, strict=True))
        return cls(gates, names, tuple(name_of(tensor_bytes(v)) for v in gates.values))


@dataclass
class _Portion:
    """Rows whose states lie in one file, and where the gates that they have met open.

    Attributes:
        met: gate -> its number in `opened`.
        opened: (row, token, gate, bits of the share) of each opening.
    """

    path: Path
    rows: list[bytes]
    lengths: list[int]
    met: dict[bytes, int] = field(default_factory=dict)
    opened: Tensor = field(default_factory=lambda: torch.empty(0, 4, dtype=torch.int32))

    @property
    def beside(self) -> Path:
        return self.path.with_suffix(".opened")

    @property
    def rows_held(self) -> dict[str, Tensor]:
        return {"rows": bytes_of(self.rows), "lengths": torch.tensor(self.lengths, dtype=torch.int32)}

    def write_openings(self) -> None:
        write_sealed(self.beside, {**self.rows_held, "met": bytes_of(list(self.met)), "opened": self.opened})

    def remove(self) -> None:
        for path in (self.beside, self.path):
            path.unlink(missing_ok=True)

    def forget(self, names: Sequence[bytes]) -> None:
        """Of the gates that were met, keep these alone, numbered in their order."""
        new = {name: number for number, name in enumerate(name for name in names if name in self.met)}
        number_of = torch.full((len(self.met),), -1, dtype=torch.int32)
        for name, number in new.items():
            number_of[self.met[name]] = number
        self.opened = self.opened[number_of[self.opened[:, 2].long()] >= 0]
        self.opened[:, 2] = number_of[self.opened[:, 2].long()]
        self.met = new


class KeptStates:
    """States of rows at one site of one base on one machine, and which of today's gates open where."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._portions: list[_Portion] = []
        self._known: set[bytes] = set()
        self._fresh: dict[bytes, Tensor] = {}
        self._fresh_bytes = 0
        #: Rows that were put so far: it has moved where openings may be more.
        self.taken = 0
        # The newest first: what a killed process was about to remove has nothing that is not in a newer one.
        for path in sorted(folder.glob("*.states"), key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True):
            self._take(path)
        self._portions.reverse()

    def __contains__(self, row: bytes) -> bool:
        return row in self._known or row in self._fresh

    def put(self, row: bytes, states: Tensor) -> None:
        """Keep the states (tokens, d_model) of a row; all are on disk after `save`."""
        if row not in self:
            self.taken += 1
            self._fresh[row] = states.detach().cpu().clone()
            self._fresh_bytes += states.numel() * states.element_size()
            if self._fresh_bytes >= PORTION_BYTES:
                self.save()

    def save(self) -> None:
        """Write the rows that are new, fewer than a portion holds: a full one is written at once."""
        if self._fresh:
            rows, states = list(self._fresh), list(self._fresh.values())
            self._fresh, self._fresh_bytes = {}, 0
            self._add(rows, [len(s) for s in states], torch.cat(states))

    def openings(self, named: NamedGates) -> dict[bytes, list[Opening]]:
        """Openings by row, in the order of tokens and slots; a row that opens nothing is not among them.

        Every row that is kept is meant; gates that a portion has not met are met now.
        """
        self.save()
        slots_of: dict[bytes, list[int]] = {}
        for slot, name in enumerate(named.names):
            slots_of.setdefault(name, []).append(slot)
        found: dict[bytes, set[Opening]] = {}
        for portion in list(self._portions):
            missing = [slots[0] for name, slots in slots_of.items() if name not in portion.met]
            if missing and not self._meet(portion, named, missing):
                continue
            wanted = {portion.met[name]: slots for name, slots in slots_of.items()}
            for row, token, gate, share in portion.opened.tolist():
                for slot in wanted.get(gate, ()):
                    found.setdefault(portion.rows[row], set()).add((token, slot, share))
        self._join_small(named)
        return {row: sorted(opened) for row, opened in found.items()}

    def prune(self, limit: int) -> None:
        """Forget the oldest portions until at most `limit` bytes of states are left."""
        self.save()
        sizes = [portion.path.stat().st_size for portion in self._portions]
        while self._portions and sum(sizes) > limit:
            self._lose(self._portions[0])
            sizes.pop(0)

    # ------------------------------------------------------------ portions

    def _take(self, path: Path) -> None:
        """A portion of the disk, by what lies beside it or else by its own content."""
        portion = _Portion(path, [], [])
        beside = read_sealed(portion.beside)
        held = beside if beside is not None else read_sealed(path)
        if held is None:
            return
        portion.rows, portion.lengths = names_of(held["rows"]), held["lengths"].tolist()
        if beside is not None:
            portion.met = {name: number for number, name in enumerate(names_of(beside["met"]))}
            portion.opened = beside["opened"]
        if self._known.issuperset(portion.rows):
            portion.remove()
            return
        self._portions.append(portion)
        self._known.update(portion.rows)

    def _add(self, rows: list[bytes], lengths: list[int], states: Tensor) -> _Portion:
        portion = _Portion(self._folder / f"{name_of(*rows).hex()}.states", rows, lengths)
        write_sealed(portion.path, {**portion.rows_held, "states": states})
        self._portions.append(portion)
        self._known.update(rows)
        return portion

    def _lose(self, portion: _Portion) -> None:
        self._portions.remove(portion)
        portion.remove()
        self._known = {row for other in self._portions for row in other.rows}

    def _states(self, portion: _Portion) -> Tensor | None:
        held = read_sealed(portion.path)
        if held is None or names_of(held["rows"]) != portion.rows:
            self._lose(portion)
            return None
        return held["states"]

    def _join_small(self, named: NamedGates) -> None:
        """Make one of small portions, so that a thousand nights leave no thousand files. All have met today's gates."""
        small = [p for p in self._portions if p.path.stat().st_size < PORTION_BYTES // 2]
        if len(small) < SMALL_PORTIONS:
            return
        held = [(portion, states) for portion in small if (states := self._states(portion)) is not None]
        at, opened = 0, []
        for portion, _ in held:
            portion.forget(list(dict.fromkeys(named.names)))
            opened.append(portion.opened + torch.tensor([at, 0, 0, 0], dtype=torch.int32))
            at += len(portion.rows)
        rows = [row for portion, _ in held for row in portion.rows]
        lengths = [length for portion, _ in held for length in portion.lengths]
        joined = self._add(rows, lengths, torch.cat([states for _, states in held]))
        joined.met, joined.opened = dict(held[0][0].met), torch.cat(opened)
        joined.write_openings()
        for portion, _ in held:
            self._portions.remove(portion)
            portion.remove()

    # ------------------------------------------------------------ gates

    def _meet(self, portion: _Portion, named: NamedGates, missing: Sequence[int]) -> bool:
        """Find where gates that the portion has not met open in it; False where its states are lost."""
        states = self._states(portion)
        if states is None:
            return False
        if len(portion.met) > FORGOTTEN_AT * len(named.names):
            portion.forget(list(dict.fromkeys(named.names)))
        numbers = torch.tensor([portion.met.setdefault(named.names[slot], len(portion.met)) for slot in missing])
        some = named.gates.only(torch.tensor(missing))
        lengths = torch.tensor(portion.lengths)
        owner = torch.arange(len(lengths)).repeat_interleave(lengths)
        within = torch.arange(len(owner)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        parts, at = [portion.opened], 0
        for block in states.split(max(1, SCORES_AT_ONCE // len(missing))):
            found = some.opened(block)
            tokens, shares = found.tokens + at, found.shares.view(torch.int32)
            parts.append(torch.stack([owner[tokens].int(), within[tokens].int(), numbers[found.slots].int(), shares], 1))
            at += len(block)
        portion.opened = torch.cat(parts)
        portion.write_openings()
        return True


def bytes_of(names: Sequence[bytes]) -> Tensor:
    """Names one after the other, as a tensor of bytes."""
    return torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8) if names else torch.empty(0, dtype=torch.uint8)


def names_of(data: Tensor) -> list[bytes]:
    """What `bytes_of` was made of."""
    whole = data.numpy().tobytes()
    return [whole[at : at + NAME] for at in range(0, len(whole), NAME)]
