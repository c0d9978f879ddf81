"""Numbered SQL migrations: `sql/NNN_name.sql`, applied once each, in order, one transaction per file.

A file that was applied must never change again: its digest is kept in `schema_migrations` and compared on every open.
To change the schema, add the next number.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import duckdb

from warehouse.digests import sha256_bytes
from warehouse.errors import MigrationError

logger = logging.getLogger(__name__)

SQL_FOLDER = Path(__file__).parent / "sql"
_FILE_NAME = re.compile(r"(\d{3})_([a-z0-9_]+)\.sql")
_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    sha256     TEXT NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
)"""


@dataclass(frozen=True)
class Migration:
    """One file; `sha256` is over its text with `\\n` line ends, so a checkout on Windows changes nothing."""

    version: int
    name: str
    sql: str
    sha256: str


def read_migrations(folder: Path = SQL_FOLDER) -> tuple[Migration, ...]:
    """All migrations of a folder, by number.

    Raises:
        MigrationError: a file is misnamed, or the numbers are not 1, 2, 3, ... without gap.
    """
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationError(f"{path}: a migration is named NNN_name.sql (digits, then lower case); rename it")
        sql = path.read_text(encoding="utf-8")
        found.append(Migration(int(match[1]), match[2], sql, sha256_bytes(sql.encode())))
    numbers = [migration.version for migration in found]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise MigrationError(f"{folder}: migrations must be numbered 001, 002, ... without gap; found {numbers}")
    return tuple(found)


def _tables(connection: duckdb.DuckDBPyConnection) -> set[str]:
    rows = connection.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal AND NOT temporary").fetchall()
    return {name for (name,) in rows}


def pending(connection: duckdb.DuckDBPyConnection, known: tuple[Migration, ...], where: str) -> tuple[Migration, ...]:
    """The migrations that this database still lacks, after comparing those that it has.

    Raises:
        MigrationError: an applied file has changed, the database is newer than this code, or it is not a warehouse.
    """
    try:
        applied = connection.execute("SELECT version, name, sha256 FROM schema_migrations ORDER BY version").fetchall()
    except duckdb.CatalogException:
        # Listing tables takes a fifth of an open, so only a file without migrations is asked for them.
        if tables := _tables(connection):
            raise MigrationError(
                f"{where} is a DuckDB file with tables of something else ({', '.join(sorted(tables)[:3])}); "
                "give the warehouse a file of its own"
            ) from None
        return known
    if len(applied) > len(known):
        newer = ", ".join(f"{version:03d}_{name}" for version, name, _ in applied[len(known) :])
        raise MigrationError(
            f"{where} is newer than this code: it has {newer}, this code ends at {known[-1].version:03d}; upgrade Errata"
        )
    for (version, name, digest), migration in zip(applied, known, strict=False):
        if (version, name, digest) != (migration.version, migration.name, migration.sha256):
            raise MigrationError(
                f"{where}: migration {version:03d}_{name} was applied with sha256 {digest[:12]}, but this code's "
                f"{migration.version:03d}_{migration.name} has {migration.sha256[:12]}; restore the file as it was "
                "and put the change into a new migration"
            )
    return known[len(applied) :]


def migrate(connection: duckdb.DuckDBPyConnection, where: str, folder: Path = SQL_FOLDER) -> list[str]:
    """Bring a database up to date; returns the names of the migrations applied now.

    Raises:
        MigrationError: as `pending`, or the SQL of a migration failed (that file then left nothing behind).
    """
    done = []
    for migration in pending(connection, read_migrations(folder), where):
        label = f"{migration.version:03d}_{migration.name}"
        connection.execute("BEGIN TRANSACTION")
        try:
            connection.execute(_LEDGER)
            connection.execute(migration.sql)
            connection.execute(
                "INSERT INTO schema_migrations (version, name, sha256) VALUES (?, ?, ?)",
                [migration.version, migration.name, migration.sha256],
            )
            connection.execute("COMMIT")
        except duckdb.Error as error:
            connection.execute("ROLLBACK")
            raise MigrationError(f"{where}: migration {label} failed and was taken back: {error}") from error
        done.append(label)
    if done:
        logger.info("%s: applied %d migration(s): %s", where, len(done), ", ".join(done))
    return done
