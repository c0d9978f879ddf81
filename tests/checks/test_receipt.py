"""The night's own end, which no single clock moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from checks.door.receipt import night_end

NIGHT = datetime(2026, 10, 3, 22, tzinfo=UTC)
RECEIVED = datetime(2026, 11, 21, 3, tzinfo=UTC)
TEN = {f"r{i}": NIGHT + timedelta(minutes=i) for i in range(10)}


def test_the_end_of_a_night_is_its_last_record() -> None:
    assert night_end("night-03", TEN, RECEIVED) == (NIGHT + timedelta(minutes=9), {})


@pytest.mark.parametrize(
    "time",
    [
        datetime(2099, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC), RECEIVED + timedelta(days=2),
        datetime(1970, 1, 1, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC),
    ],
)  # fmt: skip
def test_a_time_at_which_no_update_came_is_the_fault_of_its_record(time: datetime) -> None:
    end, faults = night_end("night-03", {**TEN, "bad": time}, RECEIVED)
    assert end == NIGHT + timedelta(minutes=9)
    assert [(name, fault.reason) for name, fault in faults.items()] == [("bad", "implausible_time")]


@pytest.mark.parametrize("wrong", [RECEIVED, NIGHT + timedelta(days=9), NIGHT - timedelta(days=900)])
def test_a_wrong_clock_that_may_be_right_does_not_move_the_night(wrong: datetime) -> None:
    assert night_end("night-03", {**TEN, "bad": wrong}, RECEIVED) == (NIGHT + timedelta(minutes=9), {})


def test_of_three_records_one_may_be_wrong() -> None:
    times = {"a": NIGHT, "b": NIGHT, "c": RECEIVED - timedelta(days=3)}
    assert night_end("night-03", times, RECEIVED)[0] == NIGHT


def test_records_of_many_weeks_end_with_the_last_of_them() -> None:
    weeks = {f"r{i}": NIGHT + timedelta(days=7 * i) for i in range(6)}
    assert night_end("catch-up", weeks, RECEIVED)[0] == NIGHT + timedelta(days=35)


def test_no_night_ends_after_it_was_received() -> None:
    soon = {f"r{i}": RECEIVED + timedelta(hours=i) for i in range(5)}
    assert night_end("tonight", soon, RECEIVED) == (RECEIVED, {})


def test_a_night_without_times_ends_when_it_was_received() -> None:
    assert night_end("mine", {"a": None, "b": None}, RECEIVED) == (RECEIVED, {})


@pytest.mark.parametrize("name", ["2026-10-03", "night-2026-10-03", "night-2026-10-03-02", "20261003"])
def test_a_date_in_the_name_says_which_night_it_was(name: str) -> None:
    times = {"a": NIGHT + timedelta(hours=3), "b": datetime(2026, 11, 1, tzinfo=UTC)}
    assert night_end(name, times, RECEIVED)[0] == NIGHT + timedelta(hours=3)
    old = {"a": datetime(2020, 1, 1, tzinfo=UTC)}
    assert night_end(name, old, RECEIVED)[0] == datetime(2026, 10, 4, tzinfo=UTC)


def test_where_most_records_come_from_the_future_our_own_clock_is_wrong() -> None:
    end, faults = night_end("night-03", {**TEN, "bad": datetime(2099, 1, 1, tzinfo=UTC)}, datetime(2020, 1, 1, tzinfo=UTC))
    assert end == NIGHT + timedelta(minutes=9) and list(faults) == ["bad"]
