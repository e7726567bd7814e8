"""Write answers as Arrow record batches and as Parquet. Edge: files."""

from collections.abc import Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet
from sqlalchemy import BigInteger, Boolean, Column, Date, DateTime, Float, Integer

from pipeline.sink import nested
from pipeline.sink.nested import NestedColumns
from pipeline.sink.read import rounded_price
from pipeline.sink.writer import Columns, Rows
from pipeline.state.tables import UtcDateTime


class ParquetWriter:
    """Writes answers as Parquet into an open file, see `writer.Writer`."""

    def __init__(self, out: IO[bytes], columns: Columns, nested_columns: NestedColumns) -> None:
        """Begin the file. out: it is not closed."""
        self._columns = columns
        self._typed = {name: one for name, one in nested_columns.items() if one.type is not None}
        plain = arrow_schema(columns)
        self._schema = pa.schema([self._field(field) for field in plain])
        self._writer = pa.parquet.ParquetWriter(out, self._schema, compression="zstd")

    def _field(self, field: Any) -> Any:
        return field.with_type(self._typed[field.name].type) if field.name in self._typed else field

    def write(self, rows: Rows) -> None:
        """Write answers. rows: values as the database gives them, in the order of the columns."""
        self.write_arrow(pa.Table.from_batches([record_batch(rows, self._columns)]))

    def write_arrow(self, table: Any) -> None:
        """Write answers. table: an Arrow table of batches from `record_batch`."""
        for i, field in enumerate(self._schema):
            if field.name in self._typed:
                texts = table.column(i).to_pylist()
                table = table.set_column(i, field, nested.arrow_array(field.name, self._typed[field.name], texts))
        self._writer.write_table(table)

    def close(self) -> None:
        """Write the end of the file, after the last answers."""
        self._writer.close()


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
