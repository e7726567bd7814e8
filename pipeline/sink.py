"""The results table: made, checked, and written. Edge: SQL."""

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import orjson
from sqlalchemy import (
    BigInteger,
    BindParameter,
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

from pipeline.bulk import Bulk
from pipeline.errors import DatabaseError, JobError
from pipeline.job import Job
from pipeline.results import Outcome
from pipeline.tables import UtcDateTime

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
        rename = {alias: f"keep it under another name: {{{c}: source_{c}}}" for c, alias in job.source.keep.items()}
        for names, what in ((columns.key, "source.key"), (columns.keep, "source.keep")):
            for name in names:
                if name.lower() in seen:
                    remedy = rename[name] if what == "source.keep" else "rename the column in the source"
                    raise JobError(f"{what}: column {name!r} clashes with {seen[name.lower()]}; {remedy}")
                seen[name.lower()] = what
        return columns


class Fixed(NamedTuple):
    """What the pipeline knows of an answer, beside what the API says."""

    recipe: str
    cost_usd: float | None
    attempts: int
    custom_id: str | None
    batch_id: str | None
    run_id: int
    updated_at: datetime.datetime


class Sink:
    """One job's results table."""

    def __init__(self, name: str, columns: Columns, kept_today: Iterable[str] | None = None) -> None:
        """columns: all that the table has; kept_today: those of its kept columns that the job still names."""
        self.columns = columns
        self._kept_today = list(columns.keep if kept_today is None else kept_today)
        self.table = Table(
            name,
            MetaData(),
            *[Column(key, _KINDS[kind](), primary_key=True, autoincrement=False) for key, kind in columns.key.items()],
            *[Column(keep, _KINDS[kind]()) for keep, kind in columns.keep.items()],
            *[Column(output, _KINDS[kind]()) for output, kind in columns.output.items()],
            *[Column(fixed, kind() if callable(kind) else kind) for fixed, kind in FIXED],
        )
        self._key, self._keep = list(columns.key), list(columns.keep)
        kinds = [*columns.key.values(), *columns.keep.values()]
        self._readers = [(i, _READERS[kind]) for i, kind in enumerate(kinds) if kind in _READERS]
        self._outputs = list(columns.output)
        row = insert(self.table)
        replaced = {c.name: row.excluded[c.name] for c in self.table.columns if not c.primary_key}
        upsert = row.on_conflict_do_update(index_elements=list(columns.key), set_=replaced)
        self._upsert = Bulk(upsert, [column.name for column in self.table.columns])

    def check(self, conn: Connection, before: Columns | None) -> None:
        """Raises DatabaseError for a table that is not ours, or is gone. before: as for `make`."""
        name = self.table.name
        exists = inspect(conn).has_table(name)
        if before is None and exists:
            raise DatabaseError(
                f"sink.table: table {name!r} exists and was not made by this job; choose another name, or drop it"
            )
        if before is not None and not exists:
            raise DatabaseError(
                f"sink.table: table {name!r} is gone, and answers that were paid for with it; "
                "bring it back, or give another database by --database"
            )

    def make(self, conn: Connection, before: Columns | None) -> None:
        """Make the table, or bring it to the columns of today.

        before: its columns as this job made it; None if it never did. Raises DatabaseError as `check` does.
        """
        self.check(conn, before)
        if before is None:
            self.table.create(conn)
            return
        name = self.table.name
        present = {column["name"] for column in inspect(conn).get_columns(name)}
        for column in self.table.columns:
            if column.name not in present:
                made = CreateColumn(column).compile(dialect=conn.dialect)
                conn.execute(text(f"ALTER TABLE {conn.dialect.identifier_preparer.quote(name)} ADD COLUMN {made}"))

    def row(self, key: str, keep: str | None, outcome: Outcome, fixed: "Fixed") -> tuple[Any, ...]:
        """A row of the table, for `write`. key, keep: JSON, as the state database has them."""
        o, f = outcome, fixed
        return (
            *self._source_values(key, keep),
            *[o.label if name == "label" else None for name in self._outputs],
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
        )

    def write(self, conn: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows, or replace the ones with the same key."""
        self._upsert.execute(conn, rows)

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
        where = [self.table.c[name] == bindparam(f"key_{i}") for i, name in enumerate(self._key)]
        today: dict[str, BindParameter[Any]] = {
            name: bindparam(f"keep_{i}") for i, name in enumerate(self._keep) if name in self._kept_today
        }
        names = [f"key_{i}" for i in range(len(self._key))] + [f"keep_{i}" for i in range(len(self._keep))]
        wanted = {parameter for parameter in names if parameter.startswith("key_")} | {p.key for p in today.values()}
        conn.execute(
            update(self.table).where(*where).values(today),
            [
                {
                    name: value
                    for name, value in zip(names, self._source_values(key, keep), strict=True)
                    if name in wanted
                }
                for key, keep in rows
            ],
        )


def stored(columns: Columns) -> dict[str, Any]:
    """Columns as JSON, for the database."""
    return asdict(columns)


def named(key: Mapping[str, str]) -> str:
    """Key columns with their kinds, for a message."""
    return ", ".join(f"{name} ({kind})" for name, kind in key.items())


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
