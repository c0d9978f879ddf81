"""Load the general facts and the shipped wordings as plain rows."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from typing import get_args

from warehouse.reference.general import HERE
from warehouse.reference.splits import FactSplit, split_of
from warehouse.reference.wordings import Wordings, read_wordings

WORDINGS = HERE / "wordings.yaml"
SPLITS: tuple[FactSplit, ...] = get_args(FactSplit)


@dataclass(frozen=True)
class GeneralFact:
    """One triple that a general model may know; all facts of a subject are in one split."""

    subject_id: str
    subject: str
    relation: str
    object_id: str
    object: str

    @property
    def split(self) -> FactSplit:
        return split_of(self.subject_id)


@cache
def general_facts() -> tuple[GeneralFact, ...]:
    """All shipped facts, by relation; a slot with several rows has several right answers."""
    with (HERE / "facts.csv").open(encoding="utf-8", newline="") as handle:
        return tuple(GeneralFact(**row) for row in csv.DictReader(handle))


@cache
def wordings() -> dict[str, Wordings]:
    """The shipped wordings by relation: those of the general facts and of the embedded world."""
    return read_wordings(WORDINGS)
