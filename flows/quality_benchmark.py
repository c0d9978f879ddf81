"""Measure editors on facts that the model knows; rows go to the warehouse, and `errata leaderboard` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import flow

from editors.base import Mode
from tasks.quality.benchmark import run_benchmark
from tasks.quality.requests import Split
from tasks.quality.rows import BenchmarkRow
from tasks.settings import configure


@flow(name="benchmark", validate_parameters=False)
def benchmark(
    editors: Sequence[str] | None = None,
    modes: Sequence[Mode] = ("single",),
    edits: int = 100,
    batch_size: int = 0,
    split: Split = "report",
    seed: int = 0,
    lineage: str | None = None,
    config: dict[str, Any] | None = None,
) -> list[BenchmarkRow]:
    """As `errata benchmark`, which has a word on each argument. `editors` None: the settings' own."""
    settings = configure(config, lineage=lineage)
    names = list(editors or [settings.editor.name])
    command = f"the deployment benchmark: {','.join(names)} {','.join(modes)} {edits}"
    return run_benchmark(settings, names, list(modes), edits, batch_size, split=split, seed=seed, command=command)
