"""Read the rows of a SQL query. Edge: SQL."""

import contextlib
import datetime
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from types import NoneType
from typing import Any

import polars as pl
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.engine import CursorResult, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from pipeline.errors import SourceError
from pipeline.source import exact
from pipeline.source.frames import Frame, rows_per_chunk
from pipeline.source.predicate import Predicate
from pipeline.storage.folders import Folder, NoFolder

FIRST_ROWS = 100  # that are fetched first, to learn how long rows are
BUFFERED_ROWS = 250  # that the database driver holds in addition, at most
#: A statement that changes rows. With RETURNING it would also give rows.
WRITES = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(insert|update|delete|merge|replace)\b", re.IGNORECASE | re.DOTALL)
ENVIRONMENT = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True)
class Query:
    """A SQL query, as an Input (see rows.Input). Its rows are streamed, by a server-side cursor if there is one.

    database: a SQLAlchemy URL, or $NAME of an environment variable with a URL.
    """

    sql: str
    database: str
    path: str = "source.query"
    name: str = "source.query"
    partition: tuple[tuple[str, str | None], ...] = ()
    by_value: bool = False
    size: int = 0

    @property
    def folder(self) -> Folder:
        """A folder that refuses every path: a query has no folder."""
        return NoFolder("a query")

    @cached_property
    def columns(self) -> list[str]:
        """The names of the query's columns. Raises SourceError."""
        with self._result() as result:
            return list(result.keys())

    @property
    def late_columns(self) -> list[str]:
        """Empty: `columns` has all columns."""
        return []

    @property
    def types(self) -> dict[str, Any]:
        """Empty: there is no second query whose types could differ."""
        return {}

    def frames(
        self, names: list[str], where: Predicate | None = None, known: frozenset[str] = frozenset()
    ) -> Iterator[Frame]:
        """Yield the rows in frames of at most CHUNK_ROWS rows and about CHUNK_BYTES bytes.

        names: the columns, in this order; each has the type of its first values. where, known: not used.
        Raises SourceError that names row and column.
        """
        del where, known  # a query has a WHERE clause of its own
        kinds: dict[str, Any] = {}
        first, many = 1, FIRST_ROWS
        with self._result() as result:
            places = [list(result.keys()).index(name) for name in names]
            while rows := result.fetchmany(many):
                columns = {name: [row[i] for row in rows] for name, i in zip(names, places, strict=True)}
                frame = pl.DataFrame({name: _series(name, values, kinds, first) for name, values in columns.items()})
                many = rows_per_chunk(frame)
                yield Frame(first, frame)
                first += len(rows)

    @contextlib.contextmanager
    def _result(self) -> Iterator[CursorResult[Any]]:
        if word := WRITES.match(self.sql):
            raise SourceError(
                f"source.query begins with {word[1].upper()}, which writes to the database; a run executes the query "
                "several times, so write a SELECT"
            )
        engine = _engine(self.database)
        options: dict[str, Any] = {"stream_results": True, "max_row_buffer": BUFFERED_ROWS, "no_parameters": True}
        if engine.dialect.name == "postgresql":
            options["postgresql_readonly"] = True
        try:
            with (
                engine.connect().execution_options(**options) as conn,
                contextlib.closing(_execute(conn, self.sql)) as result,
            ):
                if not result.returns_rows:
                    raise SourceError("source.query is a statement that gives no rows; write a SELECT")
                yield result
        except DBAPIError as exc:
            reason = str(exc.orig).strip().splitlines()[0]
            raise SourceError(
                f"source.query: the database {_shown(engine)} says: {reason}; check source.query and source.database"
            ) from exc
        except SQLAlchemyError as exc:
            raise SourceError(f"source.query: {str(exc).splitlines()[0]}") from exc
        finally:
            engine.dispose()


def _series(name: str, values: list[Any], kinds: dict[str, Any], first: int) -> pl.Series:
    """Return a column's values with the type of the earlier rows. Raises SourceError if that would change a value.

    kinds: type by column, updated here. first: the number of the first row, for messages.
    """
    known = kinds.get(name)
    values = [value if value is None or type(value) in PLAIN else _plain(value, name, first) for value in values]
    if known == pl.Object or any(isinstance(value, dict | list) for value in values):
        kinds[name] = pl.Object
        return pl.Series(name, values, dtype=pl.Object)
    series = _series_or_none(name, values, known)
    if series is None or not _same(series, values):
        at, wanted = _differing(values, known)
        raise SourceError(
            f"source.query row {first + at}: column {name!r} holds {values[at]!r}, which is not {wanted}; CAST it "
            "in the query"
        )
    if series.dtype != pl.Null:
        kinds[name] = series.dtype
    return series


def _execute(conn: Connection, sql: str) -> CursorResult[Any]:
    """Execute a query that may not write. For PostgreSQL the connection's options forbid it."""
    if conn.dialect.name == "sqlite":
        conn.exec_driver_sql("PRAGMA query_only = ON")
    return conn.exec_driver_sql(sql)


#: Types of values that frames hold unchanged.
PLAIN = frozenset(
    {str, int, float, bool, bytes, dict, list, Decimal, datetime.date, datetime.datetime, datetime.time, NoneType}
)
#: Types of values that have a standard text.
TEXTS = (uuid.UUID, IPv4Address, IPv6Address, IPv4Interface, IPv6Interface, IPv4Network, IPv6Network)


def _plain(value: Any, name: str, first: int) -> Any:
    """Convert a value of a database driver to a type that frames hold. Raises SourceError if it has no exact text."""
    if isinstance(value, TEXTS):
        return str(value)
    if isinstance(value, datetime.timedelta):
        return exact.duration(value)
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    if isinstance(value, tuple):
        return list(value)
    kind = next((kind for kind in (str, int, float) if isinstance(value, kind)), None)
    if kind is not None:
        return kind(value)
    raise SourceError(
        f"source.query: column {name!r} holds values of type {type(value).__name__} (in the rows from {first} on), "
        "which have no exact text; CAST it to text in the query"
    )


def _series_or_none(name: str, values: list[Any], kind: Any) -> pl.Series | None:
    """Return a series of these values with this type, or with the type that fits if it is None; None if none fits."""
    if any(type(value) is Decimal and not value.is_finite() for value in values):
        return None  # polars panics
    try:
        return pl.Series(name, values, dtype=kind, strict=True)
    except (TypeError, RuntimeError, OverflowError, ValueError, pl.exceptions.PolarsError):
        return None


def _same(series: pl.Series, values: list[Any]) -> bool:
    """Return whether the series holds exactly these values: polars may round decimals and truncate times."""
    if series.dtype in (pl.String, pl.Null, pl.Int64):
        return True
    return all(one == value or value != value for one, value in zip(series.to_list(), values, strict=True))  # NaN


def _differing(values: list[Any], kind: Any) -> tuple[int, str]:
    """Return index of the first value that differs in type, and what was expected. kind: of earlier rows, or None."""
    if kind is None:
        first = next(value for value in values if value is not None)
        for i, value in enumerate(values):
            if value is not None and type(value) is not type(first):
                return i, f"a value of type {type(first).__name__} like the rows before it"
        return next(
            (i for i, value in enumerate(values) if not _fits(value, None)), 0
        ), "a value that a column can store"
    return next((i for i, value in enumerate(values) if not _fits(value, kind)), 0), f"{kind} like the rows before it"


def _fits(value: Any, kind: Any) -> bool:
    made = _series_or_none("", [value], kind)
    return made is not None and _same(made, [value])


def _engine(database: str) -> Engine:
    """Return an engine for a URL, or for $NAME of an environment variable. Raises SourceError without any secret."""
    url = _from_environment(database)
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
            raise SourceError(f"source.database: there is no SQLite file {parsed.database}")
        return create_engine(parsed)
    except (NoSuchModuleError, ImportError) as exc:
        raise SourceError(f"source.database: its driver is not installed ({exc}); pip install it") from exc
    except (ArgumentError, ValueError):
        raise SourceError(
            f"source.database: {database if url == database else 'the value of ' + database} is not a database URL; "
            "write dialect+driver://user@host/database"
        ) from None  # the cause may quote secrets


def _from_environment(database: str) -> str:
    """Return the value of the environment variable that $NAME or ${NAME} names; any other text unchanged."""
    named = ENVIRONMENT.fullmatch(database)
    if named is None:
        return database
    name = named[1] or named[2]
    if not os.environ.get(name):
        raise SourceError(f"source.database: the environment variable {name} is not set; it must hold a database URL")
    return os.environ[name]


def _shown(engine: Engine) -> str:
    """Return the engine's URL without passwords, for messages."""
    return engine.url.difference_update_query(["password", "sslpassword"]).render_as_string(hide_password=True)
