"""The outer loop of a training run that outlives a kill: Adam over named tensors whose whole state is saved and taken up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from editors.base import Workbench

#: Parts of Adam's state for a tensor, beside the tensor itself.
MOMENTS = ("exp_avg", "exp_avg_sq")
#: States saved and points of the curve kept over a whole run, about.
SAVES, POINTS = 20, 40


class Outer:
    """Adam with a bound on the gradient's norm over named tensors, each with its own rate."""

    def __init__(self, tensors: Mapping[str, Tensor], rates: Mapping[str, float], clip: float) -> None:
        if set(tensors) != set(rates):
            raise ValueError(f"tensors {sorted(tensors)} with rates for {sorted(rates)}")
        self.tensors, self._clip = dict(tensors), clip
        self._adam = torch.optim.Adam([{"params": [t], "lr": rates[name]} for name, t in self.tensors.items()])

    def step(self, scale: float = 1.0) -> float:
        """One step with the gradients gathered since the last; `scale` is the share of the rates to go.

        Returns:
            The gradient's norm before it was bounded.
        """
        norm = torch.nn.utils.clip_grad_norm_(list(self.tensors.values()), self._clip)
        rates = [group["lr"] for group in self._adam.param_groups]
        for group, rate in zip(self._adam.param_groups, rates, strict=True):
            group["lr"] = rate * scale
        self._adam.step()
        for group, rate in zip(self._adam.param_groups, rates, strict=True):
            group["lr"] = rate
        self._adam.zero_grad(set_to_none=True)
        return float(norm)

    def state(self) -> dict[str, Tensor]:
        """The tensors and Adam's moments of them."""
        out: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            known = self._adam.state.get(tensor, {})
            out[name] = tensor.detach()
            out |= {f"{name}|{part}": known[part] if known else torch.zeros_like(tensor) for part in MOMENTS}
        return out

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Go on from a saved state after `steps` steps."""
        for name, tensor in self.tensors.items():
            tensor.data.copy_(state[name])
            moments = {part: state[f"{name}|{part}"].to(tensor.device).clone() for part in MOMENTS}
            self._adam.state[tensor] = {"step": torch.tensor(float(steps)), **moments}


def train(
    outer: Outer,
    updates: int,
    bench: Workbench,
    gather: Callable[[int], dict[str, float]],
    facts: Callable[[], dict[str, Any]] = dict,
    recall: Callable[[Mapping[str, Any]], None] = lambda _: None,
    decay_from: float = 0.5,
) -> list[dict[str, float]]:
    """Run the updates, from where the last run was stopped.

    Args:
        gather: leaves the gradients of update `i` in the tensors and says what it measured; it must depend on nothing
            but `i`, the tensors and what `recall` gave back.
        facts, recall: plain state of the caller that is saved and given back.
        decay_from: share of the run from which on the rates fall to zero in a straight line.

    Returns:
        The loss curve: about `POINTS` points, each the mean of its updates, with their last number as `update`.
    """
    curve: list[dict[str, float]] = []
    window: list[dict[str, float]] = []
    start, found = 0, bench.load()
    if found is not None:
        start, state, saved = found
        outer.restore(state, start)
        curve, window = list(saved["curve"]), list(saved["window"])
        recall(saved["caller"])
    every_point, every_save = max(1, updates // POINTS), max(1, updates // SAVES)
    for number in range(start, updates):
        window.append(gather(number))
        outer.step(min(1.0, (1 - number / updates) / max(1e-9, 1 - decay_from)))
        done = number + 1
        if done % every_point == 0 or done == updates:
            means = {name: sum(w[name] for w in window) / len(window) for name in window[0]}
            curve.append({"update": float(done), **means})
            window = []
            bench.progress(done, updates, ", ".join(f"{name} {value:.3f}" for name, value in means.items()))
        if done % every_save == 0 and done < updates:
            bench.save(done, outer.state(), {"curve": curve, "window": window, "caller": facts()})
    return curve
