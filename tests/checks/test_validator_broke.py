"""A validator that broke is no verdict on the data: it stops the night."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from checks.errors import ValidatorBroke
from checks.judging.expectations import _result, run_request_suite
from tests.checks.nights import change, judged, small_store
from warehouse.database.connection import Warehouse


@pytest.fixture
def store() -> Iterator[Warehouse]:
    with small_store() as opened:
        yield opened


def night() -> list[Any]:
    return [change("r1", "set_value", "Q1", "P19", "Q2", "Q3")]


@pytest.mark.parametrize("table", ["facts", "properties", "templates", "edit_requests"])
def test_a_query_that_fails_stops_the_night(store: Warehouse, table: str) -> None:
    store.execute(f"ALTER TABLE {table} RENAME TO gone")
    with pytest.raises(ValidatorBroke, match="night-03: the validator's own query failed"):
        judged(store, night())


def test_a_suite_that_cannot_be_run_stops_the_night(store: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: pd.DataFrame) -> list[dict[str, Any]]:
        raise TypeError("unhashable")

    monkeypatch.setattr("checks.judging.expectations._validated", broken)
    with pytest.raises(ValidatorBroke, match="TypeError: unhashable"):
        judged(store, night(), suite=run_request_suite)


def test_an_expectation_that_raised_is_told_from_one_that_failed() -> None:
    config = {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "stale"}}
    failed = {"expectation_config": config, "success": False, "exception_info": {"raised_exception": False},
              "result": {"unexpected_index_list": [{"record_id": "r1"}]}}  # fmt: skip
    assert _result(failed) == {
        "expectation": config["type"], "column": "stale", "success": False, "failing": ["r1"],
    }  # fmt: skip
    raised = failed | {"exception_info": {"metric": {"raised_exception": True, "exception_message": "no such metric"}}}
    with pytest.raises(ValidatorBroke, match="no such metric"):
        _result(raised)
