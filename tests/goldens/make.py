"""Record the goldens anew: `python -m tests.goldens.make`. Read the difference before you commit it.

A golden changes only where the reference in this folder or its inputs change, never because an editor did.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.goldens import locate, trained, world
from tests.goldens.world import ADA, FACTS, FRANCE, GRACE, TURING, Array

HERE = Path(__file__).parent
#: More than float32 can tell apart, few enough to read.
DIGITS = 9


def rome() -> dict[str, Any]:
    w = world.weights()

    def both(*, published: bool) -> dict[str, Any]:
        return {"ada": locate.rome(w, ADA, world.ROME, published=published),
                "turing": locate.rome(w, TURING, world.ROME, published=published)}  # fmt: skip

    return {"published": both(published=True), "paper": both(published=False)}


def memit() -> dict[str, Any]:
    return locate.memit(world.weights(), FACTS, world.MEMIT)


def pmet() -> dict[str, Any]:
    return locate.pmet(world.weights(), FACTS, world.PMET)


def alphaedit() -> dict[str, Any]:
    first, second = locate.alphaedit(world.weights(), [[ADA, FRANCE], [GRACE, TURING]], world.ALPHAEDIT)
    return {"first": first, "second": second}


def grace() -> dict[str, Any]:
    book, steps = trained.grace(world.weights(), world.GRACE_FACTS, world.GRACE_NUMBERS)
    return {
        "rules": [step.rule for step in steps], "radii": {f"after {n}": step.radii for n, step in enumerate(steps, 1)},
        "keys": book.keys, "values": book.values,
    }  # fmt: skip


def mend() -> dict[str, Any]:
    return trained.mend(world.weights(), [ADA, TURING], world.MEND_PATHS, world.mend_net())


def lora() -> dict[str, Any]:
    return trained.lora(world.weights(), [ADA, FRANCE], world.lora_start(), world.LORA)


REFERENCES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "rome": rome, "memit": memit, "pmet": pmet, "alphaedit": alphaedit, "grace": grace, "mend": mend, "lora": lora,
}  # fmt: skip


def plain(value: Any) -> Any:
    """Lists and rounded numbers, as JSON holds them."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def written(golden: Mapping[str, Any]) -> str:
    """JSON with one row of numbers a line, so that a difference can be read."""
    text = json.dumps(plain(golden), indent=1)
    return re.sub(r"\[\s*([^\[\]{}]*?)\s*\]", lambda row: "[" + " ".join(row[1].split()) + "]", text) + "\n"


def arrays(golden: Mapping[str, Any]) -> dict[str, Array]:
    """Matrices by the path of names that leads to them."""
    found: dict[str, Array] = {}
    for name, value in golden.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{inner}": array for inner, array in arrays(value).items()}
        elif not isinstance(value[0], str):
            found[name] = np.array(value)
    return found


def recorded(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def main() -> None:
    for name, reference in REFERENCES.items():
        (HERE / f"{name}.json").write_text(written(reference()), encoding="utf-8")


if __name__ == "__main__":
    main()
