"""The documentation names what there is: commands, editors, packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from editors import catalogue
from flows.cli import app

ROOT = Path(__file__).parent.parent
COMMANDS: Any = typer.main.get_command(app)


def leaves(group: Any, prefix: str = "") -> list[str]:
    found = []
    for name, command in group.commands.items():
        found += leaves(command, f"{prefix}{name} ") if hasattr(command, "commands") else [prefix + name]
    return found


@pytest.mark.parametrize("name", sorted(COMMANDS.commands))
def test_readme_names_every_command(name: str) -> None:
    assert f"`errata {name}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", leaves(COMMANDS))
def test_every_command_has_help_and_json(path: str) -> None:
    command = COMMANDS
    for part in path.split():
        command = command.commands[part]
    assert command.help
    assert any("--json" in p.opts for p in command.params)


@pytest.mark.parametrize("name", catalogue.names())
def test_editor_has_a_row_in_the_readme_table(name: str) -> None:
    assert f"| `{name}` |" in (ROOT / "editors" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", ["flows", "tasks", "editors", "checks", "warehouse", "deployments"])
def test_package_has_a_readme(package: str) -> None:
    assert (ROOT / package / "README.md").exists()


def test_every_metric_code_is_explained() -> None:
    from checks.metrics import METRIC_CODES

    text = (ROOT / "docs" / "METRICS.md").read_text(encoding="utf-8")
    assert not [code for code in METRIC_CODES if code not in text]
