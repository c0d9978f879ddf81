"""Whoever sent a file sees what became of each of its records."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.warehouse.world import request, update, verdict
from warehouse.database.connection import Warehouse
from warehouse.errors import NotFound
from warehouse.nights.order import register
from warehouse.nights.record_list import WAITING, night_records
from warehouse.world.facts import receive, record_verdicts


@pytest.fixture
def wh() -> Iterator[Warehouse]:
    with Warehouse.open(":memory:") as opened:
        receive(opened, [update("good"), update("bad"), update("later"), update("elsewhere", "night-02")])
        record_verdicts(opened, "night-01", "recorded", [verdict("good", "r1"), verdict("bad")], [request("r1")])
        yield opened


def test_every_record_is_listed_with_its_verdict_reason_and_sentence(wh: Warehouse) -> None:
    found = [(r.record_id, r.verdict, r.reason, r.sentence, r.request_id) for r in night_records(wh, "night-01")]
    assert found == [
        ("good", "accept", "fresh", "Accepted.", "r1"), ("bad", "reject", "fresh", "Accepted.", None),
        ("later", WAITING, "", "", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "named"), [("reject", ["bad"]), ("accept", ["good"]), ("merge_duplicate", []), (WAITING, ["later"]), (None, None)]
)
def test_records_of_one_verdict_can_be_asked_for(wh: Warehouse, asked: str | None, named: list[str] | None) -> None:
    found = [r.record_id for r in night_records(wh, "night-01", asked)]
    assert found == (["good", "bad", "later"] if named is None else named)


def test_an_unknown_verdict_and_an_unknown_night_name_those_that_there_are(wh: Warehouse) -> None:
    with pytest.raises(ValueError, match="reject, quarantine"):
        night_records(wh, "night-01", "rejected")
    with pytest.raises(NotFound, match=r"night-01, night-02|night-02, night-01"):
        night_records(wh, "night-1")
    with pytest.raises(NotFound, match="errata refresh --night n"), Warehouse.open(":memory:") as empty:
        night_records(empty, "n")


def test_a_night_that_is_known_and_empty_has_no_records(wh: Warehouse) -> None:
    register(wh, ["night-03"])
    assert night_records(wh, "night-03") == []
