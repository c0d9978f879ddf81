"""Two processes begin the same night at once: in one home, then in two homes on one store.

python -m tests.flows.race
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.flows.conftest import Home
from tests.flows.kill import Fork, Scene, Wrong, fork, own_folder, prepare, state_of
from tests.flows.nights import before_nights
from warehouse.checkpoints.manifests import manifest_at, pointer_of
from warehouse.checkpoints.promotion import verify
from warehouse.errors import LineageMoved


def attempt(home: Home) -> dict[str, Any]:
    """Run the night; a lost race is an answer."""
    try:
        home.run("night-01")
    except LineageMoved as lost:
        return {"lost": str(lost)}
    return {"lost": ""}


def both(scratch: Path, homes: tuple[Home, Home]) -> list[str]:
    """What each of the two was told; empty for one that ended well."""
    begun = [Fork.of(scratch / f"fork-{i}", lambda home=home: attempt(home)) for i, home in enumerate(homes)]
    return [f.end().result["lost"] for f in begun]


def one_home(scratch: Path, scene: Scene) -> None:
    """The second waits for the first and finds the night finished."""
    home = scene.home(scratch / "home")
    told = both(scratch, (home, home))
    if told != ["", ""]:
        raise Wrong(f"one home: {told}")
    found = fork(scratch, lambda: state_of(home)).result
    if wrong := [name for name, rows in found.items() if rows != scene.ended[name]]:
        raise Wrong(f"one home: {wrong} differ from one undisturbed night")
    print("one home: both ended with one night's records, edits, checkpoint and trail")


def one_store(scratch: Path, scene: Scene) -> None:
    """Exactly one pointer is written; who came second carries on with the first one's manifest, or is told."""
    homes = tuple(Home(before_nights(scene.world, scratch / f"home-{i}", store=str(scratch / "store"))) for i in (1, 2))
    told = both(scratch, (homes[0], homes[1]))
    lost = [text for text in told if text]
    if len(lost) > 1 or not all("lineage moved" in text for text in lost):
        raise Wrong(f"one store: {told}")
    store = homes[0].store
    found = pointer_of(store, "production")
    if found is None:
        raise Wrong("one store: no channel was moved")
    verify(store, manifest_at(store, found[0]))
    manifests, parent = list(store.list("manifests/")), found[0].parent
    if len(manifests) != 1 or parent is not None:
        raise Wrong(f"one store: manifests {manifests}, the pointer's parent {parent}")
    for home, text in zip(homes, told, strict=True):
        if not text:
            fork(scratch, lambda home=home: {"state": bool(state_of(home))})
    print(f"one store: one move of the channel; {2 - len(lost)} ended well, {len(lost)} told why: {lost}")


def main() -> int:
    with own_folder() as scratch:
        (scene,) = prepare(scratch, "night-01", asked=True)
        try:
            one_home(scratch, scene)
            one_store(scratch, scene)
        except Wrong as wrong:
            print(f"WRONG: {wrong}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
