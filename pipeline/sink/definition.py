"""Create and check the tables of a job: the results table and its history table. Edge: SQL."""

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, Table, inspect
from sqlalchemy.schema import CreateColumn, CreateSchema

from pipeline.errors import DatabaseError
from pipeline.sink.columns import ID_NAMES, IDS, ResultColumns, renamed
from pipeline.sink.reviews import ReviewsTable, has_view
from pipeline.sink.table import ResultsTable

_OTHER_NAME = {
    "source.key": "rename it in the source",
    "source.keep": "keep it under another name",
    "output": "give it another name by output.columns",
}
_SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")


def check_tables(conn: Connection, sink: ResultsTable, before: ResultColumns | None) -> None:
    """Raise DatabaseError if `make_tables` would fail: another program's table, a missing table, an impossible name.

    before: see `make_tables`.
    """
    _refuse_names(conn, sink)
    if before is None and _exists(conn, sink.table):
        raise DatabaseError(
            f"sink.table: table {sink.table.name!r} exists and was not made by this job; "
            "choose another name, or drop it"
        )
    if before is not None and not _exists(conn, sink.table):
        raise DatabaseError(
            f"sink.table: table {sink.table.name!r} does not exist any more, and paid answers were in it; "
            "restore it, or give another database by --database"
        )
    has_history = before is not None and (before.history or before.had_history)
    if sink.history is not None and not has_history and _exists(conn, sink.history):
        raise DatabaseError(
            f"sink.history: table {sink.history.name!r} exists and was not made by this job; "
            "choose another name for sink.table, or drop it"
        )
    if before is not None:
        for table in (sink.table, sink.history):
            if table is not None and _exists(conn, table):
                _refuse_foreign(conn, sink, table, before)


def _refuse_foreign(conn: Connection, sink: ResultsTable, table: Table, before: ResultColumns) -> None:
    """Raise DatabaseError if a column that is to be added exists already and this job did not create it."""
    moved = sink.columns.displaced(before)
    present = {name.lower(): name for name in _column_names(conn, table) if name not in moved}
    for name, new in moved.items():
        if new.lower() in present:
            raise DatabaseError(
                f"sink.table: column {name!r} of table {table.name!r} must be renamed to {new!r}, because this "
                f"version needs its name, but the table has a column {present[new.lower()]!r} that this job did "
                "not create; rename or drop that column"
            )
    ids = dict(IDS) if sink.columns.ids else {}
    for what, names, had, remedy in (
        ("source.keep", sink.columns.keep, renamed(before.keep, moved), "keep it as {NAME: source_NAME}"),
        (
            "output",
            sink.columns.output,
            renamed(before.output, moved),
            "write output.columns: {NAME: answer_NAME}",
        ),
        ("sink.table", ids, ids if before.ids else {}, "this version needs that name: rename that column"),
    ):
        for name in names:
            if name not in had and name.lower() in present:
                raise DatabaseError(
                    f"{what}: table {table.name!r} has a column {present[name.lower()]!r} that this job did not "
                    f"create; {remedy.replace('NAME', name)}, or drop that column"
                )


def _column_names(conn: Connection, table: Table) -> list[str]:
    """Return the names of the columns that the table has in the database."""
    return [column["name"] for column in inspect(conn).get_columns(table.name, schema=table.schema)]


def has_column_of_ids(conn: Connection, sink: ResultsTable) -> bool:
    """Return whether one of the existing tables has a column with the name of one of IDS."""
    tables = [table for table in (sink.table, sink.history) if table is not None and _exists(conn, table)]
    return any(name.lower() in ID_NAMES for table in tables for name in _column_names(conn, table))


def _refuse_names(conn: Connection, sink: ResultsTable) -> None:
    """Raise DatabaseError for names that the database cannot have.

    PostgreSQL would cut long names, and each of its tables has system columns; SQLite has no schemas.
    """
    if conn.dialect.name != "postgresql":
        if sink.own_schema:
            raise DatabaseError(
                f"sink.table: {sink.own_schema}.{sink.table.name}: a SQLite database has no schemas; "
                f"write {sink.table.name}"
            )
        return
    tables = [("sink.table", sink.table.name), ("sink.history", f"{sink.table.name}_history")]
    for what, name in tables if sink.history is not None else tables[:1]:
        if _too_long(name):
            raise DatabaseError(f"{what}: the name {name!r} is longer than PostgreSQL's 63 bytes; shorten it")
    named = {"source.key": sink.columns.key, "source.keep": sink.columns.keep, "output": sink.columns.output}
    for what, names in named.items():
        remedy = _OTHER_NAME[what]
        for name in names:
            if _too_long(name):
                raise DatabaseError(
                    f"{what}: the name of column {name!r} is longer than PostgreSQL's 63 bytes; {remedy}"
                )
            if name in _SYSTEM_COLUMNS:
                raise DatabaseError(f"{what}: column {name!r} has the name of a PostgreSQL system column; {remedy}")


def _exists(conn: Connection, table: Table) -> bool:
    return inspect(conn).has_table(table.name, schema=table.schema)


def make_tables(conn: Connection, sink: ResultsTable, before: ResultColumns | None) -> None:
    """Create the tables, or add and alter columns of existing tables until they have these columns.

    before: the columns with which this job created the table; None if it has not created it yet.
    Raises DatabaseError as `check_tables` does.
    """
    check_tables(conn, sink, before)
    if sink.own_schema and not inspect(conn).has_schema(sink.own_schema):
        conn.execute(CreateSchema(sink.own_schema))
    for table in (sink.table, sink.history):
        if table is None:
            continue
        if _exists(conn, table):
            _migrate(conn, sink, table, before)
        elif table is sink.table or sink.columns.history:
            table.create(conn)


def _migrate(conn: Connection, sink: ResultsTable, table: Table, before: ResultColumns | None) -> None:
    changes = [
        f"ALTER TABLE {conn.dialect.identifier_preparer.format_table(table)} {change}"
        for change in _changes(conn, sink, table, before)
    ]
    if changes and has_view(conn, sink):  # PostgreSQL changes no column that a view shows
        with ReviewsTable(sink).without_view(conn):
            _execute(conn, changes)
    else:
        _execute(conn, changes)


def _execute(conn: Connection, statements: Sequence[str]) -> None:
    for statement in statements:
        conn.exec_driver_sql(statement)


def _changes(conn: Connection, sink: ResultsTable, table: Table, before: ResultColumns | None) -> Iterator[str]:
    """Yield what has to be altered in a table of ours until it has its columns."""
    preparer = conn.dialect.identifier_preparer
    moved = {} if before is None else sink.columns.displaced(before)
    for name, new in moved.items():
        yield f"RENAME COLUMN {preparer.quote(name)} TO {preparer.quote(new)}"
    present = {moved.get(name, name) for name in _column_names(conn, table)}
    had = {} if before is None else renamed({**before.keep, **before.output}, moved)
    has = {**sink.columns.keep, **sink.columns.output}
    for column in table.columns:
        if column.name not in present:
            yield f"ADD COLUMN {CreateColumn(column).compile(dialect=conn.dialect)}"
        elif conn.dialect.name == "postgresql" and had.get(column.name) != has.get(column.name):
            # not on SQLite, whose columns take values of every type
            name, kind = preparer.format_column(column), column.type.compile(dialect=conn.dialect)
            yield f"ALTER COLUMN {name} TYPE {kind} USING {name}::{kind}"


def _too_long(name: str) -> bool:
    return len(name.encode()) > 63
