"""What the command line prints, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import _log_level, app, main


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


@pytest.fixture
def unusable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home below a file, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "CRITICAL")
    return tmp_path


def ran(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["errata", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


@pytest.mark.parametrize("arguments", [["--help"], ["refresh", "--help"], ["config", "show", "--json"]])
def test_help_and_the_settings_need_no_home(
    unusable: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(monkeypatch, *arguments) == 0
    captured = capsys.readouterr()
    assert not captured.err and len(captured.out) > 200
    if arguments[0] == "--help":
        (unusable / "errata.toml").write_text("lineagee = 1\n")
        assert ran(monkeypatch, *arguments) == 0


def test_a_home_that_cannot_be_written_is_one_line(
    unusable: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(monkeypatch, "status") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot be written" in said and "ERRATA_HOME" in said and "Traceback" not in said


@pytest.mark.parametrize(("name", "level"), [("debug", 10), ("Info", 20), ("WARN", 30), ("", 30), (" error ", 40), ("15", 15)])
def test_a_level_of_logging_is_known_in_any_case(name: str, level: int) -> None:
    assert _log_level(name) == level


def test_another_level_is_one_line(unusable: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ERRATA_LOG", "loud")
    assert ran(monkeypatch, "config", "show") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "ERRATA_LOG='loud' is no level" in said and "Traceback" not in said
