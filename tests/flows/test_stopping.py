"""How a command ends: one document with --json whatever happens, and last the reason and the next command."""

from __future__ import annotations

import errno
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from flows.cli import app, run
from flows.commands.trouble import trouble_of
from tests.flows.nights import NUM_RECORDS
from warehouse.errors import UsageError

ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------- one document


@pytest.mark.parametrize(
    "call",
    [
        ["records"], ["status", "--nonsense"], ["nothing-of-this-name"], ["records", "a", "b"], ["quarantine", "nothing"],
        ["quarantine", "list", "--nonsense"], ["ask"], ["ask", "x", "--tokens", "many"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_call_has_its_document(call: list[str]) -> None:
    found = CliRunner().invoke(app, [*call, "--json"])
    document = json.loads(found.stdout)
    assert found.exit_code == 2 and document["error"] == "UsageError" and document["message"]
    assert document["next"].endswith("--help") and document["message"].split("\n")[0][:20] in found.stderr


def test_a_wrong_call_without_json_prints_no_document() -> None:
    found = CliRunner().invoke(app, ["records"])
    assert found.exit_code == 2 and found.stdout == "" and "records --help" in found.stderr


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["errata", *arguments])
    return run("--json" in arguments)


def test_an_error_that_nobody_foresaw_has_its_document_and_its_reason_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setattr("warehouse.nights.runs.runs", lambda *_: 1 / 0)
    # A night that broke off in this process before, in another test, would be told of.
    monkeypatch.setattr("tasks.night.course.under_way", lambda: None)
    assert called(monkeypatch, "status", "--json") == 1
    out, err = capfd.readouterr()
    assert json.loads(out)["error"] == "ZeroDivisionError"
    assert "Traceback" in err and err.strip().splitlines()[-1].startswith("error (ZeroDivisionError): division by zero")


def test_broken_settings_have_their_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "errata.toml").write_text('lineagee = "x"\n')
    assert called(monkeypatch, "status", "--json") == 1
    assert "lineagee" in json.loads(capfd.readouterr().out)["message"]


def test_a_document_that_was_written_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def card(**_: Any) -> None:
        from flows.commands.shared import emit_json

        emit_json({"a": 1})
        raise UsageError("too late")

    monkeypatch.setattr("flows.commands.reference.emit_json", lambda _: card())
    found = CliRunner().invoke(app, ["reference", "card", "--json"])
    assert found.exit_code == 1 and json.loads(found.stdout) == {"a": 1} and "too late" in found.stderr


# ---------------------------------------------------------------- the machine's troubles


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_names_the_file(code: int) -> None:
    error = RuntimeError("while writing")
    error.__cause__ = OSError(code, os.strerror(code), "/data/patch.safetensors")
    assert "no space left for /data/patch.safetensors" in trouble_of(error) and "make room" in trouble_of(error)


def test_a_server_that_does_not_start_names_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    error = RuntimeError("Timed out while attempting to connect to ephemeral Prefect API server.")
    assert str(tmp_path / "prefect") in trouble_of(error)
    monkeypatch.setattr("flows.commands.trouble._free_bytes", lambda _: 4096)
    assert "disk is full" in trouble_of(error) and "PREFECT_HOME" in trouble_of(error)


def test_a_server_elsewhere_is_named_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example:4200/api")
    assert "http://prefect.example:4200/api" in trouble_of(RuntimeError("Failed to reach Prefect API"))


@pytest.mark.parametrize("error", [ValueError("x"), httpx.ConnectError("wikidata is away"), RuntimeError("x"), KeyError("x")])
def test_any_other_error_is_none_of_the_machines(error: Exception) -> None:
    assert trouble_of(error) == ""


# ---------------------------------------------------------------- stopped


@contextmanager
def started(home: Path, world: dict[str, Any], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`errata` as a process of its own, in a group of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {
        "ERRATA_HOME": str(home), "ERRATA_MODEL__NAME": world["model"]["name"], "ERRATA_EDITOR__NAME": "memit",
        "ERRATA_POLICY": world["policy"], "ERRATA_SOURCE__PATH": world["source"]["path"], "ERRATA_THREADS": "1",
        "ERRATA_PROBES__DRAWDOWN": "8", "ERRATA_PROBES__HELD_TEXTS": "3", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(found: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + 400
    while not (value := found()):
        assert process.poll() is None and time.monotonic() < deadline, "the night ended before it could be disturbed"
        time.sleep(0.05)
    return value


def server_of(process: subprocess.Popen[str]) -> int | None:
    """The process id of Prefect's temporary server."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    named = (int(c) for c in children if "uvicorn" in Path(f"/proc/{c}/cmdline").read_text())
    return next(named, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_night_that_is_stopped_says_so_in_one_sentence(number: int, world: dict[str, Any], tmp_path: Path) -> None:
    with started(tmp_path, world, "refresh", "--night", "night-01", "--json") as process:
        wait_for((tmp_path / "work" / "main" / "night-01" / "suite.json").exists, process)
        server = wait_for(lambda: server_of(process), process)
        # Ctrl-C reaches the whole group, Prefect's server too; a supervisor ends the command alone.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "stopped after `" in err and "Traceback" not in err and "nanobind" not in err
    assert err.strip().splitlines()[-1].endswith("errata refresh --night night-01 --lineage main --editor memit")
    assert json.loads(out)["error"] == "Stopped"
    assert not Path(f"/proc/{server}").exists()
    if number == signal.SIGTERM:
        # The sentence keeps its word: what it names goes on to the end.
        with started(tmp_path, world, *shlex.split(json.loads(out)["next"])[1:], "--json") as again:
            out, err = again.communicate(timeout=400)
        assert again.returncode == 0, err
        line = json.loads(out)
        assert (line["night"], line["records"], line["verdict"]) == ("night-01", NUM_RECORDS, "promote")


def test_a_full_disk_under_prefects_own_database_is_named(world: dict[str, Any], tmp_path: Path) -> None:
    with started(tmp_path, world, "refresh", "--night", "night-01", "--json") as process:
        server = wait_for(lambda: server_of(process), process)
        wait_for((tmp_path / "warehouse.duckdb").exists, process)
        # From here on no file of the server grows: its writes fail as on a full disk.
        resource.prlimit(server, resource.RLIMIT_FSIZE, (4096, 4096))
        out, err = process.communicate(timeout=400)
    document = json.loads(out)
    assert process.returncode == 1 and "Prefect" in document["message"] and str(tmp_path) in document["message"]
    last = err.strip().splitlines()[-2:]
    assert any(line.startswith("error (") for line in last) and "nanobind" not in err
