"""Damage finished homes at random, many times, and count what the audit finds.

    python -m tests.flows.tamper --count 500 [--home HOME]

Without `--home` (a finished `ERRATA_HOME`, which is copied) two small homes are made: one by `memit`, signed, with a promoted
and a rejected night; one by `ledger`, unsigned, with two promoted nights. Each time one file (of the store, of an export of
the warehouse, or of a pulled checkpoint) gets a byte changed, deleted, inserted or swapped with another, two files change
places, or a file is deleted or added; the audit must find it.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.recheck.audit import audit
from tasks.serving.signing import check_signature
from tasks.settings import Settings, configure
from tasks.trail import export_warehouse
from tasks.workspace import store_of
from tests.flows.nights import PERMISSIVE, STRICT, before_nights, write_before_nights, write_policy, write_world
from warehouse.checkpoints.object_store import RESERVED
from warehouse.checkpoints.pull import pull
from warehouse.checkpoints.signing import generate_key
from warehouse.digests import sha256_file
from warehouse.errors import WarehouseError

Before = list[tuple[Path, bytes | None]]


@dataclass
class Target:
    """One sound home with an export of its warehouse and its production checkpoint pulled."""

    name: str
    settings: Settings
    exported: Path
    pulled: Path

    def places(self) -> dict[str, list[Path]]:
        """Files by where they lie: the store's first folders, `export`, `pulled`. Not the store's own scratch."""
        store = self.settings.home / "store"
        found = {folder.name: _files(folder) for folder in sorted(store.iterdir()) if folder.name != RESERVED}
        return found | {"export": _files(self.exported), "pulled": _files(self.pulled)}

    def breaks(self) -> list[str]:
        """Everything that the audit, and a pull into the folder that is there, find wrong."""
        found = [f"{b.what}: {b.found}" for b in audit(self.settings, exported=self.exported).breaks]
        store = store_of(self.settings)
        try:
            pull(store, self.settings.channel_name, self.pulled, check=lambda f, m: check_signature(self.settings, store, m, f))
        except WarehouseError as error:
            found.append(str(error))
        return found


@dataclass
class Tally:
    """Damages by kind and place, and those that nothing found."""

    done: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)

    def table(self) -> str:
        kinds, places = sorted({k for k, _ in self.done}), sorted({p for _, p in self.done})
        rows = [["", *kinds, "all"]]
        rows += [[p, *(str(self.done[k, p]) for k in kinds), str(sum(self.done[k, p] for k in kinds))] for p in places]
        rows.append(["all", *(str(sum(self.done[k, p] for p in places)) for k in kinds), str(self.done.total())])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def tamper(targets: Sequence[Target], count: int, seed: int = 0, progress: Callable[[str], None] = lambda _: None) -> Tally:
    """Damage one file of one home, look, put it back; `count` times."""
    chance, tally = random.Random(seed), Tally()
    for number in range(count):
        target = targets[number % len(targets)]
        places = target.places()
        place = chance.choice(sorted(places))
        kind, before = damage(places[place], places, chance)
        if not target.breaks():
            tally.missed.append(f"{target.name}, {kind}: {', '.join(str(path) for path, _ in before)}")
        tally.done[kind, place] += 1
        for path, data in before:
            path.write_bytes(data) if data is not None else path.unlink()
        if (number + 1) % 25 == 0:
            progress(f"{number + 1} damages, {len(tally.missed)} missed")
    return tally


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


# ---------------------------------------------------------------- kinds of damage


def damage(files: list[Path], places: dict[str, list[Path]], chance: random.Random) -> tuple[str, Before]:
    """Do one damage to one of the files; returns its kind and what the files held before (None: there was none)."""
    kind, path = chance.choice(sorted(_KINDS)), chance.choice(files)
    return kind, _KINDS[kind](path, places, chance)


def _rewrite(path: Path, new: Callable[[bytes], bytes]) -> Before:
    data = path.read_bytes()
    path.write_bytes(new(data))
    return [(path, data)]


def _change(path: Path, _places: Any, chance: random.Random) -> Before:
    def new(data: bytes) -> bytes:
        if not data:
            return b"\0"
        at = chance.randrange(len(data))
        return data[:at] + bytes([data[at] ^ chance.randrange(1, 256)]) + data[at + 1 :]

    return _rewrite(path, new)


def _delete(path: Path, _places: Any, chance: random.Random) -> Before:
    def new(data: bytes) -> bytes:
        at = chance.randrange(len(data)) if data else 0
        return data[:at] + data[at + 1 :] if data else b"\0"

    return _rewrite(path, new)


def _insert(path: Path, _places: Any, chance: random.Random) -> Before:
    def new(data: bytes) -> bytes:
        at = chance.randrange(len(data) + 1)
        # Often a space, which a reader of JSON does not mind.
        return data[:at] + (b" " if chance.random() < 0.5 else bytes([chance.randrange(256)])) + data[at:]

    return _rewrite(path, new)


def _swap_bytes(path: Path, places: Any, chance: random.Random) -> Before:
    data = path.read_bytes()
    if len(set(data)) < 2:
        return _change(path, places, chance)
    one = chance.randrange(len(data))
    other = chance.choice([at for at in range(max(0, one - 500), min(len(data), one + 500)) if data[at] != data[one]] or [-1])
    if other < 0:
        return _change(path, places, chance)
    new = bytearray(data)
    new[one], new[other] = new[other], new[one]
    path.write_bytes(new)
    return [(path, data)]


def _swap_files(path: Path, places: dict[str, list[Path]], chance: random.Random) -> Before:
    """With a file of the same ending, which takes longest to be noticed."""
    own = sha256_file(path)
    alike = [f for found in places.values() for f in found if f.suffix == path.suffix and sha256_file(f) != own]
    if not alike:
        return _change(path, places, chance)
    other = chance.choice(alike)
    data, was = path.read_bytes(), other.read_bytes()
    other.write_bytes(data)
    path.write_bytes(was)
    return [(path, data), (other, was)]


def _delete_file(path: Path, _places: Any, _chance: random.Random) -> Before:
    data = path.read_bytes()
    path.unlink()
    return [(path, data)]


def _add_file(path: Path, _places: Any, chance: random.Random) -> Before:
    """A copy of the file, or a byte, under another name beside it."""
    new = path.with_name(f"{chance.randrange(1 << 32):08x}{path.suffix}")
    new.write_bytes(path.read_bytes() if chance.random() < 0.5 else b"x")
    return [(new, None)]


_KINDS: dict[str, Callable[[Path, dict[str, list[Path]], random.Random], Before]] = {
    "change byte": _change, "delete byte": _delete, "insert byte": _insert, "swap bytes": _swap_bytes,
    "swap files": _swap_files, "delete file": _delete_file, "add file": _add_file,
}  # fmt: skip


# ---------------------------------------------------------------- homes


def target_of(name: str, settings: Settings, folder: Path) -> Target:
    """Export and pull beside a home. Raises ValueError where it is not sound to begin with."""
    store, made = store_of(settings), Target(name, settings, folder / f"{name}-export", folder / f"{name}-pulled")
    export_warehouse(settings, made.exported)
    pull(store, settings.channel_name, made.pulled)
    if sound := made.breaks():
        raise ValueError(f"the home {name} is not sound to begin with: {sound[0]}")
    return made


def small_homes(world: dict[str, Any], folder: Path) -> list[Target]:
    """A signed home by `memit` with a promoted and a rejected night, and an unsigned one by `ledger` with two promoted."""
    from flows.nightly import nightly_refresh

    generate_key(folder / "key.pem", folder / "key.pub")
    signed = before_nights(world, folder / "memit", signing={"private_key": str(folder / "key.pem")})
    plain = before_nights(world, folder / "ledger", editor={"name": "ledger"})
    strict = {"policy": str(write_policy(folder / "refusing.yaml", STRICT, "refusing"))}
    loose = {"policy": str(write_policy(folder / "loose.yaml", PERMISSIVE, "loose"))}
    runs = [(signed | loose, "night-01", "promote"), (signed | strict, "night-02", "reject")]
    runs += [(plain | loose, night, "promote") for night in ("night-01", "night-02")]
    for config, night, wanted in runs:
        found = nightly_refresh(night=night, config=config).verdict
        if found != wanted:
            raise ValueError(f"{config['home']}, {night}: {found}, not {wanted}")
    return [
        target_of(name, configure(config), folder) for name, config in (("memit", signed | loose), ("ledger", plain | loose))
    ]


@contextmanager
def _targets(home: Path | None) -> Iterator[list[Target]]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if home is not None:
            shutil.copytree(home, folder / "home")
            yield [target_of("home", configure({"home": str(folder / "home")}), folder)]
            return
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=120):
            (folder / "world").mkdir()
            world = write_world(folder / "world")
            write_before_nights(world)
            yield small_homes(world, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with _targets(asked.home) as targets:
        start = time.monotonic()
        tally = tamper(targets, asked.count, asked.seed, lambda line: print(line, flush=True))
        seconds = time.monotonic() - start
    print(tally.table())
    print(f"{tally.done.total()} damages in {seconds:.0f} s, {len(tally.missed)} missed")
    print("\n".join(tally.missed))
    return 1 if tally.missed else 0


if __name__ == "__main__":
    sys.exit(main())
