"""Options of `errata benchmark` that decide how many edits a run has and where its curve has points."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app


def asked(monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[int, list[int]]:
    """(edits, checkpoints) that the command hands on."""
    seen: dict[str, Any] = {}

    def measure(_settings: object, _names: object, _modes: object, edits: int, *_: object, **more: Any) -> list[object]:
        seen.update(edits=edits, **more)
        return []

    monkeypatch.setattr("tasks.quality.benchmark.run_benchmark", measure)
    result = CliRunner().invoke(app, ["benchmark", "--mode", "sequential-batch", "--json", *options])
    assert result.exit_code == 0, result.output
    return seen["edits"], seen["checkpoints"]


def test_the_last_checkpoint_says_how_many_edits_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, "--checkpoints", "100,300,2000") == (2000, [100, 300, 2000])


def test_a_number_of_edits_goes_before_the_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, "--edits", "500", "--checkpoints", "100,300") == (500, [100, 300])


def test_without_either_there_are_a_hundred_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch) == (100, [])
