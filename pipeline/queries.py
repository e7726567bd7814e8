"""The rows of a SQL query, and those of a frame in memory, as inputs of a source. Edge: SQL."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import CursorResult, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from pipeline.attachments import Folder, LocalFolder, NoFolder
from pipeline.errors import SourceError
from pipeline.frames import Frame, rows_of_a_chunk
from pipeline.predicate import Predicate

FIRST_ROWS = 100  # fetched before it is known how long rows are
BUFFERED_ROWS = 250  # that the driver holds beside ours, at most
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
                frame = pl.DataFrame([_series(name, values, kinds, first) for name, values in columns.items()])
                many = rows_of_a_chunk(frame)
                yield Frame(first, frame)
                first += len(rows)

    @contextlib.contextmanager
    def _result(self) -> Iterator[CursorResult[Any]]:
        engine = _engine(self.database)
        options: dict[str, Any] = {"stream_results": True, "max_row_buffer": BUFFERED_ROWS, "no_parameters": True}
        if engine.dialect.name == "postgresql":
            options["postgresql_readonly"] = True
        try:
            with (
                engine.connect().execution_options(**options) as conn,
                contextlib.closing(conn.exec_driver_sql(self.sql)) as result,
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
    """A column's values with the type that it had so far."""
    known = kinds.get(name)
    try:
        series = pl.Series(name, values, dtype=known, strict=True)
    except (TypeError, pl.exceptions.PolarsError):
        at = next((i for i, value in enumerate(values) if not _fits(value, known)), 0)
        wanted = "values of one type" if known is None else str(known)
        raise SourceError(
            f"source.query row {first + at}: column {name!r} holds {values[at]!r}, which is not {wanted} as the rows "
            "before it have; CAST it in the query"
        ) from None
    if series.dtype != pl.Null:
        kinds[name] = series.dtype
    return series


def _fits(value: Any, kind: Any) -> bool:
    try:
        pl.Series([value], dtype=kind, strict=True)
    except (TypeError, pl.exceptions.PolarsError):
        return False
    return True


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


@dataclass(frozen=True)
class Memory:
    """The rows of a polars frame."""

    frame: pl.DataFrame
    path: str = "source.frame"
    name: str = "source.frame"
    partition: tuple[tuple[str, str | None], ...] = ()
    by_value: bool = False

    @property
    def folder(self) -> Folder:
        """As for other relative paths in Python: the current one."""
        return LocalFolder(Path.cwd())

    @property
    def columns(self) -> list[str]:
        """The frame's columns."""
        return self.frame.columns

    @property
    def later_columns(self) -> list[str]:
        """None: `columns` has all."""
        return []

    @property
    def types(self) -> dict[str, Any]:
        """Nothing to compare: there is one frame."""
        return {}

    def frames(
        self, names: list[str], where: Predicate | None = None, known: frozenset[str] = frozenset()
    ) -> Iterator[Frame]:
        """The rows as frames of at most CHUNK_ROWS rows and about CHUNK_BYTES bytes, columns in this order."""
        del where, known
        chosen = pl.DataFrame([self.frame.get_column(name) for name in names])
        many = rows_of_a_chunk(chosen)
        for start in range(0, chosen.height, many):
            yield Frame(start + 1, chosen[start : start + many])


def memory(frame: Any) -> Memory:
    """A frame of polars, pandas or pyarrow as an input. Raises SourceError for anything else."""
    try:
        found = pl.DataFrame(frame) if hasattr(frame, "__arrow_c_stream__") or _is_pandas(frame) else frame
    except (TypeError, ValueError, pl.exceptions.PolarsError) as exc:
        raise SourceError(f"source.frame: the frame cannot be read ({exc})") from exc
    if not isinstance(found, pl.DataFrame):
        raise SourceError(
            f"source.frame: a {type(frame).__name__} is no frame; give a polars or pandas DataFrame, or an Arrow table"
        )
    return Memory(found)


def _is_pandas(frame: Any) -> bool:
    return type(frame).__module__.startswith("pandas.")
