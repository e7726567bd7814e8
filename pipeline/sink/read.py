"""Read answers from the results table, page by page, and write them as JSON lines. Edge: SQL."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, FromClause, Row, Select, Table, select
from sqlalchemy.exc import DBAPIError

from pipeline.errors import DatabaseError, InputError
from pipeline.sink import nested
from pipeline.sink.keys import after, among
from pipeline.sink.matching import blaming_where, predicate_of
from pipeline.sink.nested import NestedColumns
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord
from pipeline.states import OUTCOMES, RowState

PAGE = 5_000  # rows that are read in one transaction


@dataclass(frozen=True)
class AnswerFilter:
    """Which answers to read; None means no restriction.

    status: only answers with this outcome. where: a SQL predicate over the table's columns. since: only answers of runs
    with a greater id. limit: the highest number of answers; 0 for none. Raises InputError for an unknown status.
    """

    status: str | None = None
    where: str | None = None
    since: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.status is not None and self.status not in OUTCOMES:
            raise InputError(f"--status {self.status}: unknown status; choose one of {', '.join(OUTCOMES)}")

    def query(self, table: FromClause) -> Select[Any]:
        """Return the query for these answers in a table, without the limit."""
        query = select(table)
        if self.status is not None:
            query = query.where(table.c.status == self.status)
        if self.where is not None:
            query = query.where(predicate_of(self.where))
        return query if self.since is None else query.where(table.c.run_id > self.since)


def pages(
    database: Database, job: JobRecord, wanted: AnswerFilter, size: int | None = None
) -> Iterator[Sequence[Row[Any]]]:
    """Yield the job's answers, ordered by key, in pages of at most `size` rows; None for PAGE. No page is empty.

    Raises InputError for a wrong predicate.
    """
    size = size or PAGE
    sink = ResultsTable.of(job)
    key = [sink.rows.c[name] for name in sink.columns.key]
    query = wanted.query(sink.rows).order_by(*key)
    left, page = wanted.limit, query
    while left is None or left > 0:
        # one transaction for each page: a long transaction would keep the database from removing dead rows
        rows = _rows(database, page.limit(size if left is None else min(size, left)), wanted.where, sink.table)
        if rows:
            yield rows
        if len(rows) < size:
            return
        left = None if left is None else left - len(rows)
        page = query.where(after(key, [rows[-1]._mapping[column.name] for column in key]))


def ndjson(database: Database, job: JobRecord, wanted: AnswerFilter | None = None) -> Iterator[bytes]:
    """Yield the job's answers as JSON lines, ordered by key; the fields are named like the table's columns."""
    with database.read() as conn:
        columns = nested.nested_columns(conn, job, ResultsTable.of(job).columns)
    for page in pages(database, job, wanted or AnswerFilter()):
        yield from json_lines(page[0]._fields, page, columns)


def json_lines(
    names: Iterable[str], rows: Sequence[Sequence[Any]], columns: NestedColumns | None = None
) -> Iterator[bytes]:
    """Yield answers as JSON lines.

    names: of the columns, in the order of a row's values; columns: those that hold lists or objects as JSON text, which
    are parsed; None for none.
    """
    names = [str(name) for name in names]
    parsed = [name for name in names if name in (columns or {})]
    cost = "cost_usd" in names
    for row in rows:
        values = dict(zip(names, row, strict=True))
        for name in parsed:
            values[name] = nested.parsed_value(values[name])
        if cost:
            values["cost_usd"] = rounded_price(values["cost_usd"])
        yield orjson.dumps(values, default=str) + b"\n"


class AnswersOfRow(NamedTuple):
    """The answers of one row by column: the present one, None without any, and those that it replaced, oldest first."""

    present: dict[str, Any] | None
    earlier: list[dict[str, Any]]


def answers_of_row(conn: Connection, sink: ResultsTable, key: str) -> AnswersOfRow:
    """Return the answers of the row with this key. key: JSON, as the state database has it."""
    values = sink.key_values(key)

    def answers(table: FromClause) -> Select[Any]:
        same = (table.c[name] == value for name, value in zip(sink.columns.key, values, strict=True))
        return select(table).where(*same)

    present = conn.execute(answers(sink.rows)).first()
    earlier: list[dict[str, Any]] = []
    if sink.history is not None and sink.columns.history:
        replaced = conn.execute(answers(sink.history).order_by(sink.history.c.replaced_at))
        earlier = [dict(row._mapping) for row in replaced]
    return AnswersOfRow(None if present is None else dict(present._mapping), earlier)


def statuses_of(conn: Connection, sink: ResultsTable, keys: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], str]:
    """Return the status of the answers with these keys. keys: as the values of their columns, some hundreds at most."""
    key = [sink.rows.c[name] for name in sink.columns.key]
    query = select(*key, sink.rows.c.status).where(among(key, keys))
    return {tuple(row[:-1]): row[-1] for row in conn.execute(query).all()}


def answered_keys(database: Database, sink: ResultsTable) -> Iterator[list[tuple[Any, ...]]]:
    """Return the keys in the results table page by page, each as the values of its columns."""
    key = [sink.rows.c[name] for name in sink.columns.key]
    query = page = select(*key).order_by(*key).limit(PAGE)
    while True:
        with database.read() as conn:
            found = [tuple(row) for row in conn.execute(page).all()]
        if not found:
            return
        yield found
        page = query.where(after(key, found[-1]))


def newest_lengths(conn: Connection, sink: ResultsTable, recipe: str | None, *, limit: int) -> list[int]:
    """Return the output tokens of answers that succeeded. recipe: of these only; None: of any."""
    table = sink.rows
    query = select(table.c.output_tokens).where(table.c.status == RowState.SUCCEEDED, table.c.output_tokens > 0)
    return list(conn.scalars((query if recipe is None else query.where(table.c.recipe == recipe)).limit(limit)))


def rounded_price(usd: float | None) -> float | None:
    """Return a price without the rounding errors of float arithmetic, which older versions stored; None stays None."""
    return None if usd is None else round(usd, 12)


def _rows(database: Database, query: Select[Any], where: str | None, table: Table) -> Sequence[Row[Any]]:
    with blaming_table(table), database.read() as conn, blaming_where(table, where):
        return conn.execute(query).all()


@contextmanager
def blaming_table(table: Table) -> Iterator[None]:
    """Raise DatabaseError when a query fails although the database works: the table is gone, or is another one."""
    try:
        yield
    except DBAPIError as exc:
        said = str(exc.orig).partition("\n")[0]
        raise DatabaseError(
            f"table {table.name!r} cannot be read: {said}; restore it, or give another database by --database"
        ) from exc
