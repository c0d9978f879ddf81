"""`errata ingest dump` from a dump to verdicts, and the list of properties without templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks.night.ingest import ingest, nights_of
from tasks.night.validate import validate
from tasks.settings import configure
from tests.warehouse.documents import document, item, statement, write_dump


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ERRATA_SOURCE__KIND", "wikidata")
    (tmp_path / "templates.yaml").write_text('P6: {phrase: head of government, prompts: ["The mayor of {s} is"]}')
    monkeypatch.setenv("ERRATA_TEMPLATES", str(tmp_path / "templates.yaml"))
    return tmp_path


def run(*arguments: Any) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def town(mayor: str, revision: int) -> dict[str, Any]:
    rows = [statement("Q900000001$a", "P6", item(mayor), references=[{"hash": "ab"}]),
            statement(f"Q900000001${revision}", "P9999", item("Q900000002"))]  # fmt: skip
    return document("Q900000001", *rows, label="Oldham", lastrevid=revision)


def test_a_dump_fills_and_a_later_one_brings_a_night_that_is_judged(home: Path) -> None:
    names = [document("Q900000002", label="Ann Ash"), document("Q900000003", label="Ben Bell")]
    old = write_dump(home / "old.json", town("Q900000002", 1), *names)
    new = write_dump(home / "new.json", town("Q900000003", 2), *names)
    assert run("ingest", "dump", old, "--night", "2026-10-01")["facts"] == 1
    assert run("ingest", "dump", old, new, "--night", "2026-10-02")["records"] == 1
    settings = configure()
    assert ingest.fn(settings, "2026-10-02") == 1
    assert validate.fn(settings, "2026-10-02") == {"supersede": 1}
    assert run("entities", "unstated") == [{"pid": "P9999", "label": "", "statements": 3}]


def test_a_missing_dump_is_one_line_and_no_traceback(home: Path) -> None:
    result = CliRunner().invoke(app, ["ingest", "dump", str(home / "none.json")])
    assert result.exit_code == 1 and "no such file" in " ".join(result.output.split())


def test_a_dump_that_was_cut_off_exits_with_an_error_and_leaves_no_night(home: Path) -> None:
    new = write_dump(home / "new.json", town("Q900000002", 1), document("Q900000002", label="Ann Ash"))
    old = home / "old.json"
    old.write_text(new.read_text()[:60])
    for arguments in ([old, new], [old]):
        result = CliRunner().invoke(app, ["ingest", "dump", *map(str, arguments), "--night", "2026-10-01"])
        said = " ".join(result.output.split())
        assert result.exit_code == 1 and "0 items were read and nothing of them is kept" in said
    assert nights_of(configure()) == ()
