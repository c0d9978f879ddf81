"""The arrows of the architecture hold: who may import whom (README: Layout)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from editors import catalogue

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


def test_tasks_name_no_class_of_an_editor() -> None:
    """What an editor can do stands on its card; its settings may be named where a task asks about them."""
    classes = {catalogue.editor_class(name).__name__ for name in catalogue.names()}
    for path in (ROOT / "tasks").rglob("*.py"):
        words = {node.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)}
        words |= {a.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                  if isinstance(node, ast.ImportFrom) for a in node.names}  # fmt: skip
        assert not words & classes, f"{path.relative_to(ROOT)} names {words & classes}"


def modules_of(package: str) -> dict[str, set[str]]:
    """Modules of a package, and those of them that each imports, wherever in the file the import stands."""
    paths = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
             for p in (ROOT / package).rglob("*.py")}  # fmt: skip
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        targets: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                below = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= (below & paths.keys()) or {node.module}
        found[name] = targets & paths.keys() - {name}
    return found


@pytest.mark.parametrize("package", ["checks", "flows", "tasks", "warehouse"])
def test_no_module_is_imported_by_what_it_imports(package: str) -> None:
    left = modules_of(package)
    while free := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets for name, targets in left.items() if name not in free}
    assert not left, f"a circle among {sorted(left)}"


def test_no_flow_file_bears_the_name_of_a_dependency() -> None:
    import importlib.util

    for path in (ROOT / "flows").glob("*.py"):
        if path.stem != "__init__":
            spec = importlib.util.find_spec(path.stem)
            assert spec is None or str(ROOT) in str(spec.origin), f"flows/{path.name} hides the module {path.stem}"
