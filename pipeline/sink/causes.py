"""Which answers of a results table did not succeed, grouped by what went wrong? Edge: SQL."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, func, or_, select

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


def failure_causes(
    conn: Connection, sink: ResultsTable, run_id: int | None = None, most: int = MOST_CAUSES
) -> list[Cause]:
    """Return the failed rows of a results table by cause, the most frequent first.

    run_id: only answers of this run; None: of all. most: how many causes.
    """
    table = sink.rows
    number = func.count()
    by = [table.c.status, table.c.error_type, table.c.error_message]
    which = [table.c.status.in_(FAILURES), *([] if run_id is None else [table.c.run_id == run_id])]
    grouped = select(*by, number).where(*which).group_by(*by).order_by(number.desc(), *by).limit(most)
    causes = conn.execute(grouped).tuples().all()
    examples = _examples(conn, sink, which, [tuple(cause[:3]) for cause in causes]) if causes else {}
    return [Cause._make((*cause, examples.get(tuple(cause[:3]), []))) for cause in causes]


def _examples(
    conn: Connection, sink: ResultsTable, which: Sequence[ColumnElement[bool]], causes: Sequence[tuple[Any, ...]]
) -> dict[tuple[Any, ...], list[Example]]:
    """Return the first rows by key of each of these causes."""
    table = sink.rows
    by = [table.c.status, table.c.error_type, table.c.error_message]
    key = [table.c[name] for name in sink.columns.key]
    ids = [table.c.message_id, table.c.request_id] if sink.columns.ids else []
    place = func.row_number().over(partition_by=by, order_by=key).label("place_of_cause")
    same = [and_(*[column.is_not_distinct_from(v) for column, v in zip(by, cause, strict=True)]) for cause in causes]
    placed = select(*by, *key, *ids, place).where(*which, or_(*same)).subquery()
    columns = list(placed.c)[:-1]
    found: dict[tuple[Any, ...], list[Example]] = {}
    for row in conn.execute(select(*columns).where(placed.c.place_of_cause <= EXAMPLES).order_by(*columns[3:])):
        cause, values = tuple(row[:3]), tuple(row[3:])
        found.setdefault(cause, []).append(Example(values[: len(key)], *(values[len(key) :] or (None, None))))
    return found
