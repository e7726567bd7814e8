"""Store the gold of a job in a table beside its results table. Edge: SQL.

The gold table has the key of the results table and a column for each output column with gold. It is read again from
the job's source or gold file each time, in chunks: each chunk is one transaction that inserts or replaces its rows.
Rows of earlier readings are removed when all chunks are stored. So a reader never finds the table half empty, and if we
die in between, the next reading puts it right.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, MetaData, Table, delete, func, inspect, select, tuple_

from pipeline.errors import DatabaseError, JobError
from pipeline.sink.columns import KINDS
from pipeline.sink.table import ResultsTable, insert_of
from pipeline.state.bulk import Bulk
from pipeline.state.jobs import alone

#: The column with the number of the reading that last found the row. It also shows that the table is ours.
READING = "gold_reading"
REMOVED_AT_ONCE = 5_000  # rows that one statement removes


class GoldTable:
    """The gold table of a job: `<results table>_gold`."""

    def __init__(self, sink: ResultsTable, columns: Mapping[str, str]) -> None:
        """columns: the output columns with gold, from name to kind. Raises JobError for a name that is not free."""
        for name in (*sink.columns.key, *columns):
            if name.lower() == READING:
                raise JobError(f"gold.columns: the gold table has a column {READING!r} of its own; rename yours")
        self.sink, self.columns = sink, dict(columns)
        key = [Column(name, KINDS[kind](), primary_key=True) for name, kind in sink.columns.key.items()]
        self.table = Table(
            f"{sink.table.name}_gold",
            MetaData(),
            *key,
            *[Column(name, KINDS[kind]()) for name, kind in columns.items()],
            Column(READING, BigInteger, nullable=False),
            schema=sink.table.schema,
        )
        self._upsert: Bulk | None = None

    def check(self, conn: Connection) -> None:
        """Raise DatabaseError if a table of this name exists that no job has made as its gold table."""
        found = self._found(conn)
        if found is not None and READING not in found:
            raise DatabaseError(
                f"gold: table {self.table.name!r} exists and is no gold table; choose another name for sink.table, or "
                "drop it"
            )

    def is_made(self, conn: Connection) -> bool:
        """Return whether the table is there with these columns."""
        return self._found(conn) == _kinds(conn, self.table)

    def count(self, conn: Connection) -> int:
        """Return how many rows have gold. The table must be there."""
        return int(conn.scalar(select(func.count()).select_from(self.table)) or 0)

    def begin(self, conn: Connection) -> int:
        """Make the table if it is not there with these columns, and return the number of the next reading.

        Raises DatabaseError as `check` does.
        """
        alone(conn)  # another driver may make the table now
        self.check(conn)
        found, wanted = self._found(conn), _kinds(conn, self.table)
        if found is not None and found != wanted:
            self.table.drop(conn)
        if found != wanted:
            self.table.create(conn)
        return int(conn.scalar(select(func.coalesce(func.max(self.table.c[READING]), 0))) or 0) + 1

    def _found(self, conn: Connection) -> dict[str, str] | None:
        """Return the columns that the table has in the database, from name to SQL type; None if there is no table."""
        name, schema = self.table.name, self.table.schema
        if not inspect(conn).has_table(name, schema=schema):
            return None
        dialect = conn.dialect
        return {each["name"]: each["type"].compile(dialect=dialect) for each in inspect(conn).get_columns(name, schema)}

    def write(self, conn: Connection, reading: int, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert or replace rows. rows: values of the key columns, then of the gold columns, of a chunk."""
        if self._upsert is None:
            row = insert_of(conn.dialect.name)(self.table)
            replaced = {c.name: row.excluded[c.name] for c in self.table.columns if not c.primary_key}
            upsert = row.on_conflict_do_update(index_elements=list(self.sink.columns.key), set_=replaced)
            self._upsert = Bulk(upsert, [column.name for column in self.table.columns])
        if conn.dialect.name == "postgresql":
            rows = [tuple(v.replace("\0", "\ufffd") if isinstance(v, str) else v for v in row) for row in rows]
        self._upsert.execute(conn, [(*row, reading) for row in rows])

    def remove_older(self, conn: Connection, reading: int) -> int:
        """Remove some rows that this and later readings did not find; return how many, 0 when none is left."""
        key = [self.table.c[name] for name in self.sink.columns.key]
        older = select(*key).where(self.table.c[READING] < reading).limit(REMOVED_AT_ONCE)
        return conn.execute(delete(self.table).where(tuple_(*key).in_(older))).rowcount


def _kinds(conn: Connection, table: Table) -> dict[str, str]:
    """Return the columns of a table of ours, from name to SQL type."""
    return {column.name: column.type.compile(dialect=conn.dialect) for column in table.columns}
