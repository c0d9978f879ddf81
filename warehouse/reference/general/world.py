"""Load the general facts and the shipped wordings as plain rows."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from warehouse.reference.general import HERE
from warehouse.reference.wordings import Wordings, read_wordings

Split = Literal["calibration", "development", "report"]
WORDINGS = HERE / "wordings.yaml"
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class GeneralFact:
    """One triple that a general model may know; all facts of a subject are in one split."""

    subject_id: str
    subject: str
    relation: str
    object_id: str
    object: str
    split: Split


@cache
def general_facts() -> tuple[GeneralFact, ...]:
    """All shipped facts, by relation; a slot with several rows has several right answers."""
    with (HERE / "facts.csv").open(encoding="utf-8", newline="") as handle:
        return tuple(GeneralFact(**row) for row in csv.DictReader(handle))  # pyright: ignore[reportArgumentType]


@cache
def wordings() -> dict[str, Wordings]:
    """The shipped wordings by relation: those of the general facts and of the embedded world."""
    return read_wordings(WORDINGS)
