"""The warehouse: one DuckDB connection, short write transactions, appends by frame. No other package speaks DuckDB.

One read-write process excludes every other process, readers included (DuckDB 2.0), so open late and close early:

    with Warehouse.open(home / "warehouse.duckdb") as wh:
        receive(wh, records)
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, Literal, Protocol, TypeVar

import duckdb
import pandas as pd
import pyarrow as pa
from pydantic import BaseModel

from warehouse.database.frames import as_arrow, as_rows, narrow, typed_table
from warehouse.database.migrate import migrate, pending, read_migrations
from warehouse.errors import Conflict, MigrationError, NotFound, WarehouseError

logger = logging.getLogger(__name__)

RecordT = TypeVar("RecordT", bound=BaseModel)
Frame = pd.DataFrame | pa.Table
Rows = pd.DataFrame | pa.Table | Sequence[BaseModel] | Sequence[Mapping[str, Any]]
Params = Sequence[Any] | Mapping[str, Any] | None
Schema = tuple[dict[str, dict[str, str]], dict[str, tuple[str, ...]]]

MEMORY = ":memory:"
#: No file, no network and no Python variable is reachable from SQL; extensions are those of the wheel.
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
#: By the migrations that made it, which are compared on every open and alone decide it.
_SCHEMAS: dict[tuple[str, ...], Schema] = {}
_LOCKED = ("could not set lock on file", "different configuration than existing", "being used by another process")


class WarehouseBusy(WarehouseError):
    """Another process kept the database open for longer than the wait allowed."""


class Reader(Protocol):
    """The part of `Warehouse` that a named query needs."""

    def rows(self, sql: str, params: Any = None, **frames: pd.DataFrame) -> list[dict[str, Any]]: ...


class Warehouse:
    """An open warehouse; a context manager. Make one by `Warehouse.open`.

    Safe to use from several threads of one process: a call, or a whole `transaction()`, has the connection to itself.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: Path | None, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self._connection = connection
        self._mutex = RLock()
        self._depth = 0
        self._is_doomed = False
        self._is_closed = False
        self._columns, self._keys = _schema(connection)

    @classmethod
    def open(cls, path: Path | str, *, read_only: bool = False, wait_s: float = 30.0) -> Warehouse:
        """Open (and, unless `read_only`, create and migrate) a warehouse.

        Args:
            path: a file, or ":memory:".
            read_only: refuse writes; the file must exist and be up to date.
            wait_s: how long to wait, in seconds, while another process has the file open.

        Raises:
            WarehouseBusy: the file was still locked after `wait_s`.
            MigrationError: the schema and this code do not fit, or a read-only file needs a migration first.
            NotFound: `read_only` and there is no such file.
            WarehouseError: the file is not a DuckDB database, or cannot be read.
        """
        where = str(path)
        file = None if where == MEMORY else Path(path)
        if read_only and file is None:
            raise ValueError("an in-memory warehouse cannot be read-only: it would always be empty")
        if read_only and file is not None and not file.exists():
            raise NotFound(f"no warehouse at {file}; the first nightly run (or a writable open) creates it")
        if not read_only and file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        connection = _connect(where, read_only=read_only, wait_s=wait_s)
        try:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET lock_configuration = true")
            if not read_only:
                migrate(connection, where)
            elif missing := pending(connection, read_migrations(), where):
                raise MigrationError(f"{where} lacks {len(missing)} migration(s) of this code; open it writable once")
            return cls(connection, file, read_only=read_only)
        except duckdb.Error as error:
            connection.close()
            raise WarehouseError(f"{where}: {error}") from error
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> Warehouse:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and free the file; an open transaction is taken back. Closing twice is fine."""
        self._is_closed = True
        self._connection.close()

    # ------------------------------------------------------------ reading

    def query(self, sql: str, params: Params = None, **frames: Frame) -> pd.DataFrame:
        """Run one SELECT; `frames` are views of that name for this call only.

        Times come back as `datetime64[us, UTC]`, lists as numpy arrays, and a NULL text as NaN (pandas 3): where None
        matters use `rows`.

        Raises:
            WarehouseError: the SQL failed.
            ValueError: a frame has the name of a stored table, which it would hide.
        """
        return self._select(sql, params, frames).to_pandas()

    def rows(self, sql: str, params: Params = None, **frames: Frame) -> list[dict[str, Any]]:
        """As `query`, as dicts of plain Python values: None for NULL, lists, times aware in UTC."""
        return as_rows(self._select(sql, params, frames))

    def records(self, kind: type[RecordT], sql: str, params: Params = None, **frames: Frame) -> list[RecordT]:
        """As `rows`, each row validated as a record; the columns must be the record's fields."""
        return [kind.model_validate(row) for row in self.rows(sql, params, **frames)]

    def scalar(self, sql: str, params: Params = None, **frames: Frame) -> Any:
        """The first column of the first row, None where there is no row."""
        found = self.rows(sql, params, **frames)
        return next(iter(found[0].values())) if found else None

    def tables(self) -> tuple[str, ...]:
        return tuple(self._columns)

    def key(self, table: str) -> tuple[str, ...]:
        """The primary key's columns."""
        self._columns_of(table)
        return self._keys[table]

    def _select(self, sql: str, params: Params, frames: Mapping[str, Frame]) -> pa.Table:
        with self._mutex, self._views(frames), self._explained(sql):
            relation = self._connection.sql(sql, params=_plain_params(params))
            if relation is None:
                raise ValueError(f"query reads; use execute for a statement that returns no rows: {_short(sql)}")
            return narrow(relation.to_arrow_table())

    # ------------------------------------------------------------ writing

    @contextmanager
    def transaction(self) -> Iterator[Warehouse]:
        """All writes inside happen, or none. A nested one joins the outer one. Keep it short: no model calls inside.

        Raises:
            WarehouseError: an inner transaction failed and its error was swallowed, or the commit failed;
                nothing was written.
        """
        with self._mutex:
            if self._depth:
                self._depth += 1
                try:
                    yield self
                except BaseException:
                    self._is_doomed = True
                    raise
                finally:
                    self._depth -= 1
                return
            with self._explained("BEGIN"):
                self._connection.execute("BEGIN TRANSACTION")
            self._depth, self._is_doomed = 1, False
            try:
                yield self
                if self._is_doomed:
                    raise WarehouseError("a nested transaction failed and its error was swallowed; nothing was written")
                with self._explained("COMMIT"):
                    self._connection.execute("COMMIT")
            except BaseException:
                self._rollback()
                raise
            finally:
                self._depth = 0

    def _rollback(self) -> None:
        try:
            self._connection.execute("ROLLBACK")
        except duckdb.Error as error:
            # A failed COMMIT has already ended the transaction, and a closed connection has none; keep the first error.
            logger.debug("rollback had nothing to do: %s", error)

    def execute(self, sql: str, params: Params = None, **frames: Frame) -> int:
        """Run one INSERT, UPDATE or DELETE; returns the number of rows it touched. Errors as `query`."""
        with self._mutex, self._views(frames), self._explained(sql):
            found = self._connection.execute(sql, _plain_params(params)).fetchone()
        return int(found[0]) if found else 0

    def checkpoint(self) -> None:
        """Bring everything committed into the file itself, so that the file alone is the whole warehouse.

        Raises:
            WarehouseError: another connection of this process is writing.
        """
        with self._mutex, self._explained("CHECKPOINT"):
            self._connection.execute("CHECKPOINT")

    def append(
        self,
        table: str,
        rows: Rows,
        on_conflict: Literal["ignore", "error"] = "ignore",
        *,
        constants: Mapping[str, Any] | None = None,
    ) -> int:
        """Append a frame or records, all at once; returns the number of new rows.

        Args:
            table: a stored table.
            rows: a frame, records, or dicts. Columns that the table has and these lack take the table's default.
            on_conflict: "ignore" keeps the stored row where the primary key is there already (and the first of two
                new ones with one key); "error" raises and writes nothing.
            constants: columns with one value for all rows, such as the night.

        Raises:
            ValueError: no such table or column, or a value of the wrong type.
            Conflict: `on_conflict="error"` and a key is taken.
            WarehouseError: a required column is missing or NULL.
        """
        columns, key = self._columns_of(table), self._keys[table]
        incoming = typed_table(table, columns, rows, constants or {})
        if not incoming.num_rows:
            return 0
        if on_conflict == "error" or not key:
            return self.execute(f'INSERT INTO "{table}" BY NAME SELECT * FROM incoming', incoming=incoming)
        names = ", ".join(f'"{name}"' for name in key)
        numbered = incoming.append_column("_row", pa.array(range(incoming.num_rows), pa.int64()))
        return self.execute(
            f"""INSERT INTO "{table}" BY NAME
                SELECT * EXCLUDE (_row)
                FROM (SELECT * FROM incoming
                      QUALIFY row_number() OVER (PARTITION BY {names} ORDER BY _row) = 1) AS first_of_key
                ANTI JOIN "{table}" USING ({names})
                ORDER BY _row""",
            incoming=numbered,
        )

    # ------------------------------------------------------------ inside

    def _columns_of(self, table: str) -> dict[str, str]:
        if table not in self._columns:
            raise ValueError(f"no table {table!r} in the warehouse; it has {', '.join(self._columns)}")
        return self._columns[table]

    @contextmanager
    def _views(self, frames: Mapping[str, Frame]) -> Iterator[None]:
        if hidden := sorted(set(frames) & set(self._columns)):
            raise ValueError(f"frame {hidden[0]!r} would hide the stored table of that name; give it another name")
        self._check_open()
        for name, frame in frames.items():
            self._connection.register(name, as_arrow(name, frame))
        try:
            yield
        finally:
            for name in frames:
                try:
                    self._connection.unregister(name)
                except duckdb.Error:
                    # The statement broke the transaction; its rollback takes the view with it.
                    logger.debug("view %s goes with the rollback", name)

    @contextmanager
    def _explained(self, sql: str) -> Iterator[None]:
        self._check_open()
        try:
            yield
        except duckdb.ConstraintException as error:
            if "uplicate key" in str(error):
                raise Conflict(f"a row of that key is there already: {error} (in: {_short(sql)})") from error
            raise WarehouseError(f"{error} (in: {_short(sql)})") from error
        except duckdb.Error as error:
            raise WarehouseError(f"{error} (in: {_short(sql)})") from error

    def _check_open(self) -> None:
        if self._is_closed:
            raise WarehouseError(f"the warehouse {self.path or MEMORY} was closed; open it again")


def _connect(where: str, *, read_only: bool, wait_s: float) -> duckdb.DuckDBPyConnection:
    deadline, pause_s, has_logged = time.monotonic() + wait_s, 0.02, False
    while True:
        try:
            return duckdb.connect(where, read_only=read_only, config=_CONFIG)
        except duckdb.Error as error:
            if not any(sign in str(error).lower() for sign in _LOCKED):
                raise WarehouseError(f"cannot open the warehouse {where}: {error}") from error
            left = deadline - time.monotonic()
            if left <= 0:
                raise WarehouseBusy(
                    f"{where} is still open elsewhere after {wait_s:g} s; wait for that process, stop it, or allow a "
                    f"longer wait. DuckDB says: {error}"
                ) from error
            if not has_logged:
                logger.info("%s is open elsewhere; waiting up to %g s", where, wait_s)
                has_logged = True
            # Jitter: two waiting processes must not retry in step for ever.
            time.sleep(min(left, pause_s * random.uniform(0.5, 1.5)))
            pause_s = min(0.5, pause_s * 1.5)


def _schema(connection: duckdb.DuckDBPyConnection) -> Schema:
    """Columns and keys of a migrated warehouse; read once a process, for it is opened fifty times a night."""
    applied = tuple(migration.sha256 for migration in read_migrations())
    if applied not in _SCHEMAS:
        _SCHEMAS[applied] = _read_schema(connection)
    return _SCHEMAS[applied]


def _read_schema(connection: duckdb.DuckDBPyConnection) -> Schema:
    """Columns with their SQL types, and primary keys, by table."""
    columns: dict[str, dict[str, str]] = {}
    listed = connection.execute(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal ORDER BY ALL"
    )
    for table, column, kind in listed.fetchall():
        columns.setdefault(table, {})[column] = kind
    constraints = connection.execute(
        "SELECT table_name, constraint_column_names FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY'"
    )
    keys = {table: tuple(names) for table, names in constraints.fetchall()}
    return columns, {table: keys.get(table, ()) for table in columns}


def _plain_params(params: Params) -> Any:
    if params is None or isinstance(params, Mapping):
        return dict(params) if params else None
    return list(params)


def _short(sql: str) -> str:
    text = " ".join(sql.split())
    return text if len(text) <= 160 else text[:157] + "..."
