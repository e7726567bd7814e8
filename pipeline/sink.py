"""The results table: made, checked, and written. Edge: SQL."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Date,
    DateTime,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    bindparam,
    inspect,
    text,
    update,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.schema import CreateColumn

from pipeline.errors import DatabaseError, JobError
from pipeline.job import Job
from pipeline.tables import UtcDateTime, metadata

_KINDS: dict[str, Any] = {
    "text": Text,
    "integer": BigInteger,
    "number": lambda: Float(53),
    "boolean": Boolean,
    "date": Date,
    "datetime": DateTime,
    "json": Text,
}

#: The columns that every results table has behind the source's own and the output's.
FIXED: tuple[tuple[str, Any], ...] = (
    ("text", Text),
    ("status", String),
    ("error_type", String),
    ("error_message", Text),
    ("stop_reason", String),
    ("model", String),
    ("recipe", String),
    ("input_tokens", Integer),
    ("output_tokens", Integer),
    ("cache_read_tokens", Integer),
    ("cache_write_tokens", Integer),
    ("cost_usd", lambda: Float(53)),
    ("attempts", Integer),
    ("custom_id", String),
    ("batch_id", String),
    ("run_id", BigInteger),
    ("updated_at", UtcDateTime),
)


@dataclass(frozen=True)
class Columns:
    """The columns of a results table that a job decides: name to kind (text, integer, number, ...)."""

    key: dict[str, str]
    keep: dict[str, str]
    output: dict[str, str]

    @classmethod
    def of(cls, job: Job, kinds: Mapping[str, str]) -> "Columns":
        """The columns for this job. kinds: the kind of each source column. Raises JobError when two have one name."""
        columns = cls(
            key={name: kinds[name] for name in job.source.key},
            keep={alias: kinds[name] for name, alias in job.source.keep.items()},
            output={} if job.output.labels is None else {"label": "text"},
        )
        seen: dict[str, str] = {name: "a column of every results table" for name, _ in FIXED}
        seen |= dict.fromkeys(columns.output, "the output column")
        for names, what in ((columns.key, "source.key"), (columns.keep, "source.keep")):
            for name in names:
                if name.lower() in seen:
                    remedy = f"keep it under another name: {{{name}: source_{name}}}"
                    if what == "source.key":
                        remedy = "rename the column in the source"
                    raise JobError(f"{what}: column {name!r} clashes with {seen[name.lower()]}; {remedy}")
                seen[name.lower()] = what
        return columns


class Sink:
    """One job's results table."""

    def __init__(self, name: str, columns: Columns) -> None:
        self.columns = columns
        self.table = Table(
            name,
            MetaData(),
            *[Column(key, _KINDS[kind](), primary_key=True, autoincrement=False) for key, kind in columns.key.items()],
            *[Column(keep, _KINDS[kind]()) for keep, kind in columns.keep.items()],
            *[Column(output, _KINDS[kind]()) for output, kind in columns.output.items()],
            *[Column(fixed, kind() if callable(kind) else kind) for fixed, kind in FIXED],
        )
        self._key = [(name, _reader(kind)) for name, kind in columns.key.items()]
        self._keep = [(name, _reader(kind)) for name, kind in columns.keep.items()]
        row = insert(self.table)
        replaced = {c.name: row.excluded[c.name] for c in self.table.columns if not c.primary_key}
        self._upsert = row.on_conflict_do_update(index_elements=list(columns.key), set_=replaced)

    def make(self, conn: Connection, before: Columns | None) -> None:
        """Make the table, or bring it to the columns of today.

        before: its columns as this job made it; None if it never did. Raises DatabaseError for a table that is not
        ours, is gone, or has other key columns.
        """
        name = self.table.name
        exists = inspect(conn).has_table(name)
        if name in metadata.tables or name.startswith("sqlite_"):
            raise DatabaseError(f"sink.table: {name!r} is a table of the pipeline's own; choose another name")
        if before is None and exists:
            raise DatabaseError(
                f"sink.table: table {name!r} exists and was not made by this job; choose another name, or drop it"
            )
        if before is None:
            self.table.create(conn)
            return
        if not exists:
            raise DatabaseError(
                f"sink.table: table {name!r} is gone, and answers that were paid for with it; "
                "bring it back, or give another database by --database"
            )
        if before.key != self.columns.key:
            raise DatabaseError(
                f"source.key: table {name!r} has the key {_named(before.key)}, the job now says "
                f"{_named(self.columns.key)}; give sink.table and name new ones, or go back to the old key"
            )
        present = {column["name"] for column in inspect(conn).get_columns(name)}
        for column in self.table.columns:
            if column.name not in present:
                made = CreateColumn(column).compile(dialect=conn.dialect)
                conn.execute(text(f"ALTER TABLE {conn.dialect.identifier_preparer.quote(name)} ADD COLUMN {made}"))

    def values(self, key: str, keep: str | None) -> dict[str, Any]:
        """The key and kept columns of one row, from their JSON."""
        values = {name: read(v) for (name, read), v in zip(self._key, orjson.loads(key), strict=True)}
        if keep is not None:
            kept = orjson.loads(keep)
            for name, read in self._keep:
                values[name] = read(kept.get(name))
        else:
            values.update(dict.fromkeys((name for name, _ in self._keep), None))
        return values

    def write(self, conn: Connection, rows: Sequence[dict[str, Any]]) -> None:
        """Insert rows, or replace the ones with the same key. Each has every column."""
        if rows:
            conn.execute(self._upsert, list(rows))

    def update_keep(self, conn: Connection, rows: Sequence[tuple[str, str | None]]) -> None:
        """Bring the kept columns of rows (key, kept values, both JSON) to what the source says now."""
        if not rows or not self._keep:
            return
        where = [self.table.c[name] == bindparam(f"key_{i}") for i, (name, _) in enumerate(self._key)]
        statement = update(self.table).where(*where)
        statement = statement.values({name: bindparam(f"keep_{i}") for i, (name, _) in enumerate(self._keep)})
        parameters = []
        for key, keep in rows:
            values = self.values(key, keep)
            parameters.append(
                {f"key_{i}": values[name] for i, (name, _) in enumerate(self._key)}
                | {f"keep_{i}": values[name] for i, (name, _) in enumerate(self._keep)}
            )
        conn.execute(statement, parameters)


def stored(columns: Columns) -> dict[str, Any]:
    """Columns as JSON, for the database."""
    return asdict(columns)


def _named(key: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in key.items())


def _reader(kind: str) -> Callable[[Any], Any]:
    """From a value as JSON has it to what the database driver takes."""
    if kind == "date":
        return lambda value: None if value is None else datetime.date.fromisoformat(value)
    if kind == "datetime":
        return lambda value: None if value is None else _naive(datetime.datetime.fromisoformat(value))
    if kind == "json":
        return lambda value: value if isinstance(value, str) or value is None else orjson.dumps(value).decode()
    if kind == "number":
        return lambda value: None if value is None else float(value)
    if kind == "text":
        return lambda value: value if isinstance(value, str) or value is None else str(value)
    return lambda value: value


def _naive(value: datetime.datetime) -> datetime.datetime:
    return value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)
