"""Read the answers that `compare` compares: those of a job's table, or of a Parquet file. Edge: SQL, files.

The answers of a Parquet file are copied to a temporary SQLite file first, so that they can be read by key in little
memory, however many there are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Float,
    FromClause,
    MetaData,
    Select,
    String,
    Table,
    and_,
    create_engine,
    func,
    literal,
    select,
    tuple_,
)

from pipeline.errors import InputError
from pipeline.job.json_values import dump
from pipeline.sink.columns import KINDS, ResultColumns
from pipeline.sink.keys import after, among
from pipeline.sink.matching import AT_ONCE
from pipeline.sink.plain_rows import plain_rows
from pipeline.sink.table import ResultsTable
from pipeline.state.bulk import Bulk
from pipeline.state.database import Database
from pipeline.storage import tempdir

PAGE = 5_000  # answers that one transaction reads

Key = tuple[Any, ...]
Read = Callable[[], AbstractContextManager[Connection]]


class SideAnswer(NamedTuple):
    """An answer of a side. request: its id; cost_usd: None if it is unknown; values: of the compared columns."""

    status: str
    request: str | None
    cost_usd: float | None
    input_tokens: int
    output_tokens: int
    values: tuple[Any, ...]


class Side:
    """The answers of one side. name: as the command line gives it. has: the compared columns that it has."""

    def __init__(
        self, name: str, read: Read, table: FromClause, key: Sequence[str], columns: Sequence[str], order: str
    ) -> None:
        """order: equal for sides whose database orders keys in the same way."""
        self.name, self._read, self._table, self.order = name, read, table, order
        self.has = [column for column in columns if column in table.c]
        self._key = [table.c[column] for column in key]
        ids = [table.c[column] for column in ("message_id", "custom_id") if column in table.c]
        self._request = func.coalesce(*ids) if len(ids) > 1 else ids[0]
        tokens = [func.coalesce(table.c[name], 0) for name in ("input_tokens", "output_tokens")]
        facts = [table.c.status, self._request, table.c.cost_usd, *tokens]
        self._query = select(*self._key, *facts, *[table.c[column] for column in self.has])

    def pages(self) -> Iterator[dict[Key, SideAnswer]]:
        """Yield all answers by key, in pages in the order of the keys."""
        query = page = self._query.order_by(*self._key).limit(PAGE)
        while True:
            found = self._answers(page)
            if found:
                yield found
            if len(found) < PAGE:
                return
            page = query.where(after(self._key, next(reversed(found))))

    def lookup(self, keys: Sequence[Key], order: str) -> dict[Key, SideAnswer]:
        """Return the answers with these keys, and perhaps others. keys: in this order; see `order`."""
        return lookup(self._key, keys, lambda clause: self._answers(clause(self._query)), ordered=order == self.order)

    def totals(self) -> tuple[int, float | None]:
        """Return how many answers the side has, and what they cost in US dollars; None if that is not known."""
        cost = self._table.c.cost_usd
        with self._read() as conn:
            rows, priced, total = conn.execute(select(func.count(), func.count(cost), func.sum(cost))).one()
        return int(rows), float(total) if priced and total is not None else None

    def shared_requests(self) -> frozenset[str]:
        """Return the ids of requests that answered several rows: all of these rows but the first have no tokens."""
        free = and_(self._table.c.input_tokens == 0, self._table.c.output_tokens == 0)
        with self._read() as conn:
            return frozenset(each for each in conn.scalars(select(self._request).where(free).distinct()) if each)

    def _answers(self, query: Select[Any]) -> dict[Key, SideAnswer]:
        width = len(self._key)
        with self._read() as conn:
            rows = plain_rows(conn, query)
        facts = width + 5
        return {row[:width]: SideAnswer._make((*row[width:facts], row[facts:])) for row in rows}


Clause = Callable[[Select[Any]], Select[Any]]
Found = TypeVar("Found")


def lookup(
    columns: Sequence[ColumnElement[Any]],
    keys: Sequence[Key],
    read: Callable[[Clause], dict[Key, Found]],
    *,
    ordered: bool,
) -> dict[Key, Found]:
    """Return what is found for these keys, and perhaps for others between them.

    columns: of the key. read: executes a query to which a clause was added. ordered: whether the database orders keys
    as they stand in `keys`. Then it is asked for the range from the first to the last, which takes a fraction of the
    time, unless there is much more in it.
    """
    if ordered and keys:
        first, last = (
            [literal(value, c.type) for value, c in zip(key, columns, strict=True)] for key in (keys[0], keys[-1])
        )
        most = 2 * len(keys)
        found = read(lambda query: query.where(_range(columns, first, last)).limit(most))
        if len(found) < most:
            return found
    found = {}
    for start in range(0, len(keys), AT_ONCE):
        here = among(columns, keys[start : start + AT_ONCE])
        found |= read(lambda query, here=here: query.where(here))  # type: ignore[misc]
    return found


def _range(columns: Sequence[ColumnElement[Any]], first: Sequence[Any], last: Sequence[Any]) -> ColumnElement[bool]:
    if len(columns) == 1:
        return columns[0].between(first[0], last[0])
    return and_(tuple_(*columns) >= tuple_(*first), tuple_(*columns) <= tuple_(*last))


def order_of(database: Database) -> str:
    """Return the order in which a database has its keys: that of each SQLite file is the same."""
    return "sqlite" if database.is_sqlite else database.shown


def table_side(name: str, database: Database, sink: ResultsTable, columns: Sequence[str]) -> Side:
    """Return the answers of a job as a side. columns: those that are compared."""
    return Side(name, database.read, sink.rows, list(sink.columns.key), columns, order_of(database))


def parquet_side(path: str, of: ResultColumns, columns: Sequence[str]) -> Side:
    """Return the answers in a Parquet file as a side. of: the columns of the job that it is compared with.

    Raises InputError if it cannot be read, or has no key.
    """
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as exc:
        raise InputError(f"{path} cannot be read as a Parquet file: {exc}") from exc
    names = set(file.schema_arrow.names)
    missing = [name for name in of.key if name not in names]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}, which is part of the job's key")
    kinds = {**{name: of.output[name] for name in columns if name in of.output}, "text": "text"}
    wanted = [name for name in columns if name in names]
    table = Table(
        "answers",
        MetaData(),
        *[Column(name, KINDS[kind](), primary_key=True) for name, kind in of.key.items()],
        Column("status", String),
        Column("message_id", String),
        Column("cost_usd", Float(53)),
        Column("input_tokens", BigInteger),
        Column("output_tokens", BigInteger),
        *[Column(name, KINDS[kinds[name]]()) for name in wanted],
    )
    engine = create_engine(f"sqlite:///{tempdir.folder()}/{Path(path).stem}-{abs(hash(path))}.db")
    table.drop(engine, checkfirst=True)
    table.create(engine)
    insert = Bulk(table.insert(), [column.name for column in table.columns])
    read = [column.name for column in table.columns if column.name in names]
    for batch in file.iter_batches(PAGE, columns=read):
        given = dict(zip(batch.schema.names, (column.to_pylist() for column in batch.columns), strict=True))
        nothing = [None] * batch.num_rows
        values = [_texts(given.get(column.name, nothing)) for column in table.columns]
        if "status" not in given:
            values[len(of.key)] = ["succeeded"] * batch.num_rows
        with engine.begin() as conn:  # of a file that ends with this process
            conn.exec_driver_sql("PRAGMA synchronous=OFF")
            insert.execute(conn, list(zip(*values, strict=True)))
    return Side(path, engine.connect, table, list(of.key), columns, "sqlite")


def _texts(values: list[Any]) -> list[Any]:
    """Return the values with lists and objects as JSON text, as a results table holds them."""
    return [dump(value) if isinstance(value, list | dict) else value for value in values]
