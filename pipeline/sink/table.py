"""The results table: made, checked, and written. Edge: SQL."""

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import orjson
from sqlalchemy import (
    Column,
    Connection,
    Index,
    MetaData,
    String,
    Table,
    bindparam,
    insert,
    inspect,
    select,
    tuple_,
    update,
)
from sqlalchemy.schema import CreateColumn, CreateSchema

from pipeline.answer.outcome import Outcome
from pipeline.errors import DatabaseError
from pipeline.sink.columns import FIXED, ID_NAMES, IDS, KINDS, REPLACED_AT, ResultColumns, renamed
from pipeline.state.bulk import Bulk
from pipeline.state.jobs import JobRecord
from pipeline.state.tables import UtcDateTime

HISTORY_SLICE = 500  # keys that one statement looks for, to move what is replaced


class Fixed(NamedTuple):
    """What the pipeline knows of an answer, beside what the API says."""

    recipe: str
    cost_usd: float | None
    attempts: int
    custom_id: str | None
    batch_id: str | None
    run_id: int
    updated_at: datetime.datetime


class Answer(NamedTuple):
    """What `ResultsTable.row` makes a row of. key, keep: JSON, as the state database has them."""

    key: str
    keep: str | None
    outcome: Outcome
    fixed: Fixed


class ResultsTable:
    """One job's results table, and the history table beside it when the job has one."""

    def __init__(
        self, name: str, columns: ResultColumns, kept_today: Iterable[str] | None = None, schema: str | None = None
    ) -> None:
        """name: table or schema.table; columns: all that it has; kept_today: kept columns that the job still names.

        schema: that a new table goes to whose name has none; None on SQLite. One that was made before is where it is.
        """
        self._own_schema, _, name = name.rpartition(".")  # "": the name has none
        schema = self._own_schema or columns.schema or schema
        self.columns = columns = replace(columns, schema=schema)
        self.table = Table(name, MetaData(), *_columns(columns, keyed=True), schema=schema)
        self.history: Table | None = None
        if columns.history or columns.had_history:
            self.history = Table(
                f"{name}_history",
                MetaData(),
                *_columns(columns, keyed=False),
                Column(REPLACED_AT, UtcDateTime, nullable=False),
                schema=schema,
            )
            Index(None, *[self.history.c[key] for key in columns.key])
        self._key, self._keep = list(columns.key), list(columns.keep)
        kinds = [*columns.key.values(), *columns.keep.values()]
        self._readers = [(i, _READERS[kind]) for i, kind in enumerate(kinds) if kind in _READERS]
        self._outputs = [(name, _READERS.get(kind)) for name, kind in columns.output.items()]
        self._updated_at = [column.name for column in self.table.columns].index("updated_at")
        self._upsert: Bulk | None = None
        self._today = None if kept_today is None else set(kept_today)
        today = self._keep if self._today is None else self._today
        self._kept_today = [i for i, name in enumerate(self._keep, len(self._key)) if name in today]
        self._update_keep = self._keep_update()
        foreign = {*columns.key, *columns.keep, *columns.output, *_FOREIGN}
        self._texts = [i for i, c in enumerate(self.table.c) if c.name in foreign and isinstance(c.type, String)]

    @classmethod
    def of(cls, job: JobRecord) -> "ResultsTable":
        """The results table of a job that the state database knows."""
        return cls(job.results_table, ResultColumns.from_stored(job.columns))

    def having(self, columns: ResultColumns) -> "ResultsTable":
        """The same table when it has these columns; itself when it has them already."""
        if columns == self.columns:
            return self
        name = f"{self._own_schema}.{self.table.name}" if self._own_schema else self.table.name
        return ResultsTable(name, columns, self._today, self.table.schema)

    def _upsert_on(self, conn: Connection) -> Bulk:
        row = _insert_of(conn.dialect.name)(self.table)
        replaced = {c.name: row.excluded[c.name] for c in self.table.columns if not c.primary_key}
        upsert = row.on_conflict_do_update(index_elements=self._key, set_=replaced)
        return Bulk(upsert, [column.name for column in self.table.columns])

    def _keep_update(self) -> Bulk:
        parameters = [f"p{i}" for i in range(len(self._key) + len(self._keep))]
        where = [self.table.c[name] == bindparam(f"p{i}") for i, name in enumerate(self._key)]
        values: dict[str, Any] = {self.table.columns[i].name: bindparam(f"p{i}") for i in self._kept_today}
        named = parameters[: len(self._key)] + [parameters[i] for i in self._kept_today]
        return Bulk(update(self.table).where(*where).values(values), named)

    def check(self, conn: Connection, before: ResultColumns | None) -> None:
        """Raises DatabaseError for a table that is not ours, or is gone, or that this database cannot have.

        before: as for `make`.
        """
        self._refuse_names(conn)
        if before is None and self._exists(conn, self.table):
            raise DatabaseError(
                f"sink.table: table {self.table.name!r} exists and was not made by this job; "
                "choose another name, or drop it"
            )
        if before is not None and not self._exists(conn, self.table):
            raise DatabaseError(
                f"sink.table: table {self.table.name!r} is gone, and answers that were paid for with it; "
                "bring it back, or give another database by --database"
            )
        if self.history is not None and not self.columns.had_history and self._exists(conn, self.history):
            raise DatabaseError(
                f"sink.history: table {self.history.name!r} exists and was not made by this job; "
                "choose another name for sink.table, or drop it"
            )
        if before is not None:
            for table in (self.table, self.history):
                if table is not None and self._exists(conn, table):
                    self._refuse_foreign(conn, table, before)

    def _refuse_foreign(self, conn: Connection, table: Table, before: ResultColumns) -> None:
        """Raises DatabaseError for a column that is to be added, and that somebody else has added."""
        moved = self.columns.moved(before)
        present = {name.lower(): name for name in self._present(conn, table) if name not in moved}
        for name, new in moved.items():
            if new.lower() in present:
                raise DatabaseError(
                    f"sink.table: column {name!r} of table {table.name!r} is to be renamed to {new!r}, for every "
                    f"results table has a column of that name by now, and the table has a column "
                    f"{present[new.lower()]!r} that this job has not made; rename or drop that column"
                )
        ids = dict(IDS) if self.columns.ids else {}
        for what, names, had, remedy in (
            ("source.keep", self.columns.keep, renamed(before.keep, moved), "keep it as {NAME: source_NAME}"),
            (
                "output",
                self.columns.output,
                renamed(before.output, moved),
                "write output.columns: {NAME: answer_NAME}",
            ),
            ("sink.table", ids, ids if before.ids else {}, "every results table has one by now: rename that column"),
        ):
            for name in names:
                if name not in had and name.lower() in present:
                    raise DatabaseError(
                        f"{what}: table {table.name!r} has a column {present[name.lower()]!r} that this job has not "
                        f"made; {remedy.replace('NAME', name)}, or drop that column"
                    )

    def _present(self, conn: Connection, table: Table) -> list[str]:
        return [column["name"] for column in inspect(conn).get_columns(table.name, schema=table.schema)]

    def has_column_of_ids(self, conn: Connection) -> bool:
        """Whether somebody has given one of the tables a column that is named as one of IDS."""
        tables = [table for table in (self.table, self.history) if table is not None and self._exists(conn, table)]
        return any(name.lower() in ID_NAMES for table in tables for name in self._present(conn, table))

    def _refuse_names(self, conn: Connection) -> None:
        """PostgreSQL would cut long names off, and has columns of its own in each table; SQLite has no schemas."""
        if conn.dialect.name != "postgresql":
            if self._own_schema:
                raise DatabaseError(
                    f"sink.table: {self._own_schema}.{self.table.name}: a SQLite database has no schemas; "
                    f"write {self.table.name}"
                )
            return
        tables = [("sink.table", self.table.name), ("sink.history", f"{self.table.name}_history")]
        for what, name in tables if self.history is not None else tables[:1]:
            if _too_long(name):
                raise DatabaseError(f"{what}: PostgreSQL takes names of 63 bytes, and {name!r} is longer; shorten it")
        named = {"source.key": self.columns.key, "source.keep": self.columns.keep, "output": self.columns.output}
        for what, names in named.items():
            remedy = _OTHER_NAME[what]
            for name in names:
                if _too_long(name):
                    raise DatabaseError(
                        f"{what}: PostgreSQL takes names of 63 bytes, and column {name!r} is longer; {remedy}"
                    )
                if name in _SYSTEM_COLUMNS:
                    raise DatabaseError(f"{what}: column {name!r} is one that PostgreSQL has in each table; {remedy}")

    def _exists(self, conn: Connection, table: Table) -> bool:
        return inspect(conn).has_table(table.name, schema=table.schema)

    def make(self, conn: Connection, before: ResultColumns | None) -> None:
        """Make the table, or bring it to the columns of today.

        before: its columns as this job made it; None if it never did. Raises DatabaseError as `check` does.
        """
        self.check(conn, before)
        if self._own_schema and not inspect(conn).has_schema(self._own_schema):
            conn.execute(CreateSchema(self._own_schema))
        for table in (self.table, self.history):
            if table is None:
                continue
            if self._exists(conn, table):
                self._bring_up(conn, table, before)
            elif table is self.table or self.columns.history:
                table.create(conn)

    def _bring_up(self, conn: Connection, table: Table, before: ResultColumns | None) -> None:
        preparer = conn.dialect.identifier_preparer
        moved = {} if before is None else self.columns.moved(before)
        for name, new in moved.items():
            renaming = f"RENAME COLUMN {preparer.quote(name)} TO {preparer.quote(new)}"
            conn.exec_driver_sql(f"ALTER TABLE {preparer.format_table(table)} {renaming}")
        present = set(self._present(conn, table))
        had = {} if before is None else renamed({**before.keep, **before.output}, moved)
        has = {**self.columns.keep, **self.columns.output}
        for column in table.columns:
            change = None
            if column.name not in present:
                change = f"ADD COLUMN {CreateColumn(column).compile(dialect=conn.dialect)}"
            elif conn.dialect.name == "postgresql" and had.get(column.name) != has.get(column.name):
                # a column of SQLite takes values of every kind
                name, kind = preparer.format_column(column), column.type.compile(dialect=conn.dialect)
                change = f"ALTER COLUMN {name} TYPE {kind} USING {name}::{kind}"
            if change is not None:
                conn.exec_driver_sql(f"ALTER TABLE {preparer.format_table(table)} {change}")

    def row(self, key: str, keep: str | None, outcome: Outcome, fixed: "Fixed") -> tuple[Any, ...]:
        """A row of the table, for `write`. key, keep: JSON, as the state database has them."""
        o, f = outcome, fixed
        row = (
            *self._source_values(key, keep),
            *self._output_values(o.values),
            o.text,
            o.state,
            o.error_type,
            o.error_message,
            o.stop_reason,
            o.model,
            f.recipe,
            o.input_tokens,
            o.output_tokens,
            o.cache_read_tokens,
            o.cache_write_tokens,
            f.cost_usd,
            f.attempts,
            f.custom_id,
            f.batch_id,
            f.run_id,
            f.updated_at,
            o.message_id,
            o.stop_sequence,
            o.request_id,
        )
        return row if self.columns.ids else row[: -len(IDS)]

    def _output_values(self, values: Mapping[str, Any] | None) -> list[Any]:
        if values is None:
            return [None] * len(self._outputs)
        return [
            value if (value := values.get(name)) is None or read is None else read(value)
            for name, read in self._outputs
        ]

    def said(self, conn: Connection, keys: Sequence[str]) -> dict[str, tuple[str, str]]:
        """What stands as text and error_message of these keys (JSON, at most a chunk), by key."""
        found: dict[str, tuple[str, str]] = {}
        columns = [self.table.c[name] for name in self._key]
        for start in range(0, len(keys), HISTORY_SLICE):
            some = {self.key_values(key): key for key in keys[start : start + HISTORY_SLICE]}
            among = columns[0].in_([k for (k,) in some]) if len(columns) == 1 else tuple_(*columns).in_(list(some))
            for row in conn.execute(select(*columns, self.table.c.text, self.table.c.error_message).where(among)):
                found[some[tuple(row[: len(columns)])]] = (row.text or "", row.error_message or "")
        return found

    def write_answers(self, conn: Connection, answers: Iterable[Answer]) -> None:
        """Write answers, as `write` does."""
        self.write(conn, [self.row(*answer) for answer in answers])

    def write(self, conn: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows, or replace the ones with the same key: these move to the history table if the job has one."""
        if conn.dialect.name == "postgresql":
            rows = self._for_postgres(rows)
        if self.columns.history:
            for start in range(0, len(rows), HISTORY_SLICE):
                self._move_replaced(conn, rows[start : start + HISTORY_SLICE])
        if self._upsert is None:
            self._upsert = self._upsert_on(conn)
        self._upsert.execute(conn, rows)

    def _move_replaced(self, conn: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Copy what is there under the keys of these rows to the history table. rows: as for `write`, at least one."""
        assert self.history is not None
        key = [self.table.c[name] for name in self._key]
        keys = [row[: len(key)] for row in rows]
        here = key[0].in_([value for (value,) in keys]) if len(key) == 1 else tuple_(*key).in_(keys)
        replaced_at = bindparam("at", rows[-1][self._updated_at], type_=UtcDateTime)  # when the new answers came
        names = [column.name for column in self.table.columns] + [REPLACED_AT]
        conn.execute(insert(self.history).from_select(names, select(*self.table.columns, replaced_at).where(here)))

    def _for_postgres(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The rows as PostgreSQL takes them: texts without NUL, and in one statement only the last one of each key."""
        texts = self._texts
        storable = (_without_nul(row) if any("\0" in row[i] for i in texts if row[i]) else row for row in rows)
        return list({row[: len(self._key)]: row for row in storable}.values())

    def key_values(self, key: str) -> tuple[Any, ...]:
        """What the table has in its key columns for this key. key: JSON, as the state database has it."""
        values = tuple(self._source_values(key, None)[: len(self._key)])
        return values if self.table.schema is None else _without_nul(values)  # a schema: it is on PostgreSQL

    def _source_values(self, key: str, keep: str | None) -> list[Any]:
        values: list[Any] = orjson.loads(key)
        if self._keep:
            kept = {} if keep is None else orjson.loads(keep)
            values += [kept.get(name) for name in self._keep]
        for i, read in self._readers:
            values[i] = read(values[i])
        return values

    def update_keep(self, conn: Connection, rows: Sequence[tuple[str, str | None]]) -> None:
        """Bring the columns that the job keeps today to what the source says. rows: key, kept values; both JSON."""
        if not rows or not self._kept_today:
            return
        wanted = [*range(len(self._key)), *self._kept_today]
        values = [self._source_values(key, keep) for key, keep in rows]
        changes = [tuple(of_row[i] for i in wanted) for of_row in values]
        if conn.dialect.name == "postgresql":
            changes = [_without_nul(change) for change in changes]
        self._update_keep.execute(conn, changes)


_OTHER_NAME = {
    "source.key": "rename it in the source",
    "source.keep": "keep it under another name",
    "output": "give it another name by output.columns",
}


def _insert_of(dialect: str) -> Callable[[Table], Any]:
    """SQLAlchemy's INSERT that knows ON CONFLICT; each is imported where it is used, for that takes its time."""
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert
    from sqlalchemy.dialects import postgresql

    return postgresql.insert


#: The columns of every results table whose texts others have written.
_FOREIGN = ("text", "error_type", "error_message", "stop_reason", "model", *ID_NAMES)

_SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")


def _columns(columns: ResultColumns, *, keyed: bool) -> list[Column[Any]]:
    """A table's columns. keyed: the key columns are its primary key, else several rows may have one key."""
    return [
        *[
            Column(name, KINDS[kind](), primary_key=keyed, nullable=False, autoincrement=False)
            for name, kind in columns.key.items()
        ],
        *[Column(name, KINDS[kind]()) for name, kind in columns.keep.items()],
        *[Column(name, KINDS[kind]()) for name, kind in columns.output.items()],
        *[Column(name, kind() if callable(kind) else kind) for name, kind in (FIXED + IDS if columns.ids else FIXED)],
    ]


def _too_long(name: str) -> bool:
    return len(name.encode()) > 63


def _without_nul(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in row)


def stored(columns: ResultColumns) -> dict[str, Any]:
    """Columns as JSON, for the database."""
    return asdict(columns)


def _naive(value: datetime.datetime) -> datetime.datetime:
    return value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)


def _date(value: str | None) -> datetime.date | None:
    return None if value is None else datetime.date.fromisoformat(value)


def _datetime(value: str | None) -> datetime.datetime | None:
    return None if value is None else _naive(datetime.datetime.fromisoformat(value))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str) or value is None else orjson.dumps(value).decode()


#: From a value as JSON has it to what the database driver takes, for the kinds where that is not the same.
_READERS: dict[str, Callable[[Any], Any]] = {
    "date": _date,
    "datetime": _datetime,
    "number": _number,
    "json": _as_text,
    "text": _as_text,
}
