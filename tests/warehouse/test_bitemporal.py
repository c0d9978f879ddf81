"""What did we believe on night N about time T: one query."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from warehouse.database.connection import Warehouse
from warehouse.nights.order import register
from warehouse.records import Fact
from warehouse.world.facts import apply_fact_changes, facts_as_of


def capital(name: str, start: int | None = None, end: int | None = None) -> Fact:
    moment = {n: None if year is None else datetime(year, 1, 1, tzinfo=UTC) for n, year in (("from", start), ("to", end))}
    return Fact(subject_id="Q17", subject="Japan", relation="P36", object_id=f"Q-{name}", object=name,
                valid_from=moment["from"], valid_to=moment["to"], source="test")  # fmt: skip


@pytest.fixture
def store() -> Iterator[Warehouse]:
    """Night 1 believes Kyoto for ever; night 2 learns that Tokyo followed in 1868, night 3 that Kyoto ended then."""
    with Warehouse.open(":memory:") as wh:
        register(wh, ["n0"])
        apply_fact_changes(wh, "n1", [capital("Kyoto")])
        apply_fact_changes(wh, "n2", [capital("Tokyo", 1868)])
        apply_fact_changes(wh, "n3", [], [("Q17", "P36", "Q-Kyoto")])
        apply_fact_changes(wh, "n4", [capital("Kyoto", 794, 1868)])
        yield wh


@pytest.mark.parametrize(
    ("night", "year", "expected"),
    [
        ("n0", 1900, []), ("n1", 1900, ["Kyoto"]),
        ("n2", 1800, ["Kyoto"]), ("n2", 1900, ["Kyoto", "Tokyo"]),
        ("n3", 1800, []), ("n3", 1900, ["Tokyo"]),
        ("n4", 1800, ["Kyoto"]), ("n4", 1868, ["Tokyo"]), ("n4", 700, []),
    ],
)  # fmt: skip
def test_a_night_and_a_moment_give_what_was_believed_then_about_then(
    store: Warehouse, night: str, year: int, expected: list[str]
) -> None:
    assert list(facts_as_of(store, night, datetime(year, 1, 1, tzinfo=UTC))["object"]) == expected


def test_without_a_moment_it_is_all_that_the_night_believed(store: Warehouse) -> None:
    assert list(facts_as_of(store, "n4")["object"]) == ["Kyoto", "Tokyo"]
