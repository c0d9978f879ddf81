"""Damage a finished home at random, many times, and count what the audit finds.

    python -m tests.flows.tamper --home HOME --count 500

HOME is the home of finished nights (`ERRATA_HOME`); it is copied first. Each time one file of the store, or of an export
of the warehouse, gets a byte changed, deleted or inserted, two files swapped, or a file deleted; the audit must find it.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tasks.audit import audit
from tasks.notes import export_warehouse
from tasks.settings import configure
from warehouse.digests import sha256_file

KINDS = ("change", "delete byte", "insert", "swap", "delete file")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as scratch:
        home, exported = Path(scratch) / "home", Path(scratch) / "export"
        shutil.copytree(asked.home, home)
        settings = configure({"home": str(home)})
        export_warehouse(settings, exported)
        sound = audit(settings, exported=exported).breaks
        if sound:
            print(f"the home is not sound to begin with: {sound[0]}")
            return 1
        missed, done = [], Counter[str]()
        for number in range(asked.count):
            kind, paths = damage(files_of(home / "store", exported), chance)
            kept = {path: backup for path, backup in paths}
            found = audit(settings, exported=exported).breaks
            done[kind] += 1
            if not found:
                missed.append((kind, [str(p) for p in kept]))
            for path, data in kept.items():
                path.write_bytes(data)
            if (number + 1) % 25 == 0:
                print(f"{number + 1} damages, {len(missed)} missed", flush=True)
        print(dict(done), f"missed: {missed or 'none'}")
        return 1 if missed else 0


def files_of(*roots: Path) -> list[Path]:
    """Every file that something depends on; not the store's own scratch."""
    return sorted(
        p for root in roots for p in root.rglob("*")
        if p.is_file() and p.stat().st_size and not p.relative_to(root).parts[0].startswith(".")
    )  # fmt: skip


def damage(files: list[Path], chance: random.Random) -> tuple[str, list[tuple[Path, bytes]]]:
    """Do one damage; returns its kind and what the files held before."""
    kind, path = chance.choice(KINDS), chance.choice(files)
    data = path.read_bytes()
    at = chance.randrange(len(data))
    if kind == "change":
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :])
    elif kind == "delete byte":
        path.write_bytes(data[:at] + data[at + 1 :])
    elif kind == "insert":
        path.write_bytes(data[:at] + bytes([chance.randrange(256)]) + data[at:])
    elif kind == "delete file":
        path.unlink()
    else:
        other = chance.choice([f for f in files if sha256_file(f) != sha256_file(path)])
        was = other.read_bytes()
        other.write_bytes(data)
        path.write_bytes(was)
        return kind, [(path, data), (other, was)]
    return kind, [(path, data)]


if __name__ == "__main__":
    sys.exit(main())
