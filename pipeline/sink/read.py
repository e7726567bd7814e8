"""Answers out of the results table: which of them, page by page, as lines of JSON. Edge: SQL."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, Row, Select, Table, literal, select, text, tuple_
from sqlalchemy.exc import StatementError

from pipeline.errors import InputError
from pipeline.sink import nested
from pipeline.sink.nested import Nesteds
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord
from pipeline.states import OUTCOMES, RowState

PAGE = 5_000  # rows of one transaction


@dataclass(frozen=True)
class Wanted:
    """Which answers. status: with this one; where: a SQL predicate over the table's columns; since: of runs after this.

    limit: so many at most. None: all.
    """

    status: str | None = None
    where: str | None = None
    since: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.status is not None and self.status not in OUTCOMES:
            raise InputError(f"--status {self.status}: there is no such status; there are {', '.join(OUTCOMES)}")

    def query(self, table: Table) -> Select[Any]:
        """The answers of this table."""
        query = select(table)
        if self.status is not None:
            query = query.where(table.c.status == self.status)
        if self.where is not None:  # no colon of theirs is a parameter
            query = query.where(text("({})".format(self.where.replace(":", "\\:"))))
        return query if self.since is None else query.where(table.c.run_id > self.since)


def pages(database: Database, job: JobRecord, wanted: Wanted, size: int | None = None) -> Iterator[Sequence[Row[Any]]]:
    """The job's answers in the order of their keys, so many at a time. Raises InputError for a wrong predicate."""
    size = size or PAGE
    sink = ResultsTable.of(job)
    key = [sink.table.c[name] for name in sink.columns.key]
    query = wanted.query(sink.table).order_by(*key)
    left, page = wanted.limit, query
    while left is None or left > 0:
        # page by page, each in a transaction of its own: a long one would keep the database from tidying up
        rows = _rows(database, page.limit(size if left is None else min(size, left)), wanted.where, sink.table.name)
        if rows:
            yield rows
        if len(rows) < size:
            return
        left = None if left is None else left - len(rows)
        last = [literal(rows[-1]._mapping[column.name], column.type) for column in key]
        page = query.where(key[0] > last[0] if len(key) == 1 else tuple_(*key) > tuple_(*last))


def ndjson(database: Database, job: JobRecord, wanted: Wanted | None = None) -> Iterator[bytes]:
    """The job's answers as JSON lines in the order of their keys, with column names as in the table."""
    with database.read() as conn:
        columns = nested.of(conn, job, ResultsTable.of(job).columns)
    for page in pages(database, job, wanted or Wanted()):
        yield from lines(page[0]._fields, page, columns)


def lines(names: Iterable[str], rows: Sequence[Sequence[Any]], columns: Nesteds | None = None) -> Iterator[bytes]:
    """Answers as JSON lines. names: of the columns, in the order of a row's values; columns: of lists and objects."""
    names = [str(name) for name in names]
    holds = [name for name in names if name in (columns or {})]
    cost = "cost_usd" in names
    for row in rows:
        values = dict(zip(names, row, strict=True))
        for name in holds:
            values[name] = nested.value_of(values[name])
        if cost:
            values["cost_usd"] = price(values["cost_usd"])
        yield orjson.dumps(values, default=str) + b"\n"


class AnswersOfRow(NamedTuple):
    """The answers of one row by column: the present one, None without any, and those that it replaced, oldest first."""

    present: dict[str, Any] | None
    earlier: list[dict[str, Any]]


def answers_of_row(conn: Connection, sink: ResultsTable, key: str) -> AnswersOfRow:
    """Return the answers of the row with this key. key: JSON, as the state database has it."""
    values = sink.key_values(key)

    def answers(table: Table) -> Select[Any]:
        same = (table.c[name] == value for name, value in zip(sink.columns.key, values, strict=True))
        return select(table).where(*same)

    present = conn.execute(answers(sink.table)).first()
    earlier: list[dict[str, Any]] = []
    if sink.history is not None and sink.columns.history:
        replaced = conn.execute(answers(sink.history).order_by(sink.history.c.replaced_at))
        earlier = [dict(row._mapping) for row in replaced]
    return AnswersOfRow(None if present is None else dict(present._mapping), earlier)


def statuses_of(conn: Connection, sink: ResultsTable, keys: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], str]:
    """Return the status of the answers with these keys. keys: as the values of their columns, some hundreds at most."""
    key = [sink.table.c[name] for name in sink.columns.key]
    here = key[0].in_([value for (value,) in keys]) if len(key) == 1 else tuple_(*key).in_(keys)
    return {tuple(row[:-1]): row[-1] for row in conn.execute(select(*key, sink.table.c.status).where(here)).all()}


def answered_keys(database: Database, sink: ResultsTable) -> Iterator[list[tuple[Any, ...]]]:
    """Return the keys in the results table page by page, each as the values of its columns."""
    key = [sink.table.c[name] for name in sink.columns.key]
    query = page = select(*key).order_by(*key).limit(PAGE)
    while True:
        with database.read() as conn:
            found = [tuple(row) for row in conn.execute(page).all()]
        if not found:
            return
        yield found
        last = [literal(value, column.type) for value, column in zip(found[-1], key, strict=True)]
        page = query.where(key[0] > last[0] if len(key) == 1 else tuple_(*key) > tuple_(*last))


def newest_lengths(conn: Connection, sink: ResultsTable, recipe: str | None, *, limit: int) -> list[int]:
    """Return the output tokens of answers that succeeded. recipe: of these only; None: of any."""
    table = sink.table
    query = select(table.c.output_tokens).where(table.c.status == RowState.SUCCEEDED, table.c.output_tokens > 0)
    return list(conn.scalars((query if recipe is None else query.where(table.c.recipe == recipe)).limit(limit)))


def price(usd: float | None) -> float | None:
    """A price as it is meant: older versions stored all digits of a float's arithmetic."""
    return None if usd is None else round(usd, 12)


def _rows(database: Database, query: Select[Any], where: str | None, table: str) -> Sequence[Row[Any]]:
    with database.read() as conn:
        try:
            return conn.execute(query).all()
        except StatementError as exc:
            raise InputError(f"--where {where!r} is not a SQL predicate over {table}: {exc.orig}") from exc
