"""A user's mistake is one line and exit code 1; a bug of ours keeps its traceback, whatever class it has."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

import flows.commands.history
from checks.errors import ChecksError, EvaluationError, PolicyError
from editors.errors import EditorError
from flows.cli import app
from flows.commands.shared import reported
from tasks.errors import LineageBusy, NotEnoughFacts, TasksError
from warehouse.errors import RefusedName, UsageError, WarehouseError

#: Command, settings from the environment, the error's name, and a word of its message.
MISTAKES = [
    ("config show", {"THREADS": "many"}, "UsageError", "threads"),
    ("config show", {"MODEL": "{no"}, "UsageError", "model"),
    ("status", {"HOME": "afile"}, "HomeUnusable", "afile"),
    ("night withdraw night-01 --reason ' '", {}, "UsageError", "give a reason"),
    ("status", {"TEMPLATES": "none.yaml"}, "SourceError", "none.yaml"),
    ("status", {"SOURCE__KIND": "nope"}, "UsageError", "source.kind"),
    ("show production", {"STORE": "ftp://x"}, "UsageError", "ftp"),
    ("show production", {"STORE": "s3://[bad"}, "UsageError", "s3://[bad"),
    ("show production", {"CHANNEL": "a/b"}, "RefusedName", "a/b"),
    ("show ../x", {}, "RefusedName", "../x"),
    ("show nothing", {}, "NotFound", "nothing"),
    ("export base --out out --max-rank 2", {}, "UsageError", "--format peft"),
    ("export base --out out --type F16", {}, "UsageError", "--format gguf"),
    ("export base --out out --format gguf", {}, "UsageError", ".gguf"),
    ("ask hi --tokens 0", {}, "UsageError", "--tokens 0"),
    ("locate", {}, "UsageError", "SUBJECT"),
    ("locate --separability --layers a,b", {}, "UsageError", "--layers 'a,b'"),
    ("benchmark --set ft.x={", {}, "UsageError", "--set 'ft.x={'"),
    ("benchmark --checkpoints a", {}, "UsageError", "--checkpoints 'a'"),
    ("benchmark --checkpoints 5 --edits 2", {}, "UsageError", "[5]"),
    ("benchmark --mode nope", {}, "UsageError", "sequential-batch"),
    ("benchmark --task nope", {}, "UsageError", "erasure"),
    ("benchmark --split nope", {}, "UsageError", "report-first"),
    ("benchmark --editors nope", {}, "UnknownEditor", "nope"),
    ("benchmark --suite nope", {}, "UsageError", "survey"),
    ("leaderboard none.jsonl", {}, "UsageError", "none.jsonl"),
    ("leaderboard rows.jsonl", {}, "UsageError", "rows.jsonl, line 2: no row of a benchmark: editor: Field required"),
    ("leaderboard bytes.jsonl", {}, "UsageError", "bytes.jsonl"),
    ("quarantine list --state nope", {}, "UsageError", "waiting"),
    ("quarantine release r --reason ''", {}, "UsageError", "reason"),
    ("conflicts score none.jsonl", {}, "ConflictFileError", "none.jsonl"),
    ("validate score broken", {}, "ScoringError", "night-01.events.jsonl cannot be read"),
    ("validate score named", {}, "ScoringError", "night 'xx'"),
    ("validate score late", {}, "ScoringError", "night '45'"),
    ("entities score documents", {}, "EntityScoringError", "real_diffs.jsonl cannot be read"),
    ("replay --port 0 --faults 3", {}, "UsageError", "between 0 and 1"),
    ("ingest wikidata", {}, "UsageError", "contact"),
    ("ingest wikidata --replay http://example.org", {}, "UsageError", "this machine"),
    ("ingest wikidata --replay http://127.0.0.1:x", {}, "UsageError", "127.0.0.1:x"),
    ("ingest wikidata --replay http://127.0.0.1:9 --until never", {}, "UsageError", "never"),
    ("ingest dump afile none.json", {}, "SourceError", "none.json"),
    ("key --private none/key --public pub", {}, "KeyProblem", "none/key"),
    ("editors show :x", {}, "UnknownEditor", ":x"),
    ("reference train --out trained", {}, "UsageError", "another configuration"),
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: an empty home, and files that are wrong in one way each."""
    files = {
        "afile": "x", "rows.jsonl": '\n{"a": 1}\n', "broken/night-01.events.jsonl": "{\n", "broken/night-01.truth.jsonl": "",
        "named/night-xx.events.jsonl": '{"record_id": "a"}\n', "named/night-xx.truth.jsonl": '{"record_id": "a"}\n',
        "late/night-45.events.jsonl": '{"record_id": "a"}\n', "late/night-45.truth.jsonl": '{"record_id": "a"}\n',
        "documents/a.json": "{}", "documents/real_diffs.jsonl": "{\n", "trained/config.json": "{}",
    }  # fmt: skip
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\n")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("ERRATA_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize(("command", "settings", "name", "says"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_one_line(
    command: str, settings: dict[str, str], name: str, says: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in settings.items():
        monkeypatch.setenv(f"ERRATA_{key}", value)
    result = CliRunner().invoke(app, [*shlex.split(command), "--json"])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), repr(result.exception)
    found = json.loads(result.stdout)
    assert found["error"] == name and says in found["message"] and "\n" not in found["message"]
    assert f"error ({name})" in result.stderr


@pytest.mark.parametrize("text", ["a = \n", "what = 3\n", "model = 3\n", "threads = 'many'\n"])
def test_a_broken_settings_file_is_named(text: str, here: Path) -> None:
    (here / "errata.toml").write_text(text, encoding="utf-8")
    result = CliRunner().invoke(app, ["config", "show", "--json"])
    found = json.loads(result.stdout)
    assert (result.exit_code, found["error"]) == (1, "UsageError")
    assert "errata.toml" in found["message"] and "\n" not in found["message"]


def test_a_refused_setting_is_not_printed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_" + "SIGNING", json.dumps({"private_key": ["hush"]}))
    result = CliRunner().invoke(app, ["config", "show", "--json"])
    assert "signing.private_key" in result.stdout and "hush" not in result.output


def unequal() -> None:
    list(zip([1], [1, 2], strict=True))


def not_a_record() -> None:
    class Inner(BaseModel):
        number: int

    Inner.model_validate({})


def missing_file() -> None:
    Path("of-ours").read_bytes()


@pytest.mark.parametrize("bug", [unequal, not_a_record, missing_file], ids=lambda f: f.__name__)
def test_a_bug_of_ours_keeps_its_traceback(bug: Callable[[], None], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.commands.history, "configure", lambda **_: bug())
    result = CliRunner().invoke(app, ["log", "--json"])
    assert isinstance(result.exception, (ValueError, FileNotFoundError)) and not isinstance(result.exception, UsageError)
    # One document, and no line that calls it the user's mistake.
    assert json.loads(result.stdout)["error"] == type(result.exception).__name__ and "error (" not in result.stderr


@pytest.mark.parametrize(
    ("kind", "root"),
    [(EvaluationError, ChecksError), (PolicyError, ChecksError), (LineageBusy, TasksError), (NotEnoughFacts, TasksError),
     (RefusedName, WarehouseError), (UsageError, ValueError)],
)  # fmt: skip
def test_errors_have_the_root_of_their_package(kind: type[Exception], root: type[Exception]) -> None:
    assert issubclass(kind, root)


@pytest.mark.parametrize("root", [UsageError, WarehouseError, EditorError, ChecksError, TasksError])
def test_every_root_is_reported(root: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:

    @reported
    def command() -> None:
        raise root("said")

    with pytest.raises(typer.Exit) as stop:
        command()
    assert stop.value.exit_code == 1 and f"error ({root.__name__}): said" in capsys.readouterr().err
