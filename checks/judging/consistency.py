"""No two accepted records of a night may deny each other: the survey's eq. 3, and inverse and functional rules.

The verdict rules find these conflicts and hold them back. This guard runs over what they let through, whatever was
released or waived, so that no batch can hold a contradiction (arXiv:2401.01286, eq. 3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from checks.judging.conflicts import Row
from warehouse.database.connection import Reader
from warehouse.nights.conflict_sql import MAX_EVIDENCE
from warehouse.world.queries import known_properties

Others = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Logic:
    """Inverses of each property, in both directions, and the properties that hold one value at a time."""

    inverses: Mapping[str, frozenset[str]]
    single: frozenset[str]


def read_logic(store: Reader) -> Logic:
    inverses: dict[str, set[str]] = defaultdict(set)
    single = set()
    for row in known_properties(store):
        if row["cardinality"] == "single":
            single.add(row["pid"])
        for other in filter(None, (row["inverse_pid"] or "").split("|")):
            inverses[row["pid"]].add(other)
            inverses[other].add(row["pid"])
    return Logic({pid: frozenset(others) for pid, others in inverses.items()}, frozenset(single))


def rival_targets(rows: Sequence[Row]) -> Others:
    """Eq. 3: records that would fill one single-valued slot with different targets, each with its rivals."""
    slots: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["asserts"]:
            slots[row["subject_key"], row["relation"]].append(row)
    found: Others = {}
    for rivals in slots.values():
        first = {row["new_key"]: row["record_id"] for row in reversed(rivals)}
        if len(first) > 1 and any(row["single"] for row in rivals):
            named = sorted(first.items())[:MAX_EVIDENCE]
            for row in rivals:
                found[row["record_id"]] = tuple(sorted(i for key, i in named if key != row["new_key"]))
    return found


def mutual_denials(rows: Sequence[Row], logic: Logic) -> Others:
    """Records that entail each other's negation, each with those it cannot stand beside.

    An asserted pair S p O entails O q S for an inverse q. It is denied by a record that takes O q S away (without
    another one bringing it back), and by records that fill every single-valued inverse place of O with others than S.
    """
    asserted: dict[tuple[str, str], list[Row]] = defaultdict(list)
    removed: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["asserts"] and row["new_key"] is not None:
            asserted[row["subject_key"], row["relation"]].append(row)
        for key in _taken(row):
            removed[row["subject_key"], row["relation"], key].append(row)
    pairs: dict[str, set[str]] = defaultdict(set)
    for (subject, relation), group in asserted.items():
        inverses = logic.inverses.get(relation, frozenset())
        for row in group:
            against = [r for q in inverses for r in removed.get((row["new_key"], q, subject), ())]
            if inverses and inverses <= logic.single:
                places = [asserted.get((row["new_key"], q), []) for q in sorted(inverses)]
                if all(place and all(r["new_key"] != subject for r in place) for place in places):
                    against += [r for place in places for r in place]
            for other in against:
                if other["record_id"] != row["record_id"]:
                    pairs[row["record_id"]].add(other["record_id"])
                    pairs[other["record_id"]].add(row["record_id"])
    return {record_id: tuple(sorted(others)[:MAX_EVIDENCE]) for record_id, others in pairs.items()}


def _taken(row: Row) -> set[str]:
    """Object keys that a record takes out of its slot."""
    if row["is_closing"]:
        return {row["old_key"] or row["new_key"]} - {None}
    return {row["replaced_key"], row["old_key"]} - {None, row["new_key"]} if row["asserts"] else {row["old_key"]} - {None}
