"""Options of `errata benchmark`: how many edits a run has, where its curve has points, and what it writes."""

from __future__ import annotations

from pathlib import Path
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


def test_the_rows_that_a_folder_keeps_outlive_a_run_that_measured_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "rows.jsonl"
    kept.write_text("of nights before\n", encoding="utf-8")
    asked(monkeypatch, "--out", str(tmp_path))
    assert (tmp_path / "leaderboard.md").exists()
    assert kept.read_text(encoding="utf-8") == "of nights before\n"
