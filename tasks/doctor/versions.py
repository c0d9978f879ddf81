"""Versions of packages that are known to break a night, mostly without a word from the package manager."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from tasks.doctor.health import Health, Level, fault, ok
from tasks.settings import Settings

Version = tuple[int, ...]


@dataclass(frozen=True)
class Breakage:
    """`package` at a version outside [`least`, `below`) breaks; `why` was seen by running it."""

    package: str
    why: str
    least: str = ""
    below: str = ""
    level: Level = "fault"


#: What pip picks without complaint, and what happens then.
BREAKAGES = (
    Breakage("pandas", "Evidently 0.7.23 cannot be imported (infer_dtype_from_object)", "3.0", "3.1"),
    Breakage("fastapi", "every flow of Prefect 3.8 dies (Body() got an unexpected keyword 'min_items')", "0.139", "0.151"),
    Breakage("SQLAlchemy", "manual runs work, and no schedule of Prefect 3.8 plans a run", "2.0", "2.1"),
    Breakage("prefect", "deployments and alarms are tested with 3.8 alone; 3.9 does not install", "3.8.8", "3.9"),
    Breakage("duckdb", "the warehouse's file is of DuckDB 2", "2.0", "3"),
    Breakage("evidently", "the page of a night is written by 0.7", "0.7.23", "0.8"),
    Breakage("pyOpenSSL", "model-signing imports it and does not declare it: nothing is signed", "26"),
    Breakage("torch", "figures and goldens are of 2.13; another one gives other last bits", "2.13", "2.14", "warning"),
)


def installed(package: str) -> str | None:
    """The version that is installed, None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_versions(_: Settings, found: Callable[[str], str | None] = installed) -> list[Health]:
    """One line for each known breakage that is installed here, or one that says that there is none."""
    versions = {b.package: found(b.package) for b in BREAKAGES}
    broken = [line for b in BREAKAGES if (line := _held(b, versions)) is not None]
    return broken or [ok("versions", ", ".join(f"{name} {number}" for name, number in versions.items()))]


def _held(breakage: Breakage, versions: Mapping[str, str | None]) -> Health | None:
    there = versions[breakage.package]
    wanted = ",".join(part for part in (f">={breakage.least}", f"<{breakage.below}" if breakage.below else "") if part)
    install = f"pip install '{breakage.package}{wanted}', or all of it: pip install -c constraints.txt -e ."
    if there is None:
        return fault("versions", f"{breakage.package} is not installed: {breakage.why}", install)
    number = _numbers(there)
    if number >= _numbers(breakage.least) and (not breakage.below or number < _numbers(breakage.below)):
        return None
    return Health(check="versions", level=breakage.level, found=f"{breakage.package} {there}: {breakage.why}", to_do=install)


def _numbers(text: str) -> Version:
    return tuple(int(part) for part in re.match(r"[\d.]*", text)[0].strip(".").split("."))  # pyright: ignore[reportOptionalSubscript]
