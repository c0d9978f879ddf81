"""A preparation in stages on one workbench: a kill in a later stage does not lose what the earlier ones learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from editors.base import Workbench

#: What a stage learnt: named tensors, and its card.
Learnt = tuple[dict[str, Tensor], dict[str, Any]]
_DONE = "done|"


class _Stage(Workbench):
    """The workbench as one stage sees it: its own states, saved together with the results of the stages before."""

    def __init__(self, bench: Workbench, name: str, tensors: Mapping[str, Tensor], cards: Mapping[str, Any]) -> None:
        super().__init__()
        self._bench, self._name, self._tensors, self._cards = bench, name, tensors, cards

    def progress(self, step: int, total: int, note: str = "") -> None:
        self._bench.progress(step, total, f"{self._name}: {note}")

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
        kept = {_DONE + name: tensor for name, tensor in self._tensors.items()}
        self._bench.save(step, {**kept, **tensors}, {"stage": self._name, "cards": self._cards, "own": dict(facts or {})})

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        found = self._bench.load()
        if found is None or found[2]["stage"] != self._name:
            return None
        return found[0], {n: t for n, t in found[1].items() if not n.startswith(_DONE)}, found[2]["own"]


def run_stages(bench: Workbench, stages: Mapping[str, Callable[[Workbench, Mapping[str, Tensor]], Learnt]]) -> Learnt:
    """Run named stages in their order; each is given what those before it learnt.

    Returns:
        All tensors, and the stages' cards by name.
    """
    tensors: dict[str, Tensor] = {}
    cards: dict[str, Any] = {}
    found = bench.load()
    if found is not None:
        cards = dict(found[2]["cards"])
        tensors = {name.removeprefix(_DONE): tensor for name, tensor in found[1].items() if name.startswith(_DONE)}
    for name, learn in stages.items():
        if name in cards:
            continue
        fresh, cards[name] = learn(_Stage(bench, name, dict(tensors), dict(cards)), dict(tensors))
        tensors |= fresh
    return tensors, cards
