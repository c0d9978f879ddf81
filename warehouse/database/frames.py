"""Frames and records to Arrow and back, with the stored column types: no guessing from the first rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
from pydantic import BaseModel

from warehouse.digests import canonical_json

_ARROW = {
    "VARCHAR": pa.string(),
    "VARCHAR[]": pa.list_(pa.string()),
    "JSON": pa.string(),
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", "UTC"),
}


def utc(moment: datetime | None) -> datetime | None:
    """The same moment in UTC; a time without a zone is read as UTC."""
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def typed_table(
    table: str,
    columns: Mapping[str, str],
    rows: pd.DataFrame | pa.Table | Sequence[BaseModel] | Sequence[Mapping[str, Any]],
    constants: Mapping[str, Any],
) -> pa.Table:
    """Rows as Arrow, in the types of a stored table; columns that the rows lack are left out.

    Args:
        table: name for error messages.
        columns: name -> SQL type.
        rows: a frame, records or dicts (all with the keys of the first).
        constants: columns with one value for every row.

    Raises:
        ValueError: an unknown column, or a value that does not fit its column.
    """
    values = _columns_of(rows)
    num_rows = len(next(iter(values.values()))) if values else len(rows)
    values |= {name: [value] * num_rows for name, value in constants.items()}
    if unknown := sorted(set(values) - set(columns)):
        raise ValueError(f"table {table} has no column {', '.join(unknown)}; it has {', '.join(columns)}")
    arrays = {name: _array(table, name, columns[name], column) for name, column in values.items()}
    return pa.table(arrays)


def _columns_of(rows: Any) -> dict[str, Any]:
    if isinstance(rows, pa.Table):
        return {name: rows.column(name) for name in rows.column_names}
    if isinstance(rows, pd.DataFrame):
        return {str(name): rows[name] for name in rows.columns}
    rows = list(rows)
    if not rows:
        return {}
    if isinstance(rows[0], BaseModel):
        return {name: [getattr(row, name) for row in rows] for name in type(rows[0]).model_fields}
    names = list(rows[0])
    for position, row in enumerate(rows):
        if set(row) != set(names):
            raise ValueError(f"row {position} has columns {sorted(row)}, the first row has {sorted(names)}")
    return {name: [row[name] for row in rows] for name in names}


def _array(table: str, name: str, kind: str, values: Any) -> pa.Array | pa.ChunkedArray:
    target = _ARROW.get(kind)
    if target is None:
        raise ValueError(f"column {table}.{name} has the SQL type {kind}, which frames.py does not map to Arrow yet")
    try:
        if isinstance(values, (pa.Array, pa.ChunkedArray)):
            return values.cast(target)
        if isinstance(values, pd.Series):
            if kind == "JSON":
                return pa.array([_json(None if _is_missing(v) else v) for v in values], target)
            if isinstance(values.dtype, pd.DatetimeTZDtype) or values.dtype.kind == "M":
                moments = values.dt.tz_localize("UTC") if values.dt.tz is None else values.dt.tz_convert("UTC")
                return pa.Array.from_pandas(moments).cast(target, safe=False)
            return pa.Array.from_pandas(values, type=target)
        if kind == "JSON":
            values = [_json(value) for value in values]
        elif pa.types.is_timestamp(target):
            values = [utc(value) for value in values]
        return pa.array(values, target)
    except (pa.ArrowException, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"column {table}.{name} holds {kind}: {error}") from error


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _json(value: Any) -> str | None:
    # Text is taken as JSON already; DuckDB checks that it is when it is stored.
    return value if value is None or isinstance(value, str) else canonical_json(value).decode()


def as_arrow(name: str, frame: pd.DataFrame | pa.Table) -> pa.Table:
    """A frame for a temporary view; Arrow's inference reads every value, DuckDB's own only the first thousand.

    Raises:
        ValueError: a column mixes types.
    """
    if isinstance(frame, pa.Table):
        return frame
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"frame {name!r} has a column of mixed types: {error}") from error


def narrow(table: pa.Table) -> pa.Table:
    """Whole numbers of 128 bits (DuckDB's sum of BIGINT) as 64 bits: else Python would see Decimal objects."""
    for position, field in enumerate(table.schema):
        if pa.types.is_decimal128(field.type) and field.type.scale == 0:
            table = table.set_column(position, field.name, table.column(position).cast(pa.int64()))
    return table


def as_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as dicts; times are `datetime` with `datetime.UTC`."""
    rows = table.to_pylist()
    times = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    for row in rows:
        for name in times:
            row[name] = utc(row[name])
    return rows
