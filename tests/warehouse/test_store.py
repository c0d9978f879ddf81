"""The store: opening, waiting for a lock, transactions, appends by frame, and what survives a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import pytest

from warehouse.database.connection import Warehouse, WarehouseBusy
from warehouse.errors import Conflict, NotFound, WarehouseError
from warehouse.records import Prediction

ROOT = Path(__file__).parents[2]


@pytest.fixture
def wh():
    with Warehouse.open(":memory:") as opened:
        yield opened


def run_apart(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Python code in a process of its own, which has said its first line when this returns."""
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


HOLD = """
import sys
from warehouse.database.connection import Warehouse
with Warehouse.open(sys.argv[1]) as wh:
    wh.append("store_meta", [{"key": "by", "value": "the other process"}])
    print("ready", flush=True)
    sys.stdin.readline()
"""
DIE = """
import sys
from warehouse.database.connection import Warehouse
wh = Warehouse.open(sys.argv[1])
wh.append("store_meta", [{"key": "committed", "value": "1"}])
with wh.transaction():
    wh.append("store_meta", [{"key": f"lost-{i}", "value": "1"} for i in range(5000)])
    wh.execute("DELETE FROM store_meta WHERE key = 'committed'")
    print("ready", flush=True)
    sys.stdin.readline()
"""


def names(wh: Warehouse) -> list[str]:
    return [row["key"] for row in wh.rows("SELECT key FROM store_meta ORDER BY key")]


# ---------------------------------------------------------------- opening


def test_what_was_appended_is_there_after_closing_and_opening_again(tmp_path: Path) -> None:
    with Warehouse.open(tmp_path / "new" / "w.duckdb") as wh:
        wh.append("store_meta", [{"key": "a", "value": "1"}])
    with Warehouse.open(tmp_path / "new" / "w.duckdb", read_only=True) as wh:
        assert names(wh) == ["a"]


def test_a_read_only_warehouse_refuses_writes(tmp_path: Path) -> None:
    Warehouse.open(tmp_path / "w.duckdb").close()
    with (
        Warehouse.open(tmp_path / "w.duckdb", read_only=True) as wh,
        pytest.raises(WarehouseError, match="read-only"),
    ):
        wh.append("store_meta", [{"key": "a", "value": "1"}])


def test_reading_a_missing_file_says_so_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no warehouse at .*w\.duckdb"):
        Warehouse.open(tmp_path / "w.duckdb", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_an_in_memory_warehouse_cannot_be_read_only() -> None:
    with pytest.raises(ValueError, match="always be empty"):
        Warehouse.open(":memory:", read_only=True)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.duckdb").write_bytes(b"not a database at all " * 1000)
    with pytest.raises(WarehouseError, match=r"w\.duckdb.*not a valid DuckDB"):
        Warehouse.open(tmp_path / "w.duckdb", wait_s=5)


def test_a_closed_warehouse_says_that_it_was_closed() -> None:
    wh = Warehouse.open(":memory:")
    wh.close()
    wh.close()
    with pytest.raises(WarehouseError, match="was closed"):
        wh.query("SELECT 1")


def test_a_second_process_waits_until_the_first_has_closed(tmp_path: Path) -> None:
    other = run_apart(HOLD, str(tmp_path / "w.duckdb"))
    threading.Timer(0.4, lambda: other.communicate("go\n")).start()
    begun = time.monotonic()
    with Warehouse.open(tmp_path / "w.duckdb", wait_s=20) as wh:
        assert time.monotonic() - begun > 0.2
        assert wh.scalar("SELECT value FROM store_meta") == "the other process"
    other.wait(10)


def test_a_lock_held_for_too_long_is_a_clear_error(tmp_path: Path) -> None:
    other = run_apart(HOLD, str(tmp_path / "w.duckdb"))
    try:
        with pytest.raises(WarehouseBusy, match=rf"still open elsewhere after 0.3 s.*PID {other.pid}"):
            Warehouse.open(tmp_path / "w.duckdb", read_only=True, wait_s=0.3)
    finally:
        other.communicate("go\n", timeout=10)


def test_kill_9_in_a_transaction_loses_only_what_was_not_committed(tmp_path: Path) -> None:
    other = run_apart(DIE, str(tmp_path / "w.duckdb"))
    other.send_signal(signal.SIGKILL)
    other.communicate(timeout=10)
    with Warehouse.open(tmp_path / "w.duckdb", read_only=True) as wh:
        assert names(wh) == ["committed"]
    with Warehouse.open(tmp_path / "w.duckdb") as wh:
        assert wh.append("store_meta", [{"key": "later", "value": "1"}]) == 1
        assert names(wh) == ["committed", "later"]


# ---------------------------------------------------------------- reading


def test_a_frame_is_a_view_for_one_call_only(wh: Warehouse) -> None:
    frame = pd.DataFrame({"a": [1, 2]})
    assert wh.query("SELECT sum(a) AS total FROM given", given=frame).total.tolist() == [3]
    with pytest.raises(WarehouseError, match="given"):
        wh.query("SELECT * FROM given")


def test_python_variables_are_out_of_reach_of_sql(wh: Warehouse) -> None:
    secret = pd.DataFrame({"a": [1]})
    with pytest.raises(WarehouseError, match="secret"):
        wh.query("SELECT * FROM secret")
    assert len(secret) == 1


def test_files_are_out_of_reach_of_sql(wh: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    with pytest.raises(WarehouseError, match="disabled"):
        wh.query(f"SELECT * FROM read_csv('{tmp_path / 'a.csv'}')")


def test_a_frame_cannot_hide_a_stored_table(wh: Warehouse) -> None:
    with pytest.raises(ValueError, match="'facts' would hide"):
        wh.query("SELECT * FROM facts", facts=pd.DataFrame({"a": [1]}))


def test_a_frame_whose_text_starts_after_many_nulls_keeps_it(wh: Warehouse) -> None:
    frame = pd.DataFrame({"a": pd.Series([None] * 5000 + ["late"], dtype=object)})
    assert wh.rows("SELECT a FROM given WHERE a IS NOT NULL", given=frame) == [{"a": "late"}]


def test_rows_give_none_lists_and_aware_times(wh: Warehouse) -> None:
    row = wh.rows(
        "SELECT NULL::TEXT AS a, ['x'] AS b, TIMESTAMPTZ '2026-10-01 12:00:00+02' AS c, sum(n) AS d FROM range(3) r(n)"
    )[0]
    assert row == {"a": None, "b": ["x"], "c": datetime(2026, 10, 1, 10, tzinfo=UTC), "d": 3}
    assert row["c"].tzinfo is UTC
    assert type(row["d"]) is int


def test_query_takes_positional_and_named_values(wh: Warehouse) -> None:
    assert wh.query("SELECT ? + 1 AS a", [1]).a[0] == 2
    assert wh.query("SELECT $x + 1 AS a", {"x": 2}).a[0] == 3


def test_sql_that_fails_is_quoted(wh: Warehouse) -> None:
    with pytest.raises(WarehouseError, match=r"(?s)nowhere.*in: SELECT \* FROM nowhere"):
        wh.query("SELECT * FROM nowhere")


# ---------------------------------------------------------------- writing


def test_append_counts_only_new_rows(wh: Warehouse) -> None:
    rows = [{"key": "a", "value": "1"}, {"key": "b", "value": "1"}, {"key": "a", "value": "2"}]
    assert wh.append("store_meta", rows) == 2
    assert wh.append("store_meta", [*rows, {"key": "c", "value": "1"}]) == 1
    assert wh.scalar("SELECT value FROM store_meta WHERE key = 'a'") == "1"


def test_append_with_error_writes_nothing_where_one_key_is_taken(wh: Warehouse) -> None:
    wh.append("store_meta", [{"key": "b", "value": "1"}])
    with pytest.raises(Conflict, match="b"):
        wh.append("store_meta", [{"key": "a", "value": "1"}, {"key": "b", "value": "1"}], on_conflict="error")
    assert names(wh) == ["b"]


def test_append_takes_frames_records_and_dicts_alike(wh: Warehouse) -> None:
    prediction = Prediction(model_digest="m", probe_id="a", exact=True, token_accuracy=1.0, log_prob=-0.5, text="x")
    wh.append("predictions", [prediction])
    wh.append("predictions", pd.DataFrame([{**prediction.model_dump(), "probe_id": "b"}]))
    wh.append("predictions", [{**prediction.model_dump(), "probe_id": "c"}])
    found = wh.records(Prediction, "SELECT * FROM predictions ORDER BY probe_id")
    assert found == [prediction.model_copy(update={"probe_id": name}) for name in "abc"]


def test_append_fills_defaults_constants_and_lists(wh: Warehouse) -> None:
    frame = pd.DataFrame({"request_id": ["r", "s"], "rephrases": [("one", "two"), ()], "content_digest": "d"})
    fixed = dict.fromkeys(["night", "prompt", "subject", "relation", "target_new", "source", "subject_id", "kind"], "x")
    wh.append("edit_requests", frame, constants={**fixed, "target_new_id": ""})
    rows = wh.rows("SELECT rephrases, target_true, received_at FROM edit_requests ORDER BY request_id")
    assert rows[0] == {"rephrases": ["one", "two"], "target_true": None, "received_at": None}
    assert rows[1]["rephrases"] == []


@pytest.mark.parametrize(
    "moment", [datetime(2026, 10, 1, 12, 0, 0, 5), datetime(2026, 10, 1, 14, 0, 0, 5, timezone(timedelta(hours=2)))]
)
@pytest.mark.parametrize("as_frame", [True, False])
def test_times_come_back_as_the_same_moment_in_utc(wh: Warehouse, moment: datetime, as_frame: bool) -> None:
    rows = [{"digest": "d", "name": "n", "version": 1, "created_at": moment}]
    wh.append("probe_sets", pd.DataFrame(rows) if as_frame else rows)
    assert wh.scalar("SELECT created_at FROM probe_sets") == datetime(2026, 10, 1, 12, 0, 0, 5, tzinfo=UTC)


def test_append_names_the_unknown_table_column_and_the_wrong_value(wh: Warehouse) -> None:
    with pytest.raises(ValueError, match="no table 'fact'"):
        wh.append("fact", [])
    with pytest.raises(ValueError, match="no column colour"):
        wh.append("store_meta", [{"key": "a", "value": "1", "colour": "red"}])
    with pytest.raises(ValueError, match=r"probe_sets\.version"):
        wh.append("probe_sets", [{"digest": "d", "name": "n", "version": "one", "created_at": None}])


def test_a_missing_required_column_is_an_error_and_writes_nothing(wh: Warehouse) -> None:
    with pytest.raises(WarehouseError, match="NOT NULL"):
        wh.append("store_meta", [{"key": "a"}])
    assert names(wh) == []


def test_appending_no_rows_is_no_error(wh: Warehouse) -> None:
    assert wh.append("store_meta", []) == 0
    assert wh.append("store_meta", pd.DataFrame(columns=["key", "value"])) == 0


def test_appending_fifty_thousand_rows_takes_less_than_five_seconds(wh: Warehouse) -> None:
    frame = pd.DataFrame({"model_digest": "m", "probe_id": [str(i) for i in range(50_000)], "exact": True,
                          "token_accuracy": 1.0, "log_prob": -1.0, "text": "x"})  # fmt: skip
    begun = time.process_time()
    assert wh.append("predictions", frame) == 50_000
    assert time.process_time() - begun < 5


def test_a_transaction_happens_whole_or_not_at_all(wh: Warehouse) -> None:
    with pytest.raises(KeyError), wh.transaction():
        wh.append("store_meta", [{"key": "a", "value": "1"}])
        raise KeyError
    assert names(wh) == []


def test_a_nested_transaction_is_taken_back_with_the_outer_one(wh: Warehouse) -> None:
    with pytest.raises(KeyError), wh.transaction():
        with wh.transaction():
            wh.append("store_meta", [{"key": "a", "value": "1"}])
        raise KeyError
    assert names(wh) == []


def test_a_swallowed_failure_inside_still_takes_everything_back(wh: Warehouse) -> None:
    with pytest.raises(WarehouseError, match="swallowed"), wh.transaction():
        wh.append("store_meta", [{"key": "a", "value": "1"}])
        try:
            with wh.transaction():
                raise KeyError
        except KeyError:
            wh.append("store_meta", [{"key": "b", "value": "1"}])
    assert names(wh) == []


def test_the_store_works_on_after_sql_failed_inside_a_transaction(wh: Warehouse) -> None:
    with pytest.raises(Conflict), wh.transaction():
        wh.append("store_meta", [{"key": "a", "value": "1"}], "error")
        wh.append("store_meta", [{"key": "a", "value": "1"}], "error")
    assert wh.append("store_meta", [{"key": "b", "value": "1"}]) == 1
    assert names(wh) == ["b"]


def test_threads_take_turns_at_whole_transactions(wh: Warehouse) -> None:
    wh.append("store_meta", [{"key": "count", "value": "0"}])

    def add_one() -> None:
        for _ in range(10):
            with wh.transaction():
                count = int(wh.scalar("SELECT value FROM store_meta WHERE key = 'count'"))
                wh.execute("UPDATE store_meta SET value = ? WHERE key = 'count'", [str(count + 1)])

    threads = [threading.Thread(target=add_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wh.scalar("SELECT value FROM store_meta") == "40"
