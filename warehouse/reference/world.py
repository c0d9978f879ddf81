"""Load the embedded facts, templates and aliases as plain rows."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

HERE = Path(__file__).parent
NIGHTS = HERE / "nights"
#: Answer that the world gives where a fact is unknown or was retracted; erasure edits towards it.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class WorldFact:
    """One triple of the reference world; `held_out` are the template indices kept out of training."""

    subject_id: str
    subject: str
    relation: str
    object_id: str
    object: str
    origin: str
    held_out: frozenset[int]


@dataclass(frozen=True)
class Template:
    """English forms of one property: prompts with `{s}` that end where the object begins."""

    relation: str
    phrase: str
    prompts: tuple[str, ...]
    inverse: str | None = None

    def prompt(self, index: int, subject: str) -> str:
        # `replace`, not `format`: labels may hold braces.
        return self.prompts[index].replace("{s}", subject)

    def inverse_prompt(self, obj: str) -> str:
        if self.inverse is None:
            raise ValueError(f"property {self.relation} has no inverse template")
        return self.inverse.replace("{o}", obj)


def read_templates(path: Path) -> dict[str, Template]:
    """Read a templates file (a user's own has the same shape).

    Raises:
        ValueError: a prompt lacks `{s}`, or a property has no prompt.
    """
    templates = {}
    for relation, row in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        prompts = tuple(row["prompts"])
        if not prompts or any("{s}" not in prompt for prompt in prompts):
            raise ValueError(f"{path}: {relation} needs prompts, each with {{s}}; found {prompts!r}")
        templates[relation] = Template(relation, row["phrase"], prompts, row.get("inverse"))
    return templates


@cache
def templates() -> dict[str, Template]:
    return read_templates(HERE / "templates.yaml")


@cache
def facts() -> tuple[WorldFact, ...]:
    with (HERE / "facts.csv").open(encoding="utf-8", newline="") as handle:
        return tuple(
            WorldFact(
                row["subject_id"],
                row["subject"],
                row["relation"],
                row["object_id"],
                row["object"],
                row["origin"],
                frozenset(int(i) for i in row["held_out"].split()),
            )
            for row in csv.DictReader(handle)
        )
