"""The outer loop: Adam as torch has it, rates that fall, and a run that a kill does not change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.base import NO_BENCH, Workbench
from editors.nets.outer import POINTS, Outer, train
from tests.stand_ins import Killed


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"a": torch.randn(3).requires_grad_(True), "b": torch.randn(2, 2).requires_grad_(True)}


def pull(outer: Outer) -> Callable[[int], dict[str, float]]:
    """Every tensor towards the number of the update."""

    def gather(number: int) -> dict[str, float]:
        loss = torch.stack([(t - number).square().sum() for t in outer.tensors.values()]).sum()
        loss.backward()
        return {"loss": loss.item()}

    return gather


def run(updates: int, bench: Workbench = NO_BENCH, **options: Any) -> tuple[Outer, list[dict[str, float]]]:
    outer = Outer(tensors(), {"a": 0.1, "b": 0.01}, 1.0)
    return outer, train(outer, updates, bench, pull(outer), **options)


def test_a_step_is_adams_with_the_tensors_own_rate_after_clipping() -> None:
    outer, slow = Outer(tensors(), {"a": 0.1, "b": 0.01}, 1.0), tensors()
    adam = torch.optim.Adam([{"params": [slow["a"]], "lr": 0.1}, {"params": [slow["b"]], "lr": 0.01}])
    gather = pull(outer)
    for number in range(3):
        gather(number)
        norm = outer.step()
        torch.stack([(t - number).square().sum() for t in slow.values()]).sum().backward()
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(list(slow.values()), 1.0)))
        adam.step()
        adam.zero_grad()
    assert all(torch.equal(outer.tensors[name], slow[name]) for name in slow)
    assert all(t.grad is None for t in outer.tensors.values())


def test_the_rates_fall_to_zero_in_the_last_part_of_a_run() -> None:
    seen: list[float] = []

    class Watched(Outer):
        def step(self, scale: float = 1.0) -> float:
            seen.append(scale)
            return super().step(scale)

    outer = Watched(tensors(), {"a": 0.1, "b": 0.1}, 1.0)
    train(outer, 8, NO_BENCH, pull(outer))
    assert seen == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_the_curve_has_means_of_its_updates_and_the_last_one_as_its_end() -> None:
    updates = 2 * POINTS + 1
    outer, curve = run(updates)
    fresh = Outer(tensors(), {"a": 0.1, "b": 0.01}, 1.0)
    first = []
    for number in range(2):
        first.append(pull(fresh)(number)["loss"])
        fresh.step()
    assert curve[0] == {"update": 2.0, "loss": pytest.approx(sum(first) / 2)}
    assert curve[-1]["update"] == updates and len(curve) == POINTS + 1
    assert outer.tensors["a"].shape == (3,)


@pytest.mark.parametrize("stop", [3, 11, 22])
def test_a_killed_run_goes_on_to_the_same_tensors_and_curve(stop: int, tmp_path: Path) -> None:
    def kill(step: int, total: int, note: str) -> None:
        if step == stop:
            raise Killed

    whole, curve = run(23)
    with pytest.raises(Killed):
        run(23, Workbench(tmp_path, kill))
    again, taken_up = run(23, Workbench(tmp_path))
    assert taken_up == curve
    assert all(torch.equal(again.tensors[name], whole.tensors[name]) for name in whole.tensors)


def test_the_callers_facts_come_back_after_a_kill(tmp_path: Path) -> None:
    given: list[Mapping[str, Any]] = []
    run(23, Workbench(tmp_path), facts=lambda: {"multiplier": 0.25})
    run(23, Workbench(tmp_path), recall=given.append)
    assert given == [{"multiplier": 0.25}]


def test_a_tensor_without_a_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="rates"):
        Outer(tensors(), {"a": 0.1}, 1.0)
