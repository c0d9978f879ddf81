"""The documented example of an editor of one's own keeps the contract."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ADDING_AN_EDITOR.md").read_text(encoding="utf-8")
FOUND = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
EXAMPLE = FOUND.group(1) if FOUND else ""


def contract(code: str, folder: Path, *only: str) -> subprocess.CompletedProcess[str]:
    (folder / "my_package.py").write_text(code, encoding="utf-8")
    path = os.pathsep.join([str(folder), str(ROOT)])
    command = [sys.executable, "-m", "flows.cli", "editors", "test", "my_package:AttentionTuning", "--json"]
    environment = os.environ | {
        "PYTHONPATH": path,
        "ERRATA_HOME": str(folder),
        "PYTEST_ADDOPTS": f"-k '{only[0]}'" if only else "",
    }
    return subprocess.run(command, env=environment, cwd=ROOT, check=False, text=True, capture_output=True, timeout=300)


def test_the_example_is_shorter_than_sixty_lines() -> None:
    assert 20 < len(EXAMPLE.splitlines()) < 60


def test_the_example_keeps_the_contract(tmp_path: Path) -> None:
    found = contract(EXAMPLE, tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr


def test_an_editor_that_edits_nothing_breaks_the_contract(tmp_path: Path) -> None:
    broken = re.sub(r"return descend\(.*", "return WeightPatch({})", EXAMPLE)
    found = contract(broken, tmp_path, "every_edit_shows")
    assert found.returncode == 1
    assert "failed" in found.stdout


@pytest.mark.parametrize("line", ["errata editors test", 'entry-points."errata.editors"'])
def test_the_page_says_how_to_run_and_how_to_name_it(line: str) -> None:
    assert line in PAGE
