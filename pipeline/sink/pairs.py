"""Read the answers of rows with gold, together with their gold, page by page. Edge: SQL."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, FromClause, Select, and_, func, select

from pipeline.errors import InputError
from pipeline.sink.gold import GoldTable
from pipeline.sink.keys import after
from pipeline.sink.matching import blaming_where, predicate_of
from pipeline.sink.plain_rows import plain_rows
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Database

PAGE = 5_000  # rows that one transaction reads


class Layout(NamedTuple):
    """Where the values of a row of `Pairs.pages` stand. A slice for each group of columns, an index for each other."""

    key: slice
    status: int
    request: int  #: the id of the request that was answered; rows that share a request have the same
    cost: int
    by: slice
    answers: slice
    gold: slice


class Pairs:
    """The answers of a job's rows with gold."""

    def __init__(
        self,
        database: Database,
        sink: ResultsTable,
        gold: GoldTable,
        *,
        where: str | None = None,
        by: Sequence[str] = (),
        batches: Sequence[str] | None = None,
    ) -> None:
        """where: a SQL predicate over the results table, None for none. by: further columns of the results table.

        batches: only answers of batches with these ids of the API; None for all. Raises InputError for a column that
        the results table does not have.
        """
        self._database, self._sink, self._gold, self._where = database, sink, gold, where
        self._batches = batches
        for name in (*gold.columns, *by):
            if name not in sink.rows.c:
                has = ", ".join(column.name for column in sink.rows.c)
                raise InputError(f"table {sink.table.name} has no column {name!r} (it has: {has})")
        self._by, key, columns = list(by), len(sink.columns.key), len(gold.columns)
        first = key + 3 + len(by)
        self.layout = Layout(
            key=slice(0, key),
            status=key,
            request=key + 1,
            cost=key + 2,
            by=slice(key + 3, first),
            answers=slice(first, first + columns),
            gold=slice(first + columns, first + 2 * columns),
        )

    def pages(self) -> Iterator[Sequence[Sequence[Any]]]:
        """Yield the rows with gold that have an outcome, ordered by key. Raises InputError for a wrong predicate."""
        answers, gold = self._answers(), self._gold.table
        key = [gold.c[name] for name in self._sink.columns.key]
        columns = [*self._gold.columns]
        query = page = (
            select(
                *key,
                answers.c.status,
                self._request(answers),
                answers.c.cost_usd,
                *[answers.c[name] for name in (*self._by, *columns)],
                *[gold.c[name] for name in columns],
            )
            .select_from(gold.join(answers, self._same_key(answers)))
            .order_by(*key)
            .limit(PAGE)
        )
        while True:
            rows = self._read(page)
            if rows:
                yield rows
            if len(rows) < PAGE:
                return
            page = query.where(after(key, rows[-1]))

    def shared_requests(self, statuses: Sequence[str]) -> frozenset[str]:
        """Return the ids of requests that answered several rows with these statuses.

        All rows that share a request, except the first, have no tokens.
        """
        table = self._sink.rows
        free = and_(table.c.input_tokens == 0, table.c.output_tokens == 0, table.c.status.in_(statuses))
        return frozenset(row[0] for row in self._read(select(self._request(table)).where(free).distinct()) if row[0])

    def without_answer(self) -> int:
        """Return how many rows with gold have no outcome: they were not sent yet, or are not in the source."""
        table = self._sink.rows
        first = table.c[next(iter(self._sink.columns.key))]
        joined = self._gold.table.outerjoin(table, self._same_key(table))
        [[missing]] = self._read(select(func.count()).select_from(joined).where(first.is_(None)))
        return int(missing)

    def _answers(self) -> FromClause:
        """Return the answers that meet the predicate, as a table."""
        table = self._sink.rows
        clauses = [] if self._where is None else [predicate_of(self._where)]
        clauses += [] if self._batches is None else [table.c.batch_id.in_(self._batches)]
        return select(table).where(*clauses).subquery("answers") if clauses else table

    def _request(self, answers: FromClause) -> ColumnElement[Any]:
        ids = [answers.c.message_id] if self._sink.columns.ids else []
        return func.coalesce(*ids, answers.c.custom_id)

    def _same_key(self, answers: FromClause) -> ColumnElement[bool]:
        return and_(*[self._gold.table.c[name] == answers.c[name] for name in self._sink.columns.key])

    def _read(self, query: Select[Any]) -> Sequence[Sequence[Any]]:
        with self._database.read() as conn, blaming_where(self._sink.table, self._where):
            return plain_rows(conn, query)
