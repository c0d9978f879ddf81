"""The READMEs are maps: a folder is a room, each file has its line there, and no line stands for a file that is gone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAPPED = ("editors", "tasks", "warehouse", "flows/dashboard")
#: About a dozen, says the house.
MOST_FILES = 16


def files_of(package: str) -> set[str]:
    return {p.relative_to(ROOT / package).as_posix() for p in (ROOT / package).rglob("*.py") if p.name != "__init__.py"}


def lines_of(package: str) -> list[str]:
    """Files that the package's README names, by the heading of their room (`### `room/``)."""
    section = (ROOT / package / "README.md").read_text(encoding="utf-8").split("## The rooms\n")[1].split("\n## ")[0]
    found, room = [], ""
    for line in section.splitlines():
        if heading := re.match(r"### `([\w/]+)/`$", line):
            room = "" if heading.group(1) == package else heading.group(1) + "/"
        elif row := re.match(r"\| `(\w+\.py)` \| \S.* \|$", line):
            found.append(room + row.group(1))
    return found


@pytest.mark.parametrize("package", MAPPED)
def test_a_readme_has_one_line_for_each_file_and_none_for_another(package: str) -> None:
    named = lines_of(package)
    assert len(named) == len(set(named))
    assert set(named) == files_of(package)


@pytest.mark.parametrize("package", MAPPED)
def test_each_room_says_at_its_door_what_lives_there(package: str) -> None:
    for init in (ROOT / package).rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))), init.relative_to(ROOT)


@pytest.mark.parametrize("package", MAPPED)
def test_a_room_holds_about_a_dozen_files(package: str) -> None:
    rooms = [str(Path(name).parent) for name in files_of(package)]
    assert {room: rooms.count(room) for room in rooms if rooms.count(room) > MOST_FILES} == {}


def test_no_two_classes_of_the_product_share_a_name_by_accident() -> None:
    """A reader who meets a name should not have to ask which of two it is; configurations and their editors aside."""
    places: dict[str, list[str]] = {}
    for package in ("checks", "editors", "flows", "tasks", "warehouse"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
