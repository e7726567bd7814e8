"""Write answers as Parquet, CSV or NDJSON into an open file. Edge: files."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from pipeline.sink.nested import NestedColumns
from pipeline.sink.read import json_lines, rounded_price
from pipeline.sink.writer import Columns, Rows, Writer

#: A text that begins with one of these is a formula to a spreadsheet (OWASP, "CSV injection").
FORMULAS = ("=", "+", "-", "@", "\t", "\r")


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


def _parquet(out: IO[bytes], columns: Columns, nested_columns: NestedColumns) -> Writer:
    from pipeline.sink.arrow import ParquetWriter  # the other formats need no pyarrow, which takes long to import

    return ParquetWriter(out, columns, nested_columns)


#: The writer for each ending of a file name: made with the open file, the columns, and those of lists and objects.
FORMATS: dict[str, Callable[[IO[bytes], Columns, NestedColumns], Writer]] = {
    ".parquet": _parquet,
    ".csv": _Csv,
    ".ndjson": _Ndjson,
    ".jsonl": _Ndjson,
}


def _rows(table: Any) -> Rows:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))
