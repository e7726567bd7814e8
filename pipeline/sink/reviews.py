"""Store what people said of a job's answers, in a table beside its results table. Edge: SQL.

`<results table>_reviews` is append only: a later review of the same answer stands beside the earlier one, and counts. A
view, `<results table>_reviewed`, shows the results table with the newest corrections. The results table is not touched.
"""

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import (
    CheckConstraint,
    Column,
    ColumnElement,
    Connection,
    Float,
    FromClause,
    MetaData,
    Select,
    String,
    Table,
    Text,
    and_,
    case,
    cast,
    func,
    insert,
    inspect,
    null,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DDLElement

from pipeline.errors import DatabaseError
from pipeline.sink.columns import KINDS
from pipeline.sink.plain_rows import plain_rows
from pipeline.sink.table import ResultsTable
from pipeline.state.database import is_busy
from pipeline.state.jobs import alone
from pipeline.state.tables import UtcDateTime

VERDICTS = ("right", "wrong", "unsure")
NULL = "(null)"  #: stands for null in the columns `answer` and `new`, in which an empty value means: nothing is said
LONGEST_NAME = 63  # bytes, of PostgreSQL


class Review(NamedTuple):
    """What a person said of one column of an answer.

    key: of the row. column: of the output; answer: what it held, None if the answer failed. verdict: one of VERDICTS.
    new: the right value, None if it is not known or is the answer. Values are texts as `quality.review_values` writes
    them. by, note: as the person filled them in. drawn: how the row was chosen. weight: the share of all answers for
    which the rows that were drawn in this way stand; None if they were chosen, and so stand for no others.
    custom_id: of the request that was answered. row_hash: of the source values that it was built from. at: when the
    review was stored; of two reviews of an answer, the later one counts.
    """

    key: tuple[Any, ...]
    column: str
    answer: str | None
    verdict: str
    new: str | None
    by: str | None
    note: str | None
    drawn: str
    weight: float | None
    custom_id: str | None
    row_hash: str | None
    at: datetime.datetime

    @property
    def said(self) -> tuple[Any, ...]:
        """All but the time: a review that says the same as the newest one of its answer is not stored again."""
        return self[:-1]


class _CreateView(DDLElement):
    def __init__(self, name: str, query: Select[Any]) -> None:
        self.name, self.query = name, query


@compiles(_CreateView)
def _create_view(element: _CreateView, compiler: Any, **_: Any) -> str:
    return f"CREATE VIEW {element.name} AS {compiler.sql_compiler.process(element.query, literal_binds=True)}"


def view_of(sink: ResultsTable) -> str:
    """Return the name of the view of corrected answers."""
    return f"{sink.table.name}_reviewed"


def has_view(conn: Connection, sink: ResultsTable) -> bool:
    """Return whether a job has a view of corrected answers, and not a view of that name is somebody else's."""
    found, schema = inspect(conn), sink.table.schema
    ours = found.has_table(f"{sink.table.name}_reviews", schema=schema)
    return ours and view_of(sink) in found.get_view_names(schema=schema)


class ReviewsTable:
    """The reviews of a job's answers, and the view of its corrected answers."""

    def __init__(self, sink: ResultsTable) -> None:
        """Raise DatabaseError if a column of the key has the name of a column of the reviews."""
        self._sink = sink
        own = Review._fields[1:]
        for name in sink.columns.key:
            if name.lower() in own:
                raise DatabaseError(
                    f"the table of reviews has a column {name.lower()!r} of its own, and so has the job's key; rename "
                    "the column in the source"
                )
        key = [Column(name, KINDS[kind](), primary_key=True) for name, kind in sink.columns.key.items()]
        self.table = Table(
            f"{sink.table.name}_reviews",
            MetaData(),
            *key,
            Column("column", String, primary_key=True),
            Column("answer", Text),
            Column("verdict", String, nullable=False),
            Column("new", Text),
            Column("by", Text),
            Column("note", Text),
            Column("drawn", Text, nullable=False),
            Column("weight", Float(53)),
            Column("custom_id", String),
            Column("row_hash", String),
            Column("at", UtcDateTime, primary_key=True),
            CheckConstraint(" OR ".join(f"verdict = '{verdict}'" for verdict in VERDICTS), name="known_verdict"),
            schema=sink.table.schema,
        )
        self.view = view_of(sink)

    # -- making them -------------------------------------------------------------------------------------------------

    def is_made(self, conn: Connection) -> bool:
        """Return whether the table is there. Raises DatabaseError if a table with its name was not made by us."""
        name, schema = self.table.name, self.table.schema
        if not inspect(conn).has_table(name, schema=schema):
            return False
        has = {column["name"] for column in inspect(conn).get_columns(name, schema)}
        if not has >= {column.name for column in self.table.columns}:
            raise DatabaseError(
                f"review: table {name!r} exists and holds no reviews; choose another name for sink.table, or drop it"
            )
        return True

    def make(self, conn: Connection) -> None:
        """Make table and view where they are missing. Raises DatabaseError for a name that is taken or too long."""
        alone(conn)  # another process may make them now
        if conn.dialect.name == "postgresql" and len(self.view.encode()) > LONGEST_NAME:
            raise DatabaseError(
                f"review: the name {self.view!r} is longer than PostgreSQL's {LONGEST_NAME} bytes; shorten sink.table"
            )
        made = self.is_made(conn)
        there = inspect(conn).has_table(self.view, schema=self.table.schema)  # or a view
        if there and not made:
            raise DatabaseError(
                f"review: {self.view!r} exists, and the view of corrected answers needs its name; rename it, or choose "
                "another name for sink.table"
            )
        if not made:
            self.table.create(conn)
        if not there:
            conn.execute(_CreateView(self._quoted_view(conn), self._corrected(conn)))

    @contextmanager
    def without_view(self, conn: Connection) -> Iterator[None]:
        """Drop the view while the block changes columns of the results table, and make it again."""
        try:
            conn.exec_driver_sql(f"DROP VIEW {self._quoted_view(conn)}")
        except DBAPIError as exc:
            if is_busy(exc) or exc.connection_invalidated:
                raise
            said = str(exc.orig).partition("\n")[0]
            raise DatabaseError(
                f"sink.table: columns of {self._sink.table.name!r} have to change, and {said}; drop what depends on "
                "the view, and make it again afterwards"
            ) from exc
        yield
        self.make(conn)

    def _quoted_view(self, conn: Connection) -> str:
        return conn.dialect.identifier_preparer.format_table(Table(self.view, MetaData(), schema=self.table.schema))

    def _corrected(self, conn: Connection) -> Select[Any]:
        """Return the query of the view: the results table, with corrections in place of the values they correct."""
        table, kinds = self._sink.table, self._sink.columns.output or {"text": "text"}
        names = {name: f"correction_{i}" for i, name in enumerate(kinds)}
        inner = select(*table.columns, *[self._newest(name).label(label) for name, label in names.items()])
        found = inner.subquery("answers")
        return select(
            *[
                _corrected(found, c.name, names[c.name], kinds[c.name], conn.dialect.name).label(c.name)
                if c.name in names
                else found.c[c.name]
                for c in table.columns
            ]
        )

    def _newest(self, column: str) -> ColumnElement[Any]:
        """Return the correction in the newest review of a column of an answer, as a part of a query."""
        table, reviews = self._sink.table, self.table
        same = [reviews.c[name] == table.c[name] for name in self._sink.columns.key]
        return (
            select(reviews.c.new)
            .where(*same, reviews.c["column"] == column, reviews.c.custom_id == table.c.custom_id)
            .order_by(reviews.c["at"].desc())
            .limit(1)
            .correlate(table)
            .scalar_subquery()
        )

    # -- reading and writing -----------------------------------------------------------------------------------------

    def all(self, conn: Connection) -> Iterator[Review]:
        """Yield all reviews, the oldest first."""
        yield from self._read(conn, [])

    def of_column(self, conn: Connection, column: str) -> Iterator[Review]:
        """Yield the reviews of one column, the oldest first."""
        yield from self._read(conn, [self.table.c["column"] == column])

    def _read(self, conn: Connection, conditions: Sequence[ColumnElement[bool]]) -> Iterator[Review]:
        width = len(self._sink.columns.key)
        query = select(*self.table.columns).where(*conditions).order_by(self.table.c["at"])
        for row in plain_rows(conn, query):
            yield Review(tuple(row[:width]), *row[width:])

    def add(self, conn: Connection, reviews: Sequence[Review], now: datetime.datetime) -> int:
        """Store reviews that say something new; return how many. now: the time, for all of them.

        A review that says the same as the newest one of its answer is left out. Their own `at` does not matter.
        """
        newest = {(review.key, review.column): review for review in self.all(conn)}
        last = conn.scalar(select(func.max(self.table.c["at"])))
        if last is not None:  # a clock may go backward, and the later review must count
            now = max(now, last + datetime.timedelta(microseconds=1))
        news = []
        for review in reviews:
            one = Review(*map(_storable, review))
            before = newest.get((one.key, one.column))
            if before is None or before.said != one.said:
                news.append(one)
        names = [column.name for column in self.table.columns]
        if news:
            rows = [dict(zip(names, (*one.key, *one.said[1:], now), strict=True)) for one in news]
            conn.execute(insert(self.table), rows)
        return len(news)


def _storable(value: Any) -> Any:
    """Return a value without NUL, which texts of PostgreSQL cannot contain."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _corrected(answers: FromClause, name: str, correction: str, kind: str, dialect: str) -> ColumnElement[Any]:
    """Return a column with its correction in its place, as a part of a query."""
    new: ColumnElement[Any] = answers.c[correction]
    value: ColumnElement[Any] = new
    if kind == "boolean":
        value = and_(new == "true")
    elif kind in ("integer", "number") or (kind in ("date", "datetime") and dialect == "postgresql"):
        value = cast(new, KINDS[kind]())  # SQLite keeps dates as texts, and a cast would make numbers of them
    return case((new.is_(None), answers.c[name]), (new == NULL, null()), else_=value)
