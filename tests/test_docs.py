"""Documentation and code name the same things: commands, options, settings, editors, metrics, files. Both ways."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from checks.metrics import METRIC_CODES
from editors import catalogue
from tasks.settings import Settings
from tests.documents import (
    COMMANDS_PAGE,
    PACKAGES,
    PAGES,
    ROOT,
    SETTINGS_PAGE,
    code_in,
    command_lines,
    commands,
    commands_page,
    named_in_table,
    options_of,
    settings,
    shown,
    spans,
    table_rows,
    text_of,
    variable_of,
    wrong_in,
)

README = ROOT / "README.md"
PRODUCT = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
SOURCES = PRODUCT + sorted((ROOT / "tests").rglob("*.py"))
ANY_SETTING = re.compile(r"\bERRATA_[A-Z][A-Z0-9_]*\b")


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ------------------------------------------------------------ commands


def test_the_readme_names_every_command() -> None:
    # A group that prints a list by itself stands beside its own commands.
    assert named_in_table(text_of(README)) == set(commands())


@pytest.mark.parametrize("path", sorted(commands()))
def test_every_command_has_help_and_json(path: str) -> None:
    command = commands()[path]
    assert command.help
    assert "--json" in options_of(command)
    assert all(p.help for p in command.params if p.name != "help"), "an argument or option without a word of help"


def test_the_page_of_commands_has_every_argument_and_option() -> None:
    assert text_of(COMMANDS_PAGE) == commands_page(), "run `python -m tests.documents`"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_line_in_a_page_can_be_typed(page: Path) -> None:
    wrong = {line: wrong_in(line) for line in command_lines(text_of(page))}
    assert not {line: why for line, why in wrong.items() if why}


def test_every_command_that_the_code_advises_is_there() -> None:
    advised = [line for path in PRODUCT for line in command_lines("\n".join(re.findall(r"`errata [^`\n]*`", text_of(path))))]
    assert len(advised) > 50
    # Names filled in at run time stand in braces.
    assert not {line: why for line in advised if "{" not in line and (why := wrong_in(line))}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("errata refresch", "no command 'refresch'"), ("errata warehouse chek", "no command 'chek'"),
        ("errata refresh --nights 3", "no option --nights"), ("errata status SR SRR", "2 arguments, 1 are taken"),
        ("errata export CHECKPOINT --out DIR [--peft [--max-rank N]]", None), ("errata ask \"What is it?\"", None),
        ("errata editors", None), ("errata editors --json", None), ("errata", None),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_typed_is_found(line: str, why: str | None) -> None:
    assert wrong_in(line) == why


# ------------------------------------------------------------ settings


def settings_rows() -> dict[str, tuple[str, str]]:
    """Name to (default, meaning), as the page has it."""
    return {spans(name)[0]: (default, meaning) for name, default, meaning in table_rows(text_of(SETTINGS_PAGE), "| setting |")}


def test_the_page_of_settings_has_every_setting_with_its_default() -> None:
    assert {name: default for name, (default, _) in settings_rows().items()} == {n: shown(d) for n, d in settings().items()}


def test_every_setting_has_a_meaning_and_an_effect_unless_the_page_denies_it() -> None:
    home = ROOT / "tasks" / "settings.py"
    read = {word for path in PRODUCT if path != home for word in re.findall(r"\.([a-z_]+)\b", text_of(path))}
    read |= set(re.findall(r"(?:self|settings)\.([a-z_]+)\b", text_of(home)))
    for name, (_, meaning) in settings_rows().items():
        assert meaning
        assert (name.rsplit(".")[-1] in read) != meaning.startswith("no effect"), name


def test_every_variable_that_a_page_or_the_code_names_is_a_setting_or_a_listed_one() -> None:
    listed = {spans(row[0])[0] for row in table_rows(text_of(SETTINGS_PAGE), "| variable |")}
    known = {variable_of(name) for name in settings()} | listed
    deployed = [path for path in (ROOT / "deployments").rglob("*") if path.is_file()]
    places = [*PAGES, *SOURCES, ROOT / "Makefile", *deployed]
    used = {name for place in places if place != Path(__file__) for name in ANY_SETTING.findall(text_of(place))}
    assert not {name for name in used if name not in known and not name.endswith("_")}
    assert not {name for name in listed if not any(name in text_of(place) for place in [*SOURCES, ROOT / "Makefile"])}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_dotted_setting_in_a_page_is_one(page: Path) -> None:
    sections = {name.split(".")[0] for name in settings() if "." in name}
    named = {
        span for span in code_in(text_of(page)) if re.fullmatch(r"([a-z]+)\.[a-z_]+", span) and span.split(".")[0] in sections
    }
    assert not {name for name in named if name not in settings() and not name.endswith(".py")}


@pytest.mark.parametrize("page", [p for p in PAGES if "```toml" in text_of(p)], ids=ids)
def test_every_settings_file_in_a_page_is_accepted(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```toml\n(.*?)```", text_of(page), re.DOTALL):
        values: dict[str, Any] = tomllib.loads(block)
        if "project" not in values:
            Settings(**values)


# ------------------------------------------------------------ tables


def test_the_table_of_editors_is_the_catalogue() -> None:
    rows = table_rows(text_of(ROOT / "editors" / "README.md"), "| name | method |")
    assert sorted(spans(row[0])[0] for row in rows) == sorted(catalogue.names())
    for row in rows:
        card = catalogue.editor_class(spans(row[0])[0]).card
        assert row[2] == card.family
        assert row[4] in ("host's", "any" if card.max_batch is None else str(card.max_batch))


def codes_of(cells: list[str]) -> set[str]:
    return {code for cell in cells for code in re.split(r"[`, ]+", cell) if code}


def test_both_tables_of_metrics_have_every_code() -> None:
    page = table_rows(text_of(ROOT / "docs" / "METRICS.md"), "| code |")
    package = table_rows(text_of(ROOT / "checks" / "README.md"), "| metric |")
    # Explained in the text above the table: it never gates.
    assert codes_of([row[0] for row in page]) | {"token_accuracy"} == set(METRIC_CODES)
    assert "`token_accuracy`" in text_of(ROOT / "docs" / "METRICS.md")
    assert codes_of([row[0] for row in package]) == set(METRIC_CODES)


def test_the_table_of_deployments_is_the_file() -> None:
    found = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    rows = table_rows(text_of(ROOT / "deployments" / "README.md"), "| deployment |")
    assert {spans(row[1])[0] for row in rows} == {entry["entrypoint"] for entry in found}
    assert {spans(row[0])[0].split("/")[1] for row in rows} == {entry["name"] for entry in found}


def test_the_table_of_checks_has_every_module() -> None:
    rows = table_rows(text_of(ROOT / "checks" / "README.md"), "| where |")
    named = {name for row in rows for name in spans(row[0])}
    modules = {p.name for p in (ROOT / "checks").glob("*.py")} - {"__init__.py"}
    assert modules <= named
    assert all(list((ROOT / "checks").glob(name.rstrip("/"))) for name in named)


@pytest.mark.parametrize("package", PACKAGES)
def test_package_has_a_readme(package: str) -> None:
    assert (ROOT / package / "README.md").exists()


# ------------------------------------------------------------ paths and links


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    assert not [link for link in links if "://" not in link and not (page.parent / link.split("#")[0]).exists()]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    # A name with folders counts from the page, the root or a package; a bare one is anywhere in ours.
    ours = [ROOT / package for package in (*PACKAGES, "tests")]
    named = {
        span for span in code_in(text_of(page)) if re.fullmatch(r"[A-Za-z0-9_.*-]+(/[A-Za-z0-9_.*-]+)*\.(py|md|yaml|csv)", span)
    }
    named -= {span for span in named if re.search(r"(^|/)(NAME|NNN)", span)}
    near = {name for name in named if any(list(place.glob(name)) for place in (page.parent, ROOT, *ours))}
    assert not {name for name in named - near if "/" in name or not any(list(place.rglob(name)) for place in ours)}


def test_every_page_is_in_the_reading_order() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)\s]+)\)", text_of(index))}
    assert not set(PAGES) - linked - {index}
