"""Rows of a Parquet file as plain objects, read by DuckDB in a database of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from warehouse.errors import SourceError

_PIECE = 1000


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Raises:
    SourceError: the file is damaged, cut off or empty.
    """
    found = False
    try:
        with duckdb.connect(":memory:") as db:
            # A list of one: the name is then no pattern, so that a star or a bracket in it is only a letter.
            rows = db.execute("SELECT * FROM read_parquet(?)", [[str(path)]])
            names = [column[0] for column in rows.description or ()]
            while piece := rows.fetchmany(_PIECE):
                found = True
                yield from (dict(zip(names, row, strict=True)) for row in piece)
    except duckdb.Error as error:
        raise SourceError(f"{path}: this Parquet file cannot be read; it may be cut off: {error}") from error
    if not found:
        raise SourceError(f"{path}: the Parquet file has no rows")
