"""Answers to a file: Parquet, CSV or NDJSON, whole or not at all. Edge: SQL, files."""

import contextlib
import csv
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet
from sqlalchemy import BigInteger, Boolean, Column, Date, DateTime, Float, Integer, Row, Table

from pipeline.answers import Wanted, lines, pages
from pipeline.database import Database
from pipeline.errors import InputError, Stopped
from pipeline.sink import Sink
from pipeline.tables import UtcDateTime

#: What a spreadsheet takes for a formula when a text begins with it (OWASP, "CSV injection").
FORMULAS = ("=", "+", "-", "@", "\t", "\r")


class Exported(NamedTuple):
    """What was written: how many answers, and where."""

    rows: int
    path: Path


class Writer(Protocol):
    """Writes answers into one file."""

    def write(self, rows: Sequence[Row[Any]]) -> None:
        """Some answers."""

    def close(self) -> None:
        """That was all."""


def export(database: Database, job: Row[Any], path: Path, wanted: Wanted, *, overwrite: bool = False) -> Exported:
    """Write the job's answers, in the order of their keys, into a file whose name says the format.

    It has its name only when it is whole and on the disk. Raises InputError for a name that is taken (unless
    overwrite) or says no format, Stopped when the disk does not take it.
    """
    make = FORMATS.get(path.suffix.lower())
    if make is None:
        raise InputError(f"{path}: the name must end in one of {', '.join(FORMATS)}")
    if not overwrite and os.path.lexists(path):
        raise InputError(f"{path} exists; give another name, or --overwrite")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")
    rows = 0
    with _whole(path) as part:
        writer = make(part, Sink.of(job).table)
        try:
            for page in pages(database, job, wanted):
                writer.write(page)
                rows += len(page)
        finally:
            writer.close()
    return Exported(rows, path)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which gets its own when the block ends well."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    except OSError as exc:
        raise Stopped(f"{path}: {exc.strerror or exc}; nothing was written, safe to run again") from exc
    finally:
        part.unlink(missing_ok=True)


class _Ndjson:
    def __init__(self, path: Path, table: Table) -> None:
        self._out = open(path, "wb")  # noqa: SIM115  # closed by close()

    def write(self, rows: Sequence[Row[Any]]) -> None:
        self._out.writelines(lines(rows))

    def close(self) -> None:
        self._out.close()


class _Csv:
    def __init__(self, path: Path, table: Table) -> None:
        self._out = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115  # closed by close()
        self._writer = csv.writer(self._out)
        self._writer.writerow([column.name for column in table.columns])

    def write(self, rows: Sequence[Row[Any]]) -> None:
        self._writer.writerows([_cell(value) for value in row] for row in rows)

    def close(self) -> None:
        self._out.close()


def _cell(value: Any) -> Any:
    """A value as CSV: a text that a spreadsheet would run as a formula stands behind an apostrophe."""
    if isinstance(value, str) and value.startswith(FORMULAS):
        return "'" + value
    return value.isoformat() if hasattr(value, "isoformat") else value


class _Parquet:
    def __init__(self, path: Path, table: Table) -> None:
        self._table = table
        self._writer = pa.parquet.ParquetWriter(path, _schema(table), compression="zstd")

    def write(self, rows: Sequence[Row[Any]]) -> None:
        self._writer.write_batch(batch(rows, self._table))

    def close(self) -> None:
        self._writer.close()


def batch(rows: Sequence[Row[Any]], table: Table) -> Any:
    """Answers as an Arrow record batch, with the types of the table's columns."""
    schema = _schema(table)
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    return pa.record_batch([_array(v, f.type) for v, f in zip(columns, schema, strict=True)], schema=schema)


def _schema(table: Table) -> Any:
    return pa.schema([(str(column.name), _type(column)) for column in table.columns])


def _type(column: Column[Any]) -> Any:
    """The Parquet type of a column."""
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


def _array(values: Sequence[Any], kind: Any) -> Any:
    if pa.types.is_string(kind):  # a column of SQLite takes values of every kind
        values = [value if value is None or isinstance(value, str) else str(value) for value in values]
    return pa.array(values, kind)


FORMATS: dict[str, Callable[[Path, Table], Writer]] = {
    ".parquet": _Parquet,
    ".csv": _Csv,
    ".ndjson": _Ndjson,
    ".jsonl": _Ndjson,
}
