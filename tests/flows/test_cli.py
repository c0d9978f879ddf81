"""What the command line prints, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app, main


def test_json_output_is_the_document_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editors.reference.train.train", lambda out, config: out / "model")
    result = CliRunner().invoke(app, ["reference", "train", "--out", str(tmp_path), "--json"])
    assert json.loads(result.stdout) == {"model": str(tmp_path / "model")}


def test_a_broken_settings_file_is_one_error_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "errata.toml").write_text('lineagee = "x"\n')
    monkeypatch.setattr("sys.argv", ["errata", "status"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "lineagee" in capsys.readouterr().err
