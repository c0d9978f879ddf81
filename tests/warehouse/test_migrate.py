"""Migrations: applied once, in order, whole or not at all, and never changed afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest

import warehouse.database.connection as store
from warehouse.database.connection import Warehouse
from warehouse.database.migrate import SQL_FOLDER, migrate, read_migrations
from warehouse.errors import MigrationError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "001_first.sql").write_text("CREATE TABLE a (x INTEGER);\n")
    return tmp_path / "sql"


def tables(connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY ALL").fetchall()]


def test_opening_applies_every_migration_of_the_package(tmp_path: Path) -> None:
    with Warehouse.open(tmp_path / "w.duckdb") as wh:
        found = wh.rows("SELECT version, name, sha256 FROM schema_migrations ORDER BY version")
    expected = [{"version": m.version, "name": m.name, "sha256": m.sha256} for m in read_migrations()]
    assert found == expected
    assert len(found) >= 3


def test_opening_again_applies_nothing(folder: Path) -> None:
    connection = duckdb.connect()
    assert migrate(connection, "db", folder) == ["001_first"]
    assert migrate(connection, "db", folder) == []


def test_a_new_file_is_applied_to_an_old_database(folder: Path) -> None:
    connection = duckdb.connect()
    migrate(connection, "db", folder)
    (folder / "002_second.sql").write_text("CREATE TABLE b (x INTEGER);")
    assert migrate(connection, "db", folder) == ["002_second"]
    assert tables(connection) == ["a", "b", "schema_migrations"]


def test_a_file_changed_after_it_was_applied_is_refused(folder: Path) -> None:
    connection = duckdb.connect()
    migrate(connection, "db", folder)
    (folder / "001_first.sql").write_text("CREATE TABLE a (x BIGINT);\n")
    with pytest.raises(MigrationError, match=r"001_first was applied with sha256 .* new migration"):
        migrate(connection, "db", folder)


def test_windows_line_ends_are_no_change(folder: Path) -> None:
    connection = duckdb.connect()
    migrate(connection, "db", folder)
    (folder / "001_first.sql").write_bytes(b"CREATE TABLE a (x INTEGER);\r\n")
    assert migrate(connection, "db", folder) == []


def test_a_database_newer_than_the_code_is_refused(folder: Path) -> None:
    connection = duckdb.connect()
    (folder / "002_second.sql").write_text("CREATE TABLE b (x INTEGER);")
    migrate(connection, "db", folder)
    (folder / "002_second.sql").unlink()
    with pytest.raises(MigrationError, match="newer than this code: it has 002_second"):
        migrate(connection, "db", folder)


def test_a_failing_file_leaves_nothing_of_itself_behind(folder: Path) -> None:
    connection = duckdb.connect()
    (folder / "002_broken.sql").write_text("CREATE TABLE b (x INTEGER); CREATE TABLE b (y INTEGER);")
    with pytest.raises(MigrationError, match="002_broken failed and was taken back"):
        migrate(connection, "db", folder)
    assert tables(connection) == ["a", "schema_migrations"]


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "w.duckdb")) as connection:
        connection.execute("CREATE TABLE invoices (x INTEGER)")
    with pytest.raises(MigrationError, match="invoices"):
        Warehouse.open(tmp_path / "w.duckdb")
    with duckdb.connect(str(tmp_path / "w.duckdb")) as connection:
        assert tables(connection) == ["invoices"]


@pytest.mark.parametrize("name", ["003_gap.sql", "2_short.sql", "002-dash.sql"])
def test_a_misnamed_or_misnumbered_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("SELECT 1;")
    with pytest.raises(MigrationError, match=r"001, 002|NNN_name"):
        read_migrations(folder)


def test_a_read_only_open_of_an_old_database_asks_for_one_writable_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Warehouse.open(tmp_path / "w.duckdb").close()
    shutil.copytree(SQL_FOLDER, tmp_path / "sql")
    (tmp_path / "sql" / f"{len(read_migrations()) + 1:03d}_later.sql").write_text("CREATE TABLE later (x INTEGER);")
    newer = read_migrations(tmp_path / "sql")
    monkeypatch.setattr(store, "read_migrations", lambda: newer)
    with pytest.raises(MigrationError, match=r"lacks 1 migration.*open it writable once"):
        Warehouse.open(tmp_path / "w.duckdb", read_only=True)
