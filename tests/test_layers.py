"""The arrows of the architecture hold: who may import whom (README: Layout)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"flows", "tasks", "editors", "checks", "warehouse"}
MAY_IMPORT = {
    "warehouse": set(),
    "editors": {"warehouse"},
    "checks": {"warehouse"},
    "tasks": {"editors", "checks", "warehouse"},
    # A flow orders tasks and names records; the command line also reads the warehouse and the catalogue.
    "flows": {"tasks", "warehouse", "checks", "editors"},
}
ORCHESTRATION = {"prefect", "prefect_dask"}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(OURS))
def test_a_package_imports_only_what_its_arrows_allow(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        forbidden = imports_of(path) & OURS - MAY_IMPORT[package] - {package}
        assert not forbidden, f"{path.relative_to(ROOT)} imports {forbidden}"


@pytest.mark.parametrize("package", ["warehouse", "editors", "checks"])
def test_prefect_stays_above_the_lower_packages(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert not imports_of(path) & ORCHESTRATION, path


@pytest.mark.parametrize("package", ["editors", "checks", "tasks", "flows"])
def test_only_the_warehouse_speaks_to_duckdb(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert "duckdb" not in imports_of(path), path


def test_no_flow_file_bears_the_name_of_a_dependency() -> None:
    import importlib.util

    for path in (ROOT / "flows").glob("*.py"):
        if path.stem != "__init__":
            spec = importlib.util.find_spec(path.stem)
            assert spec is None or str(ROOT) in str(spec.origin), f"flows/{path.name} hides the module {path.stem}"
