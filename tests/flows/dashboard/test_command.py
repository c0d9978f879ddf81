"""`errata dashboard` and `errata warehouse publish` as they are typed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.flows.dashboard.conftest import Shown

ROOT = Path(__file__).parents[3]
ERRATA = (sys.executable, "-m", "flows.cli")


def started(home: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "ERRATA_HOME": str(home), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1", **more}
    return subprocess.Popen(
        [*ERRATA, *words], env=environment, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def home(many_nights: Shown, tmp_path: Path) -> Path:
    """A home with nothing but a warehouse."""
    (tmp_path / "warehouse.duckdb").write_bytes(many_nights.settings.warehouse_path.read_bytes())
    return tmp_path


@pytest.mark.integration
def test_it_publishes_says_where_it_is_answers_and_ends_on_a_signal(home: Path) -> None:
    process = started(home, "dashboard", "--port", "0")
    assert process.stdout is not None
    try:
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        answer = httpx.get(url, timeout=60)
        assert answer.status_code == 200 and "Production now" in answer.text
        assert httpx.post(url).status_code == 405
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
    assert (home / "published" / "warehouse.duckdb").exists()


def test_it_does_not_listen_to_others_without_a_token(home: Path) -> None:
    process = started(home, "dashboard", "--host", "0.0.0.0", "--port", "0", "--json")
    out, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert json.loads(out)["error"] == "UsageError" and "ERRATA_DASHBOARD__TOKEN" in said


def test_a_copy_is_published_on_demand(home: Path) -> None:
    process = started(home, "warehouse", "publish", "--json")
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert json.loads(out)["bytes"] == (home / "published" / "warehouse.duckdb").stat().st_size
