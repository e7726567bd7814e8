"""The rows of a SQL query, and those of a frame in memory, as inputs of a source. Edge: SQL."""

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
from pipeline.source.frames import Frame, rows_of_a_chunk
from pipeline.source.predicate import Predicate
from pipeline.storage.folders import Folder, NoFolder

FIRST_ROWS = 100  # fetched before it is known how long rows are
BUFFERED_ROWS = 250  # that the driver holds beside ours, at most
#: A statement that changes rows; it may have rows itself, by RETURNING.
WRITES = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(insert|update|delete|merge|replace)\b", re.IGNORECASE | re.DOTALL)
ENVIRONMENT = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True)
class Query:
    """The rows of a query, streamed: a cursor on the server's side where the database has one.

    database: a SQLAlchemy URL, or $NAME of an environment variable that holds one.
    """

    sql: str
    database: str
    path: str = "source.query"
    name: str = "source.query"
    partition: tuple[tuple[str, str | None], ...] = ()
    by_value: bool = False

    @property
    def folder(self) -> Folder:
        """There is none."""
        return NoFolder("a query")

    @cached_property
    def columns(self) -> list[str]:
        """The names that the query gives its columns."""
        with self._result() as result:
            return list(result.keys())

    @property
    def later_columns(self) -> list[str]:
        """None: `columns` has all."""
        return []

    @property
    def types(self) -> dict[str, Any]:
        """Nothing to compare: there is one query."""
        return {}

    def frames(
        self, names: list[str], where: Predicate | None = None, known: frozenset[str] = frozenset()
    ) -> Iterator[Frame]:
        """The rows as frames of at most CHUNK_ROWS rows and about CHUNK_BYTES bytes, columns in this order.

        Each column has the type of its first values. Raises SourceError that names row and column.
        """
        del where, known  # it is for who wrote the query to say it there
        kinds: dict[str, Any] = {}
        first, many = 1, FIRST_ROWS
        with self._result() as result:
            places = [list(result.keys()).index(name) for name in names]
            while rows := result.fetchmany(many):
                columns = {name: [row[i] for row in rows] for name, i in zip(names, places, strict=True)}
                frame = pl.DataFrame({name: _series(name, values, kinds, first) for name, values in columns.items()})
                many = rows_of_a_chunk(frame)
                yield Frame(first, frame)
                first += len(rows)

    @contextlib.contextmanager
    def _result(self) -> Iterator[CursorResult[Any]]:
        if word := WRITES.match(self.sql):
            raise SourceError(
                f"source.query begins with {word[1].upper()}, which writes to the database; a query is asked several "
                "times in a run, so write a SELECT"
            )
        engine = _engine(self.database)
        options: dict[str, Any] = {"stream_results": True, "max_row_buffer": BUFFERED_ROWS, "no_parameters": True}
        if engine.dialect.name == "postgresql":
            options["postgresql_readonly"] = True
        try:
            with (
                engine.connect().execution_options(**options) as conn,
                contextlib.closing(_asked(conn, self.sql)) as result,
            ):
                if not result.returns_rows:
                    raise SourceError("source.query gives no rows: write a SELECT")
                yield result
        except DBAPIError as exc:
            said = str(exc.orig).strip().splitlines()[0]
            raise SourceError(
                f"source.query: the database {_shown(engine)} says: {said}; check source.query and source.database"
            ) from exc
        except SQLAlchemyError as exc:
            raise SourceError(f"source.query: {str(exc).splitlines()[0]}") from exc
        finally:
            engine.dispose()


def _series(name: str, values: list[Any], kinds: dict[str, Any], first: int) -> pl.Series:
    """A column's values with the type that it had so far. Raises SourceError for a value that it would change."""
    known = kinds.get(name)
    values = [value if value is None or type(value) in PLAIN else _plain(value, name, first) for value in values]
    if known == pl.Object or any(isinstance(value, dict | list) for value in values):
        kinds[name] = pl.Object
        return pl.Series(name, values, dtype=pl.Object)
    series = _made(name, values, known)
    if series is None or not _same(series, values):
        at, wanted = _differing(values, known)
        raise SourceError(
            f"source.query row {first + at}: column {name!r} holds {values[at]!r}, which is not {wanted} as the rows "
            "before it have; CAST it in the query"
        )
    if series.dtype != pl.Null:
        kinds[name] = series.dtype
    return series


def _asked(conn: Connection, sql: str) -> CursorResult[Any]:
    """The result of a query that may not write. PostgreSQL is told so by the connection's options."""
    if conn.dialect.name == "sqlite":
        conn.exec_driver_sql("PRAGMA query_only = ON")
    return conn.exec_driver_sql(sql)


#: What frames hold as it is.
PLAIN = frozenset(
    {str, int, float, bool, bytes, dict, list, Decimal, datetime.date, datetime.datetime, datetime.time, NoneType}
)
#: What has a standard text.
TEXTS = (uuid.UUID, IPv4Address, IPv6Address, IPv4Interface, IPv6Interface, IPv4Network, IPv6Network)


def _plain(value: Any, name: str, first: int) -> Any:
    """A value of the database's driver as one that frames hold."""
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


def _made(name: str, values: list[Any], kind: Any) -> pl.Series | None:
    """A series of these values; None if there is none of this kind."""
    if any(type(value) is Decimal and not value.is_finite() for value in values):
        return None  # polars panics
    try:
        return pl.Series(name, values, dtype=kind, strict=True)
    except (TypeError, RuntimeError, OverflowError, ValueError, pl.exceptions.PolarsError):
        return None


def _same(series: pl.Series, values: list[Any]) -> bool:
    """Whether the series holds the very values: polars rounds decimals and cuts times where a type has no room."""
    if series.dtype in (pl.String, pl.Null, pl.Int64):
        return True
    return all(one == value or value != value for one, value in zip(series.to_list(), values, strict=True))  # NaN


def _differing(values: list[Any], kind: Any) -> tuple[int, str]:
    """Which value is not as those before it, and what these are. kind: the column's type so far, if it has one."""
    if kind is None:
        begun = next(value for value in values if value is not None)
        for i, value in enumerate(values):
            if value is not None and type(value) is not type(begun):
                return i, f"a value of type {type(begun).__name__}"
        return next((i for i, value in enumerate(values) if not _fits(value, None)), 0), "a value that can be held"
    return next((i for i, value in enumerate(values) if not _fits(value, kind)), 0), str(kind)


def _fits(value: Any, kind: Any) -> bool:
    made = _made("", [value], kind)
    return made is not None and _same(made, [value])


def _engine(database: str) -> Engine:
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
            f"source.database: {database if url == database else 'what ' + database + ' holds'} is no database URL; "
            "write dialect+driver://user@host/database"
        ) from None  # it may quote secrets


def _from_environment(database: str) -> str:
    named = ENVIRONMENT.fullmatch(database)
    if named is None:
        return database
    name = named[1] or named[2]
    if not os.environ.get(name):
        raise SourceError(f"source.database: the environment variable {name} is not set; it must hold a database URL")
    return os.environ[name]


def _shown(engine: Engine) -> str:
    return engine.url.difference_update_query(["password", "sslpassword"]).render_as_string(hide_password=True)
