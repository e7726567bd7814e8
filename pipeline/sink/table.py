"""Create, check and write a job's results table and its history table. Edge: SQL."""

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from sqlalchemy import (
    Column,
    Connection,
    FromClause,
    Index,
    MetaData,
    String,
    Table,
    bindparam,
    insert,
    select,
    update,
)

from pipeline.sink.columns import FIXED, ID_NAMES, IDS, KINDS, REPLACED_AT, TRIAL, ResultColumns
from pipeline.sink.keys import among
from pipeline.state.bulk import Bulk
from pipeline.state.jobs import JobRecord
from pipeline.state.tables import UtcDateTime

if TYPE_CHECKING:
    from pipeline.answer.outcome import Outcome

HISTORY_SLICE = 500  # keys in one statement that looks for answers


class Fixed(NamedTuple):
    """What the pipeline itself knows about an answer.

    recipe: see Job.recipe. cost_usd: None if it is unknown. attempts: how often the row was sent. custom_id, batch_id:
    the API's ids; None if no request was sent. updated_at: when the answer was stored.
    """

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
    outcome: "Outcome"
    fixed: Fixed


class ResultsTable:
    """One job's results table, and its history table if the job has one.

    The trials of a job share one table, whose key begins with the name of the trial. The ResultsTable of a trial reads
    and writes only the rows of this trial: `rows` are those, and the keys that its methods take and return are the
    job's, without the name of the trial.
    """

    def __init__(
        self,
        name: str,
        columns: ResultColumns,
        kept_today: Iterable[str] | None = None,
        schema: str | None = None,
        trial: str | None = None,
    ) -> None:
        """name: table or schema.table. columns: all columns that depend on the job.

        kept_today: the kept columns that the job still names; None for all.
        schema: for a new table whose name has no schema; None on SQLite. An existing table stays in its schema.
        trial: the name of a trial; None: it is the table of a job.
        """
        self.own_schema, _, name = name.rpartition(".")  # empty if the name has no schema
        schema = self.own_schema or columns.schema or schema
        self.columns = columns = replace(columns, schema=schema)
        self.trial = trial
        self.lead = () if trial is None else (trial,)  #: the values before those of the key in each row of the table
        lead = [] if trial is None else [Column(TRIAL, String, primary_key=True, nullable=False)]
        self.table = Table(name, MetaData(), *lead, *_columns(columns, keyed=True), schema=schema)
        #: the rows of this job or trial, to be read
        self.rows: FromClause = self.table
        if trial is not None:
            self.rows = select(self.table).where(self.table.c[TRIAL] == trial).subquery(name)
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
        self._no_outputs = (None,) * len(self._outputs)
        self._has_ids = columns.ids
        self._updated_at = [column.name for column in self.table.columns].index("updated_at")
        self._upsert: Bulk | None = None
        self._today = None if kept_today is None else set(kept_today)
        today = self._keep if self._today is None else self._today
        self._kept_today = [i for i, name in enumerate(self._keep, len(self._key)) if name in today]
        self._update_keep = self._keep_update()
        foreign = {*columns.key, *columns.keep, *columns.output, *_EXTERNAL_TEXTS}
        self._texts = [i for i, c in enumerate(self.table.c) if c.name in foreign and isinstance(c.type, String)]

    @classmethod
    def of(cls, job: JobRecord) -> "ResultsTable":
        """Return the results table of a job. job: its row in the state database."""
        trial = None if job.trial is None else job.trial.name
        return cls(job.results_table, ResultColumns.from_stored(job.columns), trial=trial)

    def with_columns(self, columns: ResultColumns) -> "ResultsTable":
        """Return this table with other columns; itself if the columns are the same."""
        if columns == self.columns:
            return self
        name = f"{self.own_schema}.{self.table.name}" if self.own_schema else self.table.name
        return ResultsTable(name, columns, self._today, self.table.schema, self.trial)

    def _upsert_on(self, conn: Connection) -> Bulk:
        row = insert_of(conn.dialect.name)(self.table)
        replaced = {c.name: row.excluded[c.name] for c in self.table.columns if not c.primary_key}
        upsert = row.on_conflict_do_update(index_elements=list(self.table.primary_key.columns), set_=replaced)
        return Bulk(upsert, [column.name for column in self.table.columns])

    def _keep_update(self) -> Bulk:
        keys = [column.name for column in self.table.primary_key.columns]
        keeps = [self._keep[i - len(self._key)] for i in self._kept_today]
        where = [self.table.c[name] == bindparam(f"key{i}") for i, name in enumerate(keys)]
        values: dict[str, Any] = {name: bindparam(f"keep{i}") for i, name in enumerate(keeps)}
        named = [f"key{i}" for i in range(len(keys))] + [f"keep{i}" for i in range(len(keeps))]
        return Bulk(update(self.table).where(*where).values(values), named)

    def row(self, key: str, keep: str | None, outcome: "Outcome", fixed: "Fixed") -> tuple[Any, ...]:
        """Return a row of the table, for `write`. key, keep: JSON, as in the state database; keep may be None."""
        o, f = outcome, fixed
        always = (
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
        return self.row_of(key, keep, o.values, always)

    def row_of(
        self, key: str, keep: str | None, values: Mapping[str, Any] | None, always: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """Return the same as `row`. values: of the output columns; always: of the columns FIXED and IDS."""
        outputs = self._no_outputs if values is None else self._output_values(values)
        return (
            *self.lead,
            *self.source_values(key, keep),
            *outputs,
            *(always if self._has_ids else always[: -len(IDS)]),
        )

    def _output_values(self, values: Mapping[str, Any]) -> Sequence[Any]:
        return [
            value if (value := values.get(name)) is None or read is None else read(value)
            for name, read in self._outputs
        ]

    def answers(self, conn: Connection, keys: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return text and error_message of the answers with these keys, by key; empty texts for nulls.

        keys: as JSON. A key without an answer is missing from the result.
        """
        found: dict[str, tuple[str, str]] = {}
        columns = [self.rows.c[name] for name in self._key]
        for start in range(0, len(keys), HISTORY_SLICE):
            some = {self.key_values(key): key for key in keys[start : start + HISTORY_SLICE]}
            here = among(columns, some)
            for row in conn.execute(select(*columns, self.rows.c.text, self.rows.c.error_message).where(here)):
                found[some[tuple(row[: len(columns)])]] = (row.text or "", row.error_message or "")
        return found

    def write_answers(self, conn: Connection, answers: Iterable[Answer]) -> None:
        """Write answers, as `write` does."""
        self.write(conn, [self.row(*answer) for answer in answers])

    def write(self, conn: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows, or replace those with the same key, which move to the history table if the job has one."""
        if conn.dialect.name == "postgresql":
            rows = self._for_postgres(rows)
        if self.columns.history:
            for start in range(0, len(rows), HISTORY_SLICE):
                self._move_replaced(conn, rows[start : start + HISTORY_SLICE])
        if self._upsert is None:
            self._upsert = self._upsert_on(conn)
        self._upsert.execute(conn, rows)

    def _move_replaced(self, conn: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Copy the stored answers with the keys of these rows to the history table. rows: for `write`; at least one."""
        assert self.history is not None
        key = [self.table.c[name] for name in self._key]
        keys = [row[: len(key)] for row in rows]
        here = among(key, keys)
        replaced_at = bindparam("at", rows[-1][self._updated_at], type_=UtcDateTime)  # the date of the new answers
        names = [column.name for column in self.table.columns] + [REPLACED_AT]
        conn.execute(insert(self.history).from_select(names, select(*self.table.columns, replaced_at).where(here)))

    def _for_postgres(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Return the rows that PostgreSQL accepts in one statement: texts without NUL, and the last row of each key."""
        texts = self._texts
        storable = (_without_nul(row) if any("\0" in row[i] for i in texts if row[i]) else row for row in rows)
        return list({row[: len(self.lead) + len(self._key)]: row for row in storable}.values())

    def key_values(self, key: str) -> tuple[Any, ...]:
        """Return the values of the table's key columns for a key. key: JSON, as in the state database."""
        values = tuple(self.source_values(key, None)[: len(self._key)])
        return values if self.table.schema is None else _without_nul(values)  # only PostgreSQL has a schema

    def source_values(self, key: str, keep: str | None) -> list[Any]:
        """Return the values of the key columns and of the kept columns, as the database driver takes them.

        key, keep: JSON; keep may be None.
        """
        values: list[Any] = orjson.loads(key)
        if self._keep:
            kept = {} if keep is None else orjson.loads(keep)
            values += [kept.get(name) for name in self._keep]
        for i, read in self._readers:
            values[i] = read(values[i])
        return values

    def update_keep(self, conn: Connection, rows: Sequence[tuple[str, str | None]]) -> None:
        """Update the kept columns of stored answers to the source's current values.

        rows: key and kept values, both JSON. Columns that the job no longer keeps stay unchanged.
        """
        if not rows or not self._kept_today:
            return
        wanted = [*range(len(self._key)), *self._kept_today]
        values = [self.source_values(key, keep) for key, keep in rows]
        changes = [(*self.lead, *(of_row[i] for i in wanted)) for of_row in values]
        if conn.dialect.name == "postgresql":
            changes = [_without_nul(change) for change in changes]
        self._update_keep.execute(conn, changes)


def insert_of(dialect: str) -> Callable[[Table], Any]:
    """Return SQLAlchemy's INSERT with ON CONFLICT for a dialect; imported only when used, because imports are slow."""
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert
    from sqlalchemy.dialects import postgresql

    return postgresql.insert


#: Columns whose texts come from the API, so that they may contain NUL.
_EXTERNAL_TEXTS = ("text", "error_type", "error_message", "stop_reason", "model", *ID_NAMES)


def _columns(columns: ResultColumns, *, keyed: bool) -> list[Column[Any]]:
    """Return the SQL columns of a table. keyed: whether the key is its primary key, so that each key has one row."""
    return [
        *[
            Column(name, KINDS[kind](), primary_key=keyed, nullable=False, autoincrement=False)
            for name, kind in columns.key.items()
        ],
        *[Column(name, KINDS[kind]()) for name, kind in columns.keep.items()],
        *[Column(name, KINDS[kind]()) for name, kind in columns.output.items()],
        *[Column(name, kind() if callable(kind) else kind) for name, kind in (FIXED + IDS if columns.ids else FIXED)],
    ]


def _without_nul(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the row with U+FFFD in place of each NUL, which PostgreSQL's texts cannot contain."""
    return tuple(value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in row)


def columns_as_json(columns: ResultColumns) -> dict[str, Any]:
    """Return the columns as JSON values, for the state database; ResultColumns(**...) reads them."""
    return asdict(columns)


def _naive(value: datetime.datetime) -> datetime.datetime:
    """Return a time in UTC without time zone; a time that has none is unchanged."""
    return value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)


def _date(value: str | None) -> datetime.date | None:
    return None if value is None else datetime.date.fromisoformat(value)


def _datetime(value: str | None) -> datetime.datetime | None:
    return None if value is None else _naive(datetime.datetime.fromisoformat(value))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str) or value is None else orjson.dumps(value).decode()


#: By kind, how a JSON value is converted for the database driver; other kinds need no conversion.
_READERS: dict[str, Callable[[Any], Any]] = {
    "date": _date,
    "datetime": _datetime,
    "number": _number,
    "json": _as_text,
    "text": _as_text,
}
