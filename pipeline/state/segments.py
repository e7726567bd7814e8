"""Segments: many rows of the state database at once, and the digests by which unchanged files are known. Edge: SQL.

A segment is a range of rows in the order of their numbers, with each column as one text, so that a row takes a
hundredth of the time of an object. Planning stores which segments the rows of a source file form, with a digest of
their keys, hashes and kept values. If the file's bytes are unchanged and the rows still have these digests, the rows
agree with the file, so the file need not be read. A stored digest never says what the rows are today: a row that was
planned again or removed gives another digest, and the file is read.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

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

from pipeline.source.columnar import consecutive
from pipeline.state.tables import requests, stretches

MOST_ROWS = 20_000  # of a segment, which is read in one transaction
SPREAD = 4  # the largest range of numbers of a segment per row, because rows of other files may lie between
FEWEST_ROWS = 200  # the smallest mean size of a file's segments; reading the file is quicker than smaller ones

#: succeeded with this row and recipe; succeeded with this row and another recipe; everything else
SETTLED, OLDER, UNSETTLED = b"1", b"2", b"0"


class Segment(NamedTuple):
    """Rows of a job in the order of their numbers, with each column as one text. Without rows all is empty or 0."""

    rows: int
    first: int
    last: int
    keys: bytes  #: separated by newlines
    hashes: bytes  #: row_hashes, 16 bytes each
    keeps: bytes  #: kept values, separated by newlines; NULL is empty
    states: bytes  #: SETTLED, OLDER or UNSETTLED, one byte each

    @property
    def digest(self) -> bytes:
        """Return the digest of keys, hashes and kept values, equal to that of `Notes` for the same rows."""
        columns = _Columns()
        columns.add(self.keys, self.hashes, self.keeps)
        return columns.digest()

    @property
    def is_dense(self) -> bool:
        """Whether its rows have all numbers from the first to the last."""
        return self.last - self.first + 1 == self.rows

    def is_of(self, keys: Sequence[str], hashes: Sequence[bytes], keeps: Sequence[str | None]) -> bool:
        """Return whether it is of just these rows, with these row_hashes and kept values, in this order."""
        return self.keys == lines(keys) and self.keeps == lines(keeps) and self.hashes == b"".join(hashes)


NOWHERE = Segment(0, 0, 0, b"", b"", b"", b"")


def segment_from(conn: Connection, job_id: int, first: int, last: int, limit: int, *, recipe: str) -> Segment:
    """Return the first `limit` rows of the job with numbers from `first` to `last`. recipe: the current one."""
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
        # "+ 0" keeps SQLite from using an index on job_id, for which it would fetch and sort all rows of the job
        .where(requests.c.job_id + literal_column("0") == job_id, requests.c.id.between(first, last))
        .order_by(requests.c.id)
        .limit(limit)
        .subquery()
    )
    joined = _joined_of_sqlite if conn.dialect.name == "sqlite" else _joined_of_postgres
    wanted = [joined(found, name, "\n" if name in ("key", "keep") else "") for name in _JOINED]
    query = select(func.count(), func.min(found.c.id), func.max(found.c.id), *wanted).select_from(found)
    rows, lowest, highest, *columns = conn.execute(query).one()
    return Segment(rows, lowest, highest, *map(bytes, columns)) if rows else NOWHERE


def _literal(mark: bytes) -> ColumnElement[str]:
    return literal_column(f"'{mark.decode()}'")


_JOINED = ("key", "row_hash", "keep", "state")


def _joined_of_sqlite(rows: Subquery, name: str, between: str) -> ColumnElement[bytes]:
    # as BLOB, because the driver would decode a text
    return cast(func.group_concat(rows.c[name], literal_column(f"'{between}'")), LargeBinary)


def _joined_of_postgres(rows: Subquery, name: str, between: str) -> ColumnElement[bytes]:
    column: ColumnElement[Any] = rows.c[name]
    if name != "row_hash":
        column = func.convert_to(column, "UTF8")
    separator = func.convert_to(literal_column(f"'{between}'"), "UTF8")
    return func.string_agg(column, aggregate_order_by(separator, rows.c.id), type_=LargeBinary())


def beginning_with(conn: Connection, job_id: int, key: str, rows: int, *, recipe: str) -> Segment:
    """Return so many rows of the job, starting at the one with this key; fewer if too many other rows lie between."""
    query = select(requests.c.id).where(requests.c.job_id == job_id, requests.c.key == key)
    first = conn.scalar(query)
    if first is None:
        return NOWHERE
    return segment_from(conn, job_id, first, first + SPREAD * rows, rows, recipe=recipe)


class SegmentDigest(NamedTuple):
    """One segment of a file as it was planned. digest: of its rows' keys, hashes and kept values."""

    first: int
    last: int
    rows: int
    digest: bytes


class _Columns:
    """The digest of rows that are added in pieces, column by column."""

    def __init__(self) -> None:
        self._of_each = [hashlib.sha256() for _ in range(3)]

    def add(self, keys: bytes, hashes: bytes, keeps: bytes) -> None:
        """Add rows. keys, keeps: separated by newlines."""
        for column, data in zip(self._of_each, (keys + b"\n", hashes, keeps + b"\n"), strict=True):
            column.update(data)

    def digest(self) -> bytes:
        return hashlib.sha256(b"".join(column.digest() for column in self._of_each)).digest()


class Notes:
    """Build the segment digests of one file from its rows, in their order, while they are planned."""

    def __init__(self) -> None:
        self._closed: list[SegmentDigest] = []
        self._columns: _Columns | None = None  # None: between two segments, so that finished notes can be pickled
        self._first = self._last = self._rows = 0
        self._all = 0

    def add(
        self, ids: Sequence[int], keys: Sequence[str], hashes: Sequence[bytes], keeps: Sequence[str | None]
    ) -> None:
        """Add rows. ids: their numbers in the database."""
        self._all += len(ids)
        for start, end in consecutive(ids):
            if not self._rows or ids[start] != self._last + 1 or self._rows + end - start > MOST_ROWS:
                self._close()
                self._first = ids[start]
            self._columns = self._columns or _Columns()
            self._columns.add(lines(keys[start:end]), b"".join(hashes[start:end]), lines(keeps[start:end]))
            self._last, self._rows = ids[end - 1], self._rows + end - start

    def finish(self) -> list[SegmentDigest] | None:
        """Return the digests; None if the rows are spread over too many segments."""
        self._close()
        if len(self._closed) > 1 + self._all // FEWEST_ROWS:
            return None
        return self._closed

    def _close(self) -> None:
        if self._columns is not None:
            self._closed.append(SegmentDigest(self._first, self._last, self._rows, self._columns.digest()))
        self._columns, self._rows = None, 0


def lines(texts: Sequence[str | None]) -> bytes:
    """Return texts, which hold no newlines, separated by newlines as in `Segment`; None is empty."""
    return "\n".join([text or "" for text in texts]).encode()


def texts(joined: bytes) -> list[str]:
    """Return the keys or kept values of a segment one by one; an empty text for NULL."""
    return joined.decode().split("\n")


def notes_of(conn: Connection, job_id: int, source: bytes) -> list[SegmentDigest]:
    """Return the segments of a source in order; empty if it was not planned in this form or not to its end."""
    here = (stretches.c.job_id == job_id, stretches.c.source == source)
    columns = [stretches.c[name] for name in SegmentDigest._fields]
    return [SegmentDigest(*row) for row in conn.execute(select(*columns).where(*here).order_by(stretches.c.n))]


def put_notes(conn: Connection, job_id: int, source: bytes, notes: Sequence[SegmentDigest]) -> None:
    """Store the segments of a source. Removes older segments of other sources over the same rows."""
    outdated = {source}
    for first, last in _ranges(notes):
        touching = (stretches.c.job_id == job_id, stretches.c.first <= last, stretches.c.last >= first)
        outdated |= set(conn.scalars(select(stretches.c.source).where(*touching)))
    for each in outdated:
        conn.execute(delete(stretches).where(stretches.c.job_id == job_id, stretches.c.source == each))
    rows = [{"job_id": job_id, "source": source, "n": n, **note._asdict()} for n, note in enumerate(notes)]
    if rows:
        conn.execute(insert(stretches), rows)


def _ranges(notes: Sequence[SegmentDigest]) -> list[tuple[int, int]]:
    """Return the ranges of row numbers of the segments, (first, last), with neighbours joined."""
    ranges: list[tuple[int, int]] = []
    for note in sorted(notes):
        if ranges and note.first == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], note.last)
        else:
            ranges.append((note.first, note.last))
    return ranges
