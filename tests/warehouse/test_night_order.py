"""Nights in order: by when each was received, those received together by the natural order of their names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import duckdb
import pytest

from tests.warehouse.world import request, update, verdict
from warehouse.database.connection import Warehouse
from warehouse.database.migrate import SQL_FOLDER, migrate
from warehouse.errors import Conflict
from warehouse.night_names import check_name, day_of, natural
from warehouse.nights.order import free_night, in_order, move_last, register
from warehouse.records import Fact
from warehouse.sources.recorded import RecordedSource
from warehouse.sources.requests import RequestsSource
from warehouse.world.facts import apply_fact_changes, facts_as_of, nights, receive, record_verdicts


@pytest.fixture
def wh() -> Iterator[Warehouse]:
    with Warehouse.open(":memory:") as opened:
        yield opened


def born(place: str) -> Fact:
    return Fact(subject_id="Q1", subject="Ada", relation="P19", object_id=place, object=f"label {place}", source="test")


ROWS = [
    ("night-9", "night-10"),
    ("week-9", "week-10", "week-11"),
    ("night-09", "night-10", "night-100"),
    ("2026-W9", "2026-W10"),
    ("2026-9-30", "2026-10-1"),
    ("night-2026-11-27", "2026-11-28", "night-2026-11-29"),
    ("2026-11-27", "night-2026-11-28", "2026-11-29"),
    ("night-2026-11-28", "night-2026-11-28-02", "night-2026-11-28-10"),
    ("Night-9", "night-10"),
    ("run1.9", "run1.10"),
    ("n" + "9" * 30, "n1" + "0" * 30),
]


@pytest.mark.parametrize("names", ROWS, ids=" ".join)
def test_names_sort_as_a_person_reads_them(names: tuple[str, ...]) -> None:
    assert all(tuple(sorted(mixed, key=natural)) == names for mixed in permutations(names))


@pytest.mark.parametrize("names", ROWS, ids=" ".join)
def test_nights_that_come_together_are_in_natural_order(wh: Warehouse, names: tuple[str, ...]) -> None:
    register(wh, names[::-1])
    assert in_order(wh, sorted(names)) == list(names)


def test_what_is_received_later_is_later_whatever_its_name(wh: Warehouse) -> None:
    receive(wh, [update("a", "night-2026-11-28")])
    receive(wh, [update("b", "2026-11-29")])
    receive(wh, [update("c", "night-2026-11-27")])
    assert nights(wh) == ["night-2026-11-28", "2026-11-29", "night-2026-11-27"]
    assert in_order(wh, ["unknown-2", "night-2026-11-27", "unknown-10", "2026-11-29"]) == [
        "2026-11-29", "night-2026-11-27", "unknown-2", "unknown-10",
    ]  # fmt: skip


def test_a_column_of_the_same_name_asks_for_its_own_row(wh: Warehouse) -> None:
    receive(wh, [update("a", "night-10")])
    receive(wh, [update("b", "night-9")])
    rows = wh.rows("SELECT night, place_of(night) AS at FROM updates ORDER BY place_of(night)")
    assert [(row["night"], row["at"]) for row in rows] == [("night-10", 1), ("night-9", 2)]
    before = wh.rows("SELECT night FROM nights WHERE place_of(night) < place_of($n)", {"n": "night-9"})
    assert [row["night"] for row in before] == ["", "night-10"]


def test_facts_of_a_night_named_2026_follow_those_of_a_night_named_night_2026(wh: Warehouse) -> None:
    apply_fact_changes(wh, "night-2026-11-28", [born("Q10")])
    apply_fact_changes(wh, "2026-11-29", [born("Q20")], [("Q1", "P19", "Q10")])
    assert facts_as_of(wh, "2026-11-29").object_id.tolist() == ["Q20"]
    assert facts_as_of(wh, "night-2026-11-28").object_id.tolist() == ["Q10"]
    assert facts_as_of(wh, "").empty


def test_the_tenth_night_stands_over_the_ninth(wh: Warehouse) -> None:
    register(wh, ["night-10", "night-9"])
    apply_fact_changes(wh, "night-9", [born("Q9")])
    apply_fact_changes(wh, "night-10", [born("Q10")], [("Q1", "P19", "Q9")])
    assert facts_as_of(wh, "night-10").object_id.tolist() == ["Q10"]


def test_a_night_behind_a_later_one_is_refused_with_a_way_out_that_works(wh: Warehouse) -> None:
    register(wh, ["night-9", "night-10"])
    apply_fact_changes(wh, "night-10", [born("Q10")])
    with pytest.raises(Conflict, match="errata refresh --night night-9 --late"):
        apply_fact_changes(wh, "night-9", [born("Q9")])
    assert move_last(wh, "night-9") == "night-10"
    assert apply_fact_changes(wh, "night-9", [born("Q9")]) == (1, 0)
    assert in_order(wh, ["night-9", "night-10"]) == ["night-10", "night-9"]


def test_a_judged_night_stays_where_it_is(wh: Warehouse) -> None:
    receive(wh, [update("a", "night-9"), update("b", "night-10")])
    record_verdicts(wh, "night-9", "recorded", [verdict("a", "r1")], [request("r1")])
    with pytest.raises(Conflict, match="is judged already"):
        move_last(wh, "night-9")


def test_the_last_night_need_not_move(wh: Warehouse) -> None:
    register(wh, ["night-9", "night-10"])
    assert move_last(wh, "night-10") is None
    assert move_last(wh, "night-11") is None and in_order(wh, ["night-11", "night-10"]) == ["night-10", "night-11"]


def test_a_free_night_is_the_days_own_until_it_is_judged(wh: Warehouse) -> None:
    assert free_night(wh, "night-2026-11-28") == "night-2026-11-28"
    receive(wh, [update("a", "night-2026-11-28")])
    assert free_night(wh, "night-2026-11-28") == "night-2026-11-28"
    record_verdicts(wh, "night-2026-11-28", "recorded", [verdict("a")], [])
    assert free_night(wh, "night-2026-11-28") == "night-2026-11-28-02"


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "../x", "a\\b", "a\nb", "a\0b", " a", "a ", "x" * 201])
def test_a_name_that_is_no_file_name_is_refused(wh: Warehouse, name: str) -> None:
    with pytest.raises(ValueError, match="night"):
        check_name(name)


@pytest.mark.parametrize("name", ["night-01", "2026-11-28", "Woche 9", "nuit_é", "mine", "a.b"])
def test_a_name_that_is_a_file_name_is_taken(name: str) -> None:
    assert check_name(name) == name


def test_files_are_nights_in_natural_order(tmp_path: Path) -> None:
    for name in ("week-10", "week-9", "week-11"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
        (tmp_path / f"{name}.events.jsonl").write_text("{}\n")
    assert RecordedSource(tmp_path).nights() == ("week-9", "week-10", "week-11")
    (tmp_path / "only").mkdir()
    for name in ("night-9", "night-10"):
        (tmp_path / "only" / f"{name}.jsonl").write_text("{}\n")
    assert RequestsSource(tmp_path / "only").nights() == ("night-9", "night-10")


def old_home(tmp_path: Path, *facts: tuple[str, str | None], came: tuple[str, ...] = (), judged: tuple[str, ...] = ()) -> Path:
    """A warehouse as it was before nights had places: facts of nights, and records in the order in which they came."""
    folder, path = tmp_path / "sql", tmp_path / "w.duckdb"
    folder.mkdir()
    for sql in sorted(SQL_FOLDER.glob("*.sql"))[:9]:
        (folder / sql.name).write_bytes(sql.read_bytes())
    connection = duckdb.connect(str(path))
    migrate(connection, "old", folder)
    for i, (begin, end) in enumerate(facts):
        connection.execute(
            "INSERT INTO facts VALUES (?, 'Q1', 'Ada', 'P19', 'Q2', 'Oslo', 'normal', NULL, NULL, NULL, NULL, 'test', ?, ?)",
            [f"f{i}", begin, end],
        )
    for i, night in enumerate(came):
        connection.execute("INSERT INTO updates VALUES ('s', ?, ?, NULL, '{}', ?)", [f"r{i}", night, i + 1])
        if night in judged:
            connection.execute(
                "INSERT INTO verdicts VALUES ('s', ?, ?, 'reject', 'r', 'r', 'high', 's', [], NULL)", [f"r{i}", night]
            )
    connection.close()
    return path


def test_an_old_home_keeps_the_order_in_which_its_nights_changed_facts(tmp_path: Path) -> None:
    path = old_home(tmp_path, ("", None), ("night-10", "night-9"), ("night-2", None), came=("night-9", "night-10", "night-2"))
    with Warehouse.open(path) as wh:
        assert in_order(wh, ["night-2", "night-9", "night-10"]) == ["night-10", "night-2", "night-9"]
        assert wh.scalar("SELECT count(*) FROM facts WHERE place_of(known_to_night) <= place_of(known_from_night)") == 0


def test_a_catch_up_that_was_stuck_in_an_old_home_can_be_applied(tmp_path: Path) -> None:
    path = old_home(
        tmp_path, ("night-2026-11-27", None), came=("2026-11-26", "night-2026-11-27"), judged=("night-2026-11-27",)
    )  # fmt: skip
    with Warehouse.open(path) as wh:
        assert nights(wh) == ["night-2026-11-27", "2026-11-26"]
        assert apply_fact_changes(wh, "2026-11-26", [born("Q30")]) == (1, 0)


def test_a_judged_night_of_an_old_home_stays_where_it_was_received(tmp_path: Path) -> None:
    came = ("night-1", "night-2", "night-3", "night-10", "night-9")
    path = old_home(tmp_path, ("night-1", None), ("night-3", None), came=came, judged=came[:3])
    with Warehouse.open(path) as wh:
        assert nights(wh) == ["night-1", "night-2", "night-3", "night-10", "night-9"]


@pytest.mark.parametrize(
    ("night", "day"),
    [
        ("night-2026-11-28", "2026-11-28"), ("night-2026-11-28-02", "2026-11-28"), ("2026-02-28", "2026-02-28"),
        ("night-2026-02-30", None), ("night-01", None), ("revert-2026-11-28", None), ("", None),
    ],
)  # fmt: skip
def test_a_night_that_is_named_by_a_day_is_of_that_day(night: str, day: str | None) -> None:
    found = day_of(night)
    assert (found and f"{found:%Y-%m-%d}") == day
