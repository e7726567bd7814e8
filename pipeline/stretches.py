"""Rows of the state database in bulk, and source files that are known by their bytes. Edge: SQL, files.

A stretch is rows in the order of their numbers, each column as one text, so that a row costs a hundredth of what an
object of it does. Planning notes which stretches the rows of a source file are, with a digest of what their keys,
hashes and kept values came to. When the file's bytes are the same again, and the rows still come to these digests, they
are what the file says, and nobody has to read it. So a note never says what the rows are today: a row that was planned
anew, or removed, gives another digest, and the file is read.
"""

import functools
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import orjson
import polars as pl
from sqlalchemy import (
    ColumnElement,
    Connection,
    LargeBinary,
    Subquery,
    and_,
    case,
    cast,
    delete,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by

from pipeline.columnar import consecutive
from pipeline.files import Stamp, stamp
from pipeline.formats import FileInput
from pipeline.job import Source
from pipeline.objects import Object
from pipeline.rows import Input
from pipeline.tables import requests, stretches

MOST_ROWS = 20_000  # of a stretch: read in one transaction
SPREAD = 4  # numbers that a stretch may take for each of its rows, where other rows stand between
FEWEST_ROWS = 200  # of a file's stretches, in the mean: for shorter ones it is not worth it
RECENT_SECONDS = 10  # more than the times of any file system are apart
VERSION = 2  # of what a digest is made of, of files
TEXT_VERSION = 1  # of CSV files
READERS = 2  # threads that look at a file, or at stretches, at the same time
_READ_BYTES = 1 << 20
_BLOCK_BYTES = 16 << 20  # of a file, which a thread takes

SETTLED, OLDER, UNSETTLED = b"1", b"2", b"0"  # succeeded as it is; so with another recipe; all else


T = TypeVar("T")
U = TypeVar("U")


class Stretch(NamedTuple):
    """Rows of a job in the order of their numbers, each column as one text; all of it empty without any row."""

    rows: int
    first: int
    last: int
    keys: bytes  #: with a line end between two
    hashes: bytes  #: row_hashes, 16 bytes each
    keeps: bytes  #: with a line end between two, nothing for NULL
    states: bytes  #: SETTLED, OLDER or UNSETTLED each

    @property
    def digest(self) -> bytes:
        """What `Notes` has of the same rows."""
        columns = _Columns()
        columns.add(self.keys, self.hashes, self.keeps)
        return columns.digest()


NOWHERE = Stretch(0, 0, 0, b"", b"", b"", b"")


def stretch(conn: Connection, job_id: int, first: int, last: int, limit: int, *, recipe: str) -> Stretch:
    """The first `limit` rows of the job with numbers from `first` to `last`. recipe: today's."""
    settled = and_(
        requests.c.state == literal_column("'succeeded'"),
        requests.c.outcome == literal_column("'succeeded'"),
        requests.c.outcome_hash == requests.c.row_hash,
        requests.c.changed_hash.is_(None),
    )
    today = and_(settled, requests.c.outcome_recipe == recipe)
    found = (
        select(
            requests.c.id,
            requests.c.key,
            requests.c.row_hash,
            func.coalesce(requests.c.keep, literal_column("''")).label("keep"),
            case((today, _literal(SETTLED)), (settled, _literal(OLDER)), else_=_literal(UNSETTLED)).label("state"),
        )
        # "+ 0": by an index on job_id SQLite would collect all rows of the job and sort them
        .where(requests.c.job_id + literal_column("0") == job_id, requests.c.id.between(first, last))
        .order_by(requests.c.id)
        .limit(limit)
        .subquery()
    )
    joined = _joined_of_sqlite if conn.dialect.name == "sqlite" else _joined_of_postgres
    wanted = [joined(found, name, "\n" if name in ("key", "keep") else "") for name in _JOINED]
    query = select(func.count(), func.min(found.c.id), func.max(found.c.id), *wanted).select_from(found)
    rows, lowest, highest, *columns = conn.execute(query).one()
    return Stretch(rows, lowest, highest, *map(bytes, columns)) if rows else NOWHERE


def _literal(mark: bytes) -> ColumnElement[str]:
    return literal_column(f"'{mark.decode()}'")


_JOINED = ("key", "row_hash", "keep", "state")


def _joined_of_sqlite(rows: Subquery, name: str, between: str) -> ColumnElement[bytes]:
    # as BLOB, or the driver would make a str of it
    return cast(func.group_concat(rows.c[name], literal_column(f"'{between}'")), LargeBinary)


def _joined_of_postgres(rows: Subquery, name: str, between: str) -> ColumnElement[bytes]:
    column: ColumnElement[Any] = rows.c[name]
    if name != "row_hash":
        column = func.convert_to(column, "UTF8")
    separator = func.convert_to(literal_column(f"'{between}'"), "UTF8")
    return func.string_agg(column, aggregate_order_by(separator, rows.c.id), type_=LargeBinary())


def beginning_with(conn: Connection, job_id: int, key: str, rows: int, *, recipe: str) -> Stretch:
    """So many rows of the job from the one with this key on; fewer where others stand between too many of them."""
    query = select(requests.c.id).where(requests.c.job_id == job_id, requests.c.key == key)
    first = conn.scalar(query)
    if first is None:
        return NOWHERE
    return stretch(conn, job_id, first, first + SPREAD * rows, rows, recipe=recipe)


# -- what a file was -------------------------------------------------------------------------------------------------


def version_of(one: Input) -> Stamp | Object | None:
    """By what a file is taken for unaltered while it is read; None for what is no file, and what is gone."""
    if not isinstance(one, FileInput):
        return None
    return one.file.found if isinstance(one.file.found, Object) else stamp(one.path)


def is_recent(version: Stamp | Object) -> bool:
    """Whether the file was written to so lately that the next writing might bear the same time."""
    if isinstance(version, Object):
        return False  # the next writing gives it another ETag
    return time.time_ns() - version.mtime_ns < RECENT_SECONDS * 1_000_000_000


def source_of(one: Input, source: Source, columns: Sequence[str]) -> bytes | None:
    """32 bytes that stand for the rows a file holds: its bytes, and all that decides how they are read.

    Of an object its size and ETag stand for its bytes. columns: of whose values row_hashes are made. None when it
    cannot be read, and for what is no file.
    """
    if not isinstance(one, FileInput):
        return None
    file = one.file
    settings = source.model_dump(mode="json", exclude={"path"})
    # now() in a `where` is the time at which it was parsed
    where = None if source.where is None else str(pl.sql_expr(source.where))
    version = TEXT_VERSION if file.format == "csv" else VERSION
    said = [version, settings, where, list(columns), file.path, file.format, file.compression, file.delimiter]
    found = hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS, default=str))
    if isinstance(file.found, Object):
        found.update(orjson.dumps([file.found.size, file.found.etag]))
        return found.digest()
    try:
        with ThreadPoolExecutor(READERS) as readers:
            starts = range(0, os.stat(file.path).st_size, _BLOCK_BYTES)
            for block in in_order(readers, functools.partial(_block, file.path), starts):
                found.update(block)
    except OSError:
        return None
    return found.digest()


def _block(path: str, start: int) -> bytes:
    """The digest of a part of a file; hashing leaves Python to other threads."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        for _ in range(_BLOCK_BYTES // _READ_BYTES):
            found.update(file.read(_READ_BYTES))
    return found.digest()


def in_order(pool: ThreadPoolExecutor, work: Callable[[T], U], things: Iterable[T]) -> Iterator[U]:
    """The same as `pool.map`, but only a few results ahead: each may be large."""
    coming: deque[Future[U]] = deque()
    for thing in things:
        coming.append(pool.submit(work, thing))
        if len(coming) > READERS:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


class Note(NamedTuple):
    """One stretch of a file as it was planned. digest: of its rows' keys, hashes and kept values."""

    first: int
    last: int
    rows: int
    digest: bytes


class _Columns:
    """A digest of rows that come in pieces, column by column."""

    def __init__(self) -> None:
        self._of_each = [hashlib.sha256() for _ in range(3)]

    def add(self, keys: bytes, hashes: bytes, keeps: bytes) -> None:
        """Some rows; the keys and kept values with a line end between two."""
        for column, data in zip(self._of_each, (keys + b"\n", hashes, keeps + b"\n"), strict=True):
            column.update(data)

    def digest(self) -> bytes:
        return hashlib.sha256(b"".join(column.digest() for column in self._of_each)).digest()


class Notes:
    """Takes note of the rows of one file, in their order, as they are planned."""

    def __init__(self) -> None:
        self._closed: list[Note] = []
        self._columns = _Columns()
        self._first = self._last = self._rows = 0
        self._all = 0

    def add(
        self, ids: Sequence[int], keys: Sequence[str], hashes: Sequence[bytes], keeps: Sequence[str | None]
    ) -> None:
        """Rows with their numbers in the database."""
        self._all += len(ids)
        for start, end in consecutive(ids):
            if not self._rows or ids[start] != self._last + 1 or self._rows + end - start > MOST_ROWS:
                self._close()
                self._first = ids[start]
            self._columns.add(lines(keys[start:end]), b"".join(hashes[start:end]), lines(keeps[start:end]))
            self._last, self._rows = ids[end - 1], self._rows + end - start

    def finish(self) -> list[Note] | None:
        """The notes; None when the rows stand in too many places."""
        self._close()
        if len(self._closed) > 1 + self._all // FEWEST_ROWS:
            return None
        return self._closed

    def _close(self) -> None:
        if self._rows:
            self._closed.append(Note(self._first, self._last, self._rows, self._columns.digest()))
        self._columns, self._rows = _Columns(), 0


def lines(texts: Sequence[str | None]) -> bytes:
    """Texts without line ends in them, as `Stretch` has them."""
    return "\n".join([text or "" for text in texts]).encode()


def notes_of(conn: Connection, job_id: int, source: bytes) -> list[Note]:
    """The stretches of a source in their order; none when it was not planned as it is, or not to its end."""
    here = (stretches.c.job_id == job_id, stretches.c.source == source)
    columns = [stretches.c[name] for name in Note._fields]
    return [Note(*row) for row in conn.execute(select(*columns).where(*here).order_by(stretches.c.n))]


def put_notes(conn: Connection, job_id: int, source: bytes, notes: Sequence[Note]) -> None:
    """Note the stretches of a source. Those of others over the same rows go: these were planned since."""
    outdated = {source}
    for first, last in _ranges(notes):
        touching = (stretches.c.job_id == job_id, stretches.c.first <= last, stretches.c.last >= first)
        outdated |= set(conn.scalars(select(stretches.c.source).where(*touching)))
    for each in outdated:
        conn.execute(delete(stretches).where(stretches.c.job_id == job_id, stretches.c.source == each))
    rows = [{"job_id": job_id, "source": source, "n": n, **note._asdict()} for n, note in enumerate(notes)]
    if rows:
        conn.execute(insert(stretches), rows)


def _ranges(notes: Sequence[Note]) -> list[tuple[int, int]]:
    """The numbers that they are about, from first to last, neighbours as one."""
    ranges: list[tuple[int, int]] = []
    for note in sorted(notes):
        if ranges and note.first == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], note.last)
        else:
            ranges.append((note.first, note.last))
    return ranges
