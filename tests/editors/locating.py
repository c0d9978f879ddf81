"""Contexts, settings and matrices that the tests of locating editors' mathematics share."""

from __future__ import annotations

import torch
from torch import Tensor

from editors.mechanics.contexts import Contexts
from editors.mechanics.settings import LocateEditConfig

CONTEXTS = Contexts(("{}", "It is said. {}", "Paris is big. {}"), (0, 1, 1))


def config(**values: object) -> LocateEditConfig:
    return LocateEditConfig(**{"value_steps": 6, "value_decay": 1e-3, "clamp_norm": 50.0, "stop_loss": None, **values})


def positive(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 2 * size, generator=generator, dtype=torch.float64)
    return x @ x.t() / (2 * size)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
