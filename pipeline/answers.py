"""Answers out of the results table. Edge: SQL."""

from collections.abc import Iterator
from typing import Any

import orjson
from sqlalchemy import Row, select, text
from sqlalchemy.exc import StatementError

from pipeline.database import Database
from pipeline.errors import InputError
from pipeline.sink import Columns, Sink
from pipeline.states import OUTCOMES


def ndjson(
    database: Database, job: Row[Any], *, status: str | None = None, where: str | None = None, limit: int | None = None
) -> Iterator[bytes]:
    """The job's results rows as JSON lines in the order of their keys, with column names as in the table.

    status: only rows with this one; where: a SQL predicate over the table's columns. Raises InputError for a wrong one.
    """
    if status is not None and status not in OUTCOMES:
        raise InputError(f"--status {status}: there is no such status; there are {', '.join(OUTCOMES)}")
    columns = Columns(**job.columns)
    table = Sink(job.results_table, columns).table
    query = select(table).order_by(*[table.c[name] for name in columns.key])
    if status is not None:
        query = query.where(table.c.status == status)
    if where is not None:
        query = query.where(text("({})".format(where.replace(":", "\\:"))))  # no colon of theirs is a parameter
    if limit is not None:
        query = query.limit(limit)
    with database.read() as conn:
        try:
            rows = conn.execution_options(yield_per=1_000).execute(query)
        except StatementError as exc:
            raise InputError(f"--where {where!r} is not a SQL predicate over {job.results_table}: {exc.orig}") from exc
        names = [str(name) for name in rows.keys()]  # noqa: SIM118  # a result's keys(), which is no dict's
        for row in rows:
            yield orjson.dumps(dict(zip(names, row, strict=True)), default=str) + b"\n"
