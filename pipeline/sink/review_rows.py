"""Read the answers that people review: which there are, and what some of them say. Edge: SQL."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, literal, select

from pipeline.errors import InputError
from pipeline.sink.keys import after, among
from pipeline.sink.matching import AT_ONCE, blaming_where, predicate_of
from pipeline.sink.plain_rows import plain_rows
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Database

PAGE = 5_000  # rows that one transaction reads


class ReviewedAnswer(NamedTuple):
    """An answer. custom_id: of its request; values: of the asked columns."""

    status: str
    custom_id: str | None
    values: tuple[Any, ...]


def answer_keys(
    database: Database,
    sink: ResultsTable,
    *,
    statuses: Sequence[str],
    where: str | None = None,
    by: str | None = None,
) -> Iterator[list[tuple[tuple[Any, ...], Any]]]:
    """Yield the keys of the answers with these statuses, page by page, each with its value in the column `by`.

    where: a SQL predicate over the results table. Raises InputError for a wrong predicate, and for a column that the
    table does not have.
    """
    table = sink.table
    if by is not None and by not in table.c:
        raise InputError(
            f"--by {by}: table {table.name} has no such column (it has: {', '.join(c.name for c in table.c)})"
        )
    key = [table.c[name] for name in sink.columns.key]
    conditions = [table.c.status.in_(statuses), *([] if where is None else [predicate_of(where)])]
    shown = literal(None) if by is None else table.c[by]
    query = page = select(*key, shown.label("by_value")).where(*conditions).order_by(*key).limit(PAGE)
    while True:
        with database.read() as conn, blaming_where(table, where):
            rows = plain_rows(conn, page)
        if rows:
            yield [(row[:-1], row[-1]) for row in rows]
        if len(rows) < PAGE:
            return
        page = query.where(after(key, rows[-1]))


def answers_with_keys(
    conn: Connection, sink: ResultsTable, columns: Sequence[str], keys: Sequence[tuple[Any, ...]]
) -> dict[tuple[Any, ...], ReviewedAnswer]:
    """Return the answers with these keys; a key without an answer is missing. columns: for their values."""
    key = [sink.table.c[name] for name in sink.columns.key]
    query = select(*key, sink.table.c.status, sink.table.c.custom_id, *[sink.table.c[name] for name in columns])
    found, width = {}, len(key)
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        for row in plain_rows(conn, query.where(among(key, some))):
            found[row[:width]] = ReviewedAnswer(row[width], row[width + 1], row[width + 2 :])
    return found
