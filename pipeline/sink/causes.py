"""Which answers of a results table did not succeed, grouped by what went wrong? Edge: SQL."""

from typing import Any, NamedTuple

from sqlalchemy import func, select

from pipeline.sink.table import ResultsTable
from pipeline.state.database import Connection
from pipeline.states import FAILURES

MOST_CAUSES = 50
EXAMPLES = 3  # rows that are named for each cause


class Example(NamedTuple):
    """A row with an error. key: the values of the key columns; the ids are the API's, None where there is none."""

    key: tuple[Any, ...]
    message_id: str | None
    request_id: str | None


class Cause(NamedTuple):
    """The rows that have the same status and the same error, and a few of them."""

    status: str
    error_type: str | None
    error_message: str | None
    rows: int
    examples: list[Example]


def failure_causes(conn: Connection, sink: ResultsTable) -> list[Cause]:
    """Return the failed rows of a results table by cause, the most frequent first, at most MOST_CAUSES."""
    table = sink.rows
    number = func.count()
    grouped = (
        select(table.c.status, table.c.error_type, table.c.error_message, number)
        .where(table.c.status.in_(FAILURES))
        .group_by(table.c.status, table.c.error_type, table.c.error_message)
        .order_by(number.desc(), table.c.status)
        .limit(MOST_CAUSES)
    )
    causes = conn.execute(grouped).tuples().all()
    return [
        Cause(
            status=status,
            error_type=kind,
            error_message=message,
            rows=rows,
            examples=_examples(conn, sink, status, kind, message),
        )
        for status, kind, message, rows in causes
    ]


def _examples(
    conn: Connection, sink: ResultsTable, status: str, error_type: str | None, error_message: str | None
) -> list[Example]:
    """Return a few of the rows that have just this status and this error."""
    table = sink.rows
    same = [
        table.c.status == status,
        table.c.error_type.is_not_distinct_from(error_type),
        table.c.error_message.is_not_distinct_from(error_message),
    ]
    key = [table.c[name] for name in sink.columns.key]
    ids = [table.c.message_id, table.c.request_id] if sink.columns.ids else []
    found = [tuple(row) for row in conn.execute(select(*key, *ids).where(*same).limit(EXAMPLES))]
    return [Example(row[: len(key)], *(row[len(key) :] or (None, None))) for row in found]
