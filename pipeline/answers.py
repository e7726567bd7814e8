"""Answers out of the results table. Edge: SQL."""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from sqlalchemy import Row, Select, literal, select, text, tuple_
from sqlalchemy.exc import StatementError

from pipeline.database import Database
from pipeline.errors import InputError
from pipeline.sink import Sink
from pipeline.states import OUTCOMES

PAGE = 5_000  # rows of one transaction


def ndjson(
    database: Database, job: Row[Any], *, status: str | None = None, where: str | None = None, limit: int | None = None
) -> Iterator[bytes]:
    """The job's results rows as JSON lines in the order of their keys, with column names as in the table.

    status: only rows with this one; where: a SQL predicate over the table's columns. Raises InputError for a wrong one.
    """
    if status is not None and status not in OUTCOMES:
        raise InputError(f"--status {status}: there is no such status; there are {', '.join(OUTCOMES)}")
    sink = Sink.of(job)
    table = sink.table
    key = [table.c[name] for name in sink.columns.key]
    query = select(table).order_by(*key)
    if status is not None:
        query = query.where(table.c.status == status)
    if where is not None:
        query = query.where(text("({})".format(where.replace(":", "\\:"))))  # no colon of theirs is a parameter
    names = [str(column.name) for column in table.columns]
    left, page = limit, query
    while left is None or left > 0:
        # page by page, each in a transaction of its own: a long one would keep the database from tidying up
        rows = _rows(database, page.limit(PAGE if left is None else min(PAGE, left)), where, table.name)
        for row in rows:
            yield orjson.dumps(dict(zip(names, row, strict=True)), default=str) + b"\n"
        if len(rows) < PAGE:
            return
        left = None if left is None else left - len(rows)
        last = [literal(rows[-1]._mapping[column.name], column.type) for column in key]
        page = query.where(key[0] > last[0] if len(key) == 1 else tuple_(*key) > tuple_(*last))


def _rows(database: Database, query: Select[Any], where: str | None, table: str) -> Sequence[Row[Any]]:
    with database.read() as conn:
        try:
            return conn.execute(query).all()
        except StatementError as exc:
            raise InputError(f"--where {where!r} is not a SQL predicate over {table}: {exc.orig}") from exc
