"""The arrows of the architecture hold: who may import whom (README: Layout)."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
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


def modules_of(package: str) -> dict[str, set[str]]:
    """Module -> modules of the same package that it imports, for types too."""
    paths = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / package).rglob("*.py")}
    known = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        asked: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                asked |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                asked |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[name] = (asked & known.keys()) - {name}
    return found


@pytest.mark.parametrize("package", ["editors"])
def test_no_modules_of_a_package_import_each_other_in_a_circle(package: str) -> None:
    try:
        TopologicalSorter(modules_of(package)).prepare()
    except CycleError as circle:
        pytest.fail(f"a circle of imports: {' <- '.join(circle.args[1])}")


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
