"""The arrows of the architecture hold: who may import whom (README: Layout)."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
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


@pytest.mark.parametrize("package", sorted(OURS))
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


def test_the_dashboard_only_reads_the_warehouse() -> None:
    """A page asks named queries; it starts no flow, loads no model and judges nothing, and only its command knows it."""
    for path in (ROOT / "flows" / "dashboard").rglob("*.py"):
        assert not imports_of(path) & (ORCHESTRATION | {"editors", "checks", "torch", "transformers"}), path
    knowing = {name for name, found in modules_of("flows").items() if any(f.startswith("flows.dashboard") for f in found)}
    assert {name for name in knowing if not name.startswith("flows.dashboard")} == {"flows.commands.dashboard"}


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


#: A string that begins as a statement, in whatever case, or holds the words of one in SQL's capitals.
SQL = re.compile(
    r"(?is)\A\s*(select\s.+\sfrom\s|with\s+\w+\s+as\s+\(|insert\s+(or\s+\w+\s+)?into\s|delete\s+from\s|update\s+\S+\s+set\s"
    r"|(create|drop|alter)\s+(or\s+replace\s+)?(temp\w*\s+)?(table|view|index|sequence|macro)\s)"
    r"|(?-i:\b(SELECT\b.+\bFROM|INSERT INTO|DELETE FROM|FROM \S+ WHERE|GROUP BY|ORDER BY|PARTITION BY|JOIN)\b)"
)
#: Methods of a `Warehouse` that take a statement; `records` is left out, since sources have one of that name.
TAKES_SQL = {"rows", "query", "scalar", "execute"}


def docstrings_of(tree: ast.AST) -> set[ast.AST]:
    bodies = [
        n.body for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    return {body[0].value for body in bodies if body and isinstance(body[0], ast.Expr)}


def sql_in(source: str) -> list[int]:
    """Lines of string literals that are SQL by their text (f-strings with their holes as one word), docstrings left out."""
    tree = ast.parse(source)
    passed = docstrings_of(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "hole" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in passed:
            text = node.value
        else:
            continue
        if SQL.search(text):
            found.append(node.lineno)
    return found


def statements_given_in(source: str) -> list[int]:
    """Lines that call a method by which a warehouse takes a statement."""
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    return [call.lineno for call in calls if call.func.attr in TAKES_SQL]


@pytest.mark.parametrize("package", ["editors", "checks", "tasks", "flows"])
def test_only_the_warehouse_speaks_sql(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        where = path.relative_to(ROOT)
        assert not (lines := sql_in(source)), f"{where} holds SQL in lines {lines}; give it a name in `warehouse`"
        assert not (lines := statements_given_in(source)), f"{where} gives a statement in lines {lines}; name it in `warehouse`"


@pytest.mark.parametrize(
    ("source", "is_sql"),
    [
        ('wh.rows("SELECT pid FROM properties")', True),
        ('Q = """\n    select pid\n    from properties"""', True),
        ('table = "facts"\nQ = f"SELECT * FROM {table}"', True),
        ('Q = "WITH past AS (SELECT 1) " + tail', True),
        ('Q = "UPDATE runs SET state = 1"', True),
        ('Q = "delete from runs"', True),
        ('Q = f"{head} ORDER BY {name}"', True),
        ('def f():\n    """SELECT is what this docstring is about: FROM where?"""', False),
            ('message = "with so few edits nothing can be selected from the warehouse"', False),
    ],
)  # fmt: skip
def test_sql_is_found_by_its_text(source: str, is_sql: bool) -> None:
    assert bool(sql_in(source)) is is_sql


def test_a_statement_is_found_where_it_is_given() -> None:
    assert statements_given_in("with warehouse(settings) as wh:\n    wh.scalar(STATEMENT)") == [2]


#: Rooms that read updates.
SOURCES = {"sources", "stream", "wikidata"}
#: What a source may know of the rest of `warehouse`: records and their identities, and no database.
UNDER_SOURCES = {"digests", "errors", "keys", "limits", "night_names", "probe_identity", "records", "reference"} | SOURCES
#: Modules that may still import each other.
CIRCLES: set[frozenset[str]] = set()


def imports_within(package: str) -> dict[str, set[str]]:
    """Modules of a package with those of it that they import, wherever in the file; names without the package's own."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / package).rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                # `from package import module` names the module itself.
                found |= {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in files else node.module for a in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        graph[name.removeprefix(f"{package}.")] = {n.removeprefix(f"{package}.") for n in found & files.keys() - {name}}
    return graph


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of modules of which each imports each other, by itself or through others."""
    reached = {name: set(graph[name]) for name in graph}
    for _ in graph:
        grown = {name: found.union(*(reached[other] for other in found)) for name, found in reached.items()}
        if grown == reached:
            break
        reached = grown
    return {frozenset(o for o in found if name in reached[o]) for name, found in reached.items() if name in found}


def test_a_source_of_updates_knows_no_store() -> None:
    for name, found in imports_within("warehouse").items():
        if name.split(".")[0] in SOURCES:
            assert not (up := {other.split(".")[0] for other in found} - UNDER_SOURCES), f"warehouse/{name} imports {up}"


def test_no_modules_of_the_warehouse_import_each_other_in_a_circle() -> None:
    assert circles(imports_within("warehouse")) <= CIRCLES


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "b"}}
    assert circles(graph) == {frozenset({"b", "c"})}


@pytest.mark.parametrize("package", sorted(OURS))
def test_an_error_has_the_root_of_its_package(package: str) -> None:
    """The command line knows the roots alone. `_Private` ones never leave their module."""
    roots = {"WarehouseError", "UsageError", "EditorError", "ChecksError", "TasksError"}
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                bare = bases and bases <= {"Exception", "BaseException", "ValueError", "RuntimeError", "KeyError", "TypeError"}
                assert not bare or node.name in roots, f"{path.relative_to(ROOT)}: {node.name} has no root of ours"


def test_flows_raise_no_bare_value_error() -> None:
    for path in (ROOT / "flows").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                assert node.exc.func.id != "ValueError", f"{path}:{node.lineno}: a user's mistake is a UsageError"


def test_no_flow_file_bears_the_name_of_a_dependency() -> None:
    import importlib.util

    for path in (ROOT / "flows").glob("*.py"):
        if path.stem != "__init__":
            spec = importlib.util.find_spec(path.stem)
            assert spec is None or str(ROOT) in str(spec.origin), f"flows/{path.name} hides the module {path.stem}"
