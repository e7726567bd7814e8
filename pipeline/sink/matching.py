"""Which answers of a results table meet what a person asks for? Edge: SQL."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, FromClause, Table, func, select, text
from sqlalchemy.exc import DBAPIError, StatementError

from pipeline.errors import InputError
from pipeline.sink.keys import among
from pipeline.sink.table import ResultsTable
from pipeline.state.database import is_busy

AT_ONCE = 500  # keys that one query asks for: databases take some ten thousand parameters


@dataclass(frozen=True)
class Conditions:
    """What must hold of an answer. error_types: () for any; where: a SQL predicate over the table, None for none."""

    error_types: tuple[str, ...]
    where: str | None

    def __bool__(self) -> bool:
        """Whether there is any condition."""
        return bool(self.error_types) or self.where is not None

    def clauses(self, table: FromClause) -> list[ColumnElement[bool]]:
        """The conditions as clauses of a query."""
        found: list[ColumnElement[bool]] = []
        if self.error_types:
            found.append(table.c.error_type.in_(self.error_types))
        if self.where is not None:
            found.append(predicate_of(self.where))
        return found


def matching_keys(conn: Connection, sink: ResultsTable, conditions: Conditions, keys: Sequence[str]) -> set[str]:
    """Return those of the keys (JSON, at most a chunk) whose answers meet the conditions.

    Raises InputError when `where` is no predicate.
    """
    columns = [sink.rows.c[name] for name in sink.columns.key]
    clauses = conditions.clauses(sink.rows)
    found: set[str] = set()
    for start in range(0, len(keys), AT_ONCE):
        some = {sink.key_values(key): key for key in keys[start : start + AT_ONCE]}
        with blaming_where(sink.table, conditions.where):
            rows = conn.execute(select(*columns).where(among(columns, some), *clauses)).all()
        found |= {some[tuple(row)] for row in rows}
    return found


def count_matching(conn: Connection, sink: ResultsTable, statuses: Sequence[str], conditions: Conditions) -> int:
    """Return how many answers have one of these statuses and meet the conditions. Raises as `matching_keys` does."""
    table = sink.rows
    query = select(func.count()).select_from(table)
    with blaming_where(sink.table, conditions.where):
        return conn.scalar(query.where(table.c.status.in_(statuses), *conditions.clauses(table))) or 0


def count_by_status(conn: Connection, sink: ResultsTable) -> dict[str, int]:
    """Return how many answers there are by status, in the order of the statuses."""
    status = sink.rows.c.status
    return dict(conn.execute(select(status, func.count()).group_by(status).order_by(status)).tuples().all())


def error_types(conn: Connection, sink: ResultsTable, statuses: Sequence[str]) -> list[str]:
    """Return the error types of the answers with one of these statuses, sorted."""
    table = sink.rows
    types = conn.scalars(select(table.c.error_type).where(table.c.status.in_(statuses)).distinct())
    return sorted(error_type for error_type in types if error_type)


def predicate_of(where: str) -> ColumnElement[bool]:
    """Return a person's SQL predicate as a clause of a query."""
    # no colon of theirs is a parameter; the line ends what may be a comment
    return text("({}\n)".format(where.replace(":", "\\:")))  # type: ignore[return-value]


@contextmanager
def blaming_where(table: Table, where: str | None) -> Iterator[None]:
    """Raise InputError when a query with a person's predicate fails.

    Errors that are not the predicate's pass unchanged: a broken connection, a database that another process has locked.
    """
    try:
        yield
    except StatementError as exc:
        if where is None or is_busy(exc) or (isinstance(exc, DBAPIError) and exc.connection_invalidated):
            raise
        said = str(exc.orig).partition("\n")[0]
        raise InputError(f"--where {where!r} is not a SQL predicate over {table.name}: {said}") from exc
