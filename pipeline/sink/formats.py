"""Write answers as Parquet, CSV or NDJSON into an open file. Edge: files."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet
from sqlalchemy import BigInteger, Boolean, Column, Date, DateTime, Float, Integer

from pipeline.sink import nested
from pipeline.sink.nested import NestedColumns
from pipeline.sink.read import json_lines, rounded_price
from pipeline.state.tables import UtcDateTime

#: A text that begins with one of these is a formula to a spreadsheet (OWASP, "CSV injection").
FORMULAS = ("=", "+", "-", "@", "\t", "\r")

Columns = Sequence[Column[Any]]
Rows = Sequence[Sequence[Any]]


class Writer(Protocol):
    """Writes answers of one format into an open file, which it does not close."""

    def write(self, rows: Rows) -> None:
        """Write answers. rows: values as the database gives them, in the order of the writer's columns."""

    def write_arrow(self, table: Any) -> None:
        """Write answers. table: an Arrow table of batches from `record_batch`."""

    def close(self) -> None:
        """Write the end of the format, after the last answers."""


class _Ndjson:
    def __init__(self, out: IO[bytes], columns: Columns, nested_columns: NestedColumns) -> None:
        self._out, self._names, self._nesteds = out, [str(column.name) for column in columns], nested_columns

    def write(self, rows: Rows) -> None:
        self._out.writelines(json_lines(self._names, rows, self._nesteds))

    def write_arrow(self, table: Any) -> None:
        self.write(_rows(table))

    def close(self) -> None:
        pass


class _Csv:
    def __init__(self, out: IO[bytes], columns: Columns, nested_columns: NestedColumns) -> None:
        self._cost = next((i for i, column in enumerate(columns) if column.name == "cost_usd"), None)
        self._out = io.TextIOWrapper(out, encoding="utf-8", newline="")
        self._writer = csv.writer(self._out)
        self._writer.writerow([column.name for column in columns])

    def write(self, rows: Rows) -> None:
        cells = ([_cell(value) for value in row] for row in rows)
        self._writer.writerows(cells if self._cost is None else self._priced(cells, self._cost))

    def _priced(self, cells: Iterable[list[Any]], i: int) -> Iterator[list[Any]]:
        for row in cells:
            row[i] = rounded_price(row[i])
            yield row

    def write_arrow(self, table: Any) -> None:
        self.write(_rows(table))

    def close(self) -> None:
        self._out.detach()  # flushes, and leaves `out` open


def _cell(value: Any) -> Any:
    """Return a value for a CSV cell; a text that a spreadsheet would run as a formula gets an apostrophe in front."""
    if isinstance(value, str) and value.startswith(FORMULAS):
        return "'" + value
    return value.isoformat() if hasattr(value, "isoformat") else value


class _Parquet:
    def __init__(self, out: IO[bytes], columns: Columns, nested_columns: NestedColumns) -> None:
        self._columns = columns
        self._typed = {name: one for name, one in nested_columns.items() if one.type is not None}
        plain = arrow_schema(columns)
        self._schema = pa.schema([self._field(field) for field in plain])
        self._writer = pa.parquet.ParquetWriter(out, self._schema, compression="zstd")

    def _field(self, field: Any) -> Any:
        return field.with_type(self._typed[field.name].type) if field.name in self._typed else field

    def write(self, rows: Rows) -> None:
        self.write_arrow(pa.Table.from_batches([record_batch(rows, self._columns)]))

    def write_arrow(self, table: Any) -> None:
        for i, field in enumerate(self._schema):
            if field.name in self._typed:
                texts = table.column(i).to_pylist()
                table = table.set_column(i, field, nested.arrow_array(field.name, self._typed[field.name], texts))
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


#: The writer for each ending of a file name: made with the open file, the columns, and those of lists and objects.
FORMATS: dict[str, Callable[[IO[bytes], Columns, NestedColumns], Writer]] = {
    ".parquet": _Parquet,
    ".csv": _Csv,
    ".ndjson": _Ndjson,
    ".jsonl": _Ndjson,
}


def record_batch(rows: Rows, columns: Columns) -> Any:
    """Return answers as an Arrow record batch with the types of the table's columns; rows: possibly none."""
    fields = arrow_schema(columns)
    values = zip(*rows, strict=True) if rows else ([] for _ in fields)
    return pa.record_batch([_array(v, f) for v, f in zip(values, fields, strict=True)], schema=fields)


def arrow_schema(columns: Columns) -> Any:
    """Return the Arrow schema of these columns."""
    return pa.schema([(str(column.name), _type(column)) for column in columns])


def _type(column: Column[Any]) -> Any:
    """Return the Arrow type of a column; text for any type without an entry in _TYPES."""
    if isinstance(column.type, UtcDateTime):
        return pa.timestamp("us", tz="UTC")
    for kinds, found in _TYPES:
        if isinstance(column.type, kinds):
            return found
    return pa.string()


_TYPES: tuple[tuple[Any, Any], ...] = (
    ((BigInteger, Integer), pa.int64()),
    (Float, pa.float64()),
    (Boolean, pa.bool_()),
    (Date, pa.date32()),
    (DateTime, pa.timestamp("us")),
)


def _array(values: Sequence[Any], field: Any) -> Any:
    kind = field.type
    if field.name == "cost_usd":
        values = [rounded_price(value) for value in values]
    if pa.types.is_string(kind):  # a text column of SQLite may hold values of other types
        values = [value if value is None or isinstance(value, str) else str(value) for value in values]
    return pa.array(values, kind)


def _rows(table: Any) -> Rows:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))
