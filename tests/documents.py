"""What the documentation says, taken apart: commands, settings, tables and paths. `python -m tests.documents` writes the
page of commands (`docs/COMMANDS.md`) from the command tree, and the table of editors and architectures (`editors/README.md`)
from what the tests run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from flows.cli import app
from tasks.settings import Settings
from tests.matrix import TRAITS
from tests.matrix import table as matrix_table

ROOT = Path(__file__).parent.parent
PACKAGES = ("flows", "tasks", "editors", "checks", "warehouse", "deployments")
#: Everything that people read. A changelog and decisions tell of what was, so they may name what is gone.
PAGES = tuple(
    sorted(
        [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
        + list((ROOT / "docs").glob("*.md"))
        + [ROOT / package / "README.md" for package in PACKAGES]
    )
)
COMMANDS_PAGE = ROOT / "docs" / "COMMANDS.md"
EDITORS_PAGE = ROOT / "editors" / "README.md"
SETTINGS_PAGE = ROOT / "docs" / "SETTINGS.md"


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# ------------------------------------------------------------ commands

TREE: Any = typer.main.get_command(app)


def commands(group: Any = TREE, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every command that can be run, by the words behind `errata`; a group that does something by itself is one too."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        words = (*path, name)
        if hasattr(command, "commands"):
            if command.invoke_without_command:
                found[" ".join(words)] = command
            found |= commands(command, words)
        else:
            found[" ".join(words)] = command
    return found


def options_of(command: Any) -> set[str]:
    return {name for p in command.params if p.param_type_name == "option" for name in (*p.opts, *p.secondary_opts)}


def arguments_of(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "argument"]


def code_in(text: str) -> Iterator[str]:
    """Spans in backticks, and the lines of code blocks, fenced or indented."""
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            yield from re.findall(r"`([^`]+)`", line)


def command_lines(text: str) -> list[str]:
    """All command lines `errata ...` in the code of a page: without prompt, variables, comments and what follows `&&`."""
    found = []
    for code in code_in(text):
        for part in re.split(r"&&| \| |\s#| &$", code.replace("\\|", "|").rstrip("\\")):
            line = re.sub(r"^(\$ )?(?:[A-Z_]+=\S* )*", "", part.strip())
            if re.match(r"errata( |$)", line):
                found.append(line)
    return found


def wrong_in(line: str) -> str | None:
    """What a documented command line asks for that the command tree lacks; None where all is there."""
    command, words = TREE, shlex.split(re.sub(r"[\[\]]", " ", line))[1:]
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    if hasattr(command, "commands") and words and not words[0].startswith("-"):
        return f"no command {words[0]!r}"
    known = {name: p for p in command.params for name in (*p.opts, *p.secondary_opts)}
    given = 0
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            given += 1
        elif word.split("=")[0] not in known:
            return f"no option {word}"
        elif not known[word.split("=")[0]].is_flag and "=" not in word and words:
            words.pop(0)
    taken = arguments_of(command)
    if not hasattr(command, "commands") and given > len(taken) and all(p.nargs != -1 for p in taken):
        return f"{given} arguments, {len(taken)} are taken"
    return None


def named_in_table(text: str) -> set[str]:
    """Commands that a table's first column names; a span without `errata` is a sister of the one before it."""
    found: set[str] = set()
    for line in text.splitlines():
        if not line.startswith("| `errata"):
            continue
        words: list[str] = []
        for span in re.findall(r"`([^`]+)`", line.replace("\\|", "/").split("|")[1]):
            own = [w for w in re.split(r"[\s\[]", span) if re.fullmatch(r"[a-z]+", w)]
            words = own[1:] if own[:1] == ["errata"] else [*words[:-1], *own]
            while words and " ".join(words) not in commands():
                words = words[:-1]
            found.add(" ".join(words))
    return found


def commands_page() -> str:
    """The page of all commands with their arguments and options; `--json`, which all have, stands once."""
    lines = [
        "# Commands", "",
        "Written by `python -m tests.documents` from the command tree; a test compares. Every command takes `--json`: one JSON",
        "document on standard output and nothing else. What a user can mend is one line on standard error and exit code 1.",
    ]  # fmt: skip
    for path, command in sorted(commands().items()):
        usage = [f"<{p.name}>" if p.required else f"[<{p.name}>]" for p in arguments_of(command)]
        lines += ["", f"## errata {' '.join([path, *usage])}", "", " ".join(command.help.split("\n\n")[0].split())]
        rows = [(f"<{p.name}>", p) for p in arguments_of(command)]
        rows += [(", ".join([*p.opts, *p.secondary_opts]), p) for p in command.params if p.param_type_name == "option"]
        rows = [(name, p) for name, p in rows if name not in ("--json", "--help")]
        if rows:
            lines += ["", "| | |", "|---|---|"]
        for name, p in rows:
            needed = " (required)" if p.required and p.param_type_name == "option" else ""
            lines.append(f"| `{name}` | {' '.join((p.help or '').split()).replace('|', chr(92) + '|')}{needed} |")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------ editors and architectures

MATRIX_HEADING = "## Editors and architectures\n"


def matrix_section() -> str:
    """The section of the editors' README that says what is tested where."""
    return f"""{MATRIX_HEADING}
Written by `python -m tests.documents` from what the tests run; a test compares. ● the whole contract, ○ its core, – refused
with the reason; blank: not run, and no reason known why it should not. Nine editors run on every shape of every architecture,
the others on a sample that covers every pair of a family and a trait (`tests/matrix.py`); traits are: {", ".join(TRAITS)}.

{matrix_table()}

"""


def with_matrix(page: str) -> str:
    """The page with that section as it is now; the next heading of its level ends it."""
    before, _, rest = page.partition(MATRIX_HEADING)
    return before + matrix_section() + rest[rest.index("## ") :]


# ------------------------------------------------------------ settings


def settings(model: type[BaseModel] = Settings, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted name, with its default."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            found |= settings(type(default), f"{prefix}{name}.")
        else:
            found[prefix + name] = default
    return found


def shown(default: Any) -> str:
    """A default as the page of settings writes it; paths inside this repository from its root on."""
    if default is None or default in ("", (), {}):
        return ""
    if isinstance(default, tuple):
        return ", ".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default).removeprefix(f"{ROOT}/")


def variable_of(name: str) -> str:
    return "ERRATA_" + name.replace(".", "__").upper()


# ------------------------------------------------------------ tables and paths


def table_rows(text: str, header: str) -> list[list[str]]:
    """Cells of the table whose header line starts so.

    Raises:
        ValueError: the page has no such table.
    """
    lines = text.splitlines()
    at = next((i for i, line in enumerate(lines) if line.startswith(header)), None)
    if at is None:
        raise ValueError(f"no table starts with {header!r}")
    rows = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


if __name__ == "__main__":
    COMMANDS_PAGE.write_text(commands_page(), encoding="utf-8")
    EDITORS_PAGE.write_text(with_matrix(text_of(EDITORS_PAGE)), encoding="utf-8")
