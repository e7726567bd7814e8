"""Read the gold of a job from its source or from a gold file, check it, and store it. Edge: files, SQL."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from pipeline.errors import JobError, SourceError
from pipeline.escapes import inline
from pipeline.job.gold import Gold, refuse_seen
from pipeline.job.model import Job, Source
from pipeline.quality.canary_rules import refuse_impossible
from pipeline.quality.gold_columns import GoldColumn, gold_columns
from pipeline.quality.gold_values import Misread, as_declared, is_empty, read
from pipeline.sink.columns import ResultColumns
from pipeline.sink.gold import GoldTable
from pipeline.sink.table import ResultsTable
from pipeline.source import duplicates, exact, files, identity
from pipeline.source.duplicates import Distinct
from pipeline.source.frame import FrameInput
from pipeline.source.rows import Chunk, Rows
from pipeline.state.database import Connection, Database

WORKBOOKS = (".xlsx", ".xls", ".ods")
SHOWN = 10  # the most places that a message lists
REMEMBERED = 50_000  # values of a column whose reading is remembered


@dataclass(frozen=True)
class GoldCount:
    """How many rows a reading found, and how many of them have any gold."""

    rows: int
    with_gold: int


class RowsWithGold(Protocol):
    """Tells which rows of a source have gold, and what it is. columns: those of the output that have some."""

    columns: list[GoldColumn]

    @property
    def source_columns(self) -> list[str]:
        """The columns of the source that hold gold; [] if it is elsewhere."""

    def having(self, chunk: Chunk, keys: pl.Series, sink: ResultsTable) -> list[bool]:
        """Return whether each row of a chunk has gold; see GoldReader.having."""

    def holds_for(self, key: str, row_hash: bytes, sink: ResultsTable) -> bool:
        """Return whether the gold of a row is about these source values. key: JSON; sink: for the types of its key."""

    def store(self, database: Database, sink: ResultsTable) -> GoldTable:
        """Store all gold in the gold table of a results table, in place of what it held, and return the gold table."""


class GoldReader:
    """Reads the gold of a job. It can be read several times."""

    def __init__(self, job: Job, key_kinds: Mapping[str, str]) -> None:
        """Read the headers. key_kinds: of the key columns in the results table.

        Raises JobError and SourceError for gold that the job cannot have, or a column that is not there.
        """
        assert job.gold is not None
        self._job, self._gold = job, job.gold
        self._key_kinds = {name: key_kinds[name] for name in job.source.key}
        self.columns: list[GoldColumn] = gold_columns(job, job.gold)
        self._known: dict[tuple[str, str], dict[Any, Any]] = {}  # by column and type: what was read from a value
        self._file_keys: set[tuple[Any, ...]] | None = None  # of the rows with gold in a gold file
        self.found = GoldCount(0, 0)
        self._rows = _rows(job, job.gold)
        self._rows.require(job.source.key, "source.key")
        self._rows.require([column.source for column in self.columns], "gold.columns")
        self._names = [*job.source.key, *dict.fromkeys(column.source for column in self.columns)]

    def check(self) -> None:
        """Read all gold, and set `found` to how many rows have some. Raises SourceError that names row and column.

        It is raised for a value that its output column cannot have, and for rows with the same key.
        """
        rows = with_gold = 0
        with Distinct() as seen:
            for chunk in self._chunks():
                rows += chunk.frame.height
                seen.add(duplicates.hashes(self._key_texts(chunk)))
                with_gold += len(self._kept(self._values(chunk)))
            suspects = seen.duplicates()
        self._refuse_duplicates(suspects)
        self.found = GoldCount(rows, with_gold)

    def pages(self, sink: ResultsTable) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the rows with gold, for GoldTable.write, in chunks. Raises SourceError as `check` does."""
        for chunk in self._chunks():
            values = self._values(chunk)
            rows = list(zip(*self._key_columns(chunk, sink), *values, strict=True))
            kept = self._kept(values)
            yield rows if len(kept) == len(rows) else [rows[i] for i in kept]

    @property
    def source_columns(self) -> list[str]:
        """The columns of the source that hold gold; [] if it is in a file of its own."""
        return [] if self._gold.path is not None else [column.source for column in self.columns]

    def having(self, chunk: Chunk, keys: pl.Series, sink: ResultsTable) -> list[bool]:
        """Return whether each row of a chunk of the source has gold.

        chunk: with `source_columns`; keys: of its rows, as JSON. sink: the results table, for the types of its key.
        """
        if self._gold.path is None:
            kept = set(self._kept(self._values(chunk)))
            return [i in kept for i in range(chunk.frame.height)]
        if self._file_keys is None:
            width = len(self._key_kinds)
            self._file_keys = {row[:width] for page in self.pages(sink) for row in page}
        return [sink.key_values(key) in self._file_keys for key in keys]

    def holds_for(self, key: str, row_hash: bytes, sink: ResultsTable) -> bool:
        """Return True: all gold is read again for each run, so it belongs to the values that the row has now."""
        return True

    def store(self, database: Database, sink: ResultsTable) -> GoldTable:
        """Read all gold, and store it; see RowsWithGold."""
        table = gold_table(sink, self.columns)
        replace_gold(database, table, self.pages(sink))
        return table

    def _chunks(self) -> Iterator[Chunk]:
        return self._rows.chunks(self._names)

    def _values(self, chunk: Chunk) -> list[list[Any]]:
        """Return the values of each gold column, as the gold table stores them, None for an empty one."""
        return [self._column(chunk, column) for column in self.columns]

    def _column(self, chunk: Chunk, column: GoldColumn) -> list[Any]:
        source = chunk.frame.get_column(column.source)
        values = exact.values_of(source)
        if source.dtype == pl.Object:  # of several types, some of which are equal, such as 1 and True
            return [self._read(chunk, column, i, value) for i, value in enumerate(values)]
        known = self._known.setdefault((column.name, str(source.dtype)), {})
        if len(known) > REMEMBERED:
            known.clear()
        try:
            missing = set(values).difference(known)
        except TypeError:  # lists cannot be hashed
            return [self._read(chunk, column, i, value) for i, value in enumerate(values)]
        if missing:
            for i, value in enumerate(values):
                if value not in known:
                    known[value] = self._read(chunk, column, i, value)
        return list(map(known.__getitem__, values))

    def _read(self, chunk: Chunk, column: GoldColumn, i: int, value: Any) -> Any:
        """Return a value as the gold table stores it. i: the index of its row. Raises SourceError."""
        if is_empty(value):
            return None
        try:
            return read(column.kind, value) if column.declared is None else as_declared(column.declared, value)
        except Misread as exc:
            raise SourceError(
                f"gold.columns: {chunk.place(i)}: column {column.source!r} is {_shown(value)}, which {exc}; "
                f"it is compared with {column.name!r}, so correct the value, or empty it"
            ) from exc

    def _kept(self, values: Sequence[Sequence[Any]]) -> Sequence[int]:
        """Return the indexes of the rows that have gold."""
        rows = range(len(values[0]))
        if self._gold.empty == "null" or any(None not in column for column in values):
            return rows
        return [i for i, of_row in enumerate(zip(*values, strict=True)) if any(value is not None for value in of_row)]

    # -- keys --------------------------------------------------------------------------------------------------------

    def _key_columns(self, chunk: Chunk, sink: ResultsTable) -> Sequence[Sequence[Any]]:
        """Return the values of each key column as the results table stores them."""
        if self._gold.path is not None:
            return self._converted_keys(chunk)
        columns = [chunk.frame.get_column(name) for name in self._key_kinds]
        simple = {"text": pl.String, "integer": pl.Int64}
        if all(
            column.dtype == simple.get(kind) for column, kind in zip(columns, self._key_kinds.values(), strict=True)
        ):
            return [column.to_list() for column in columns]
        return list(zip(*map(sink.key_values, identity.keys(chunk.frame, list(self._key_kinds))), strict=True))

    def _converted_keys(self, chunk: Chunk) -> list[list[Any]]:
        """Return the values of each key column of a gold file, with the types that the key has in the source."""
        return [self._converted(chunk, name, kind) for name, kind in self._key_kinds.items()]

    def _converted(self, chunk: Chunk, name: str, kind: str) -> list[Any]:
        found = []
        for i, value in enumerate(exact.values_of(chunk.frame.get_column(name))):
            if is_empty(value):
                raise SourceError(
                    f"gold.path: {chunk.place(i)}: column {name!r} is empty; each row of gold needs a key"
                )
            try:
                found.append(read(kind, value))
            except Misread as exc:
                raise SourceError(
                    f"gold.path: {chunk.place(i)}: column {name!r} is {_shown(value)}, which {exc}; the source has "
                    "other keys"
                ) from exc
        return found

    def _key_texts(self, chunk: Chunk) -> pl.Series:
        """Return the key of each row as text; equal keys have equal texts."""
        if self._gold.path is None:
            return identity.key_texts(identity.key_column(chunk.frame, list(self._key_kinds)))
        keys = zip(*self._converted_keys(chunk), strict=True)
        return pl.Series([",".join(map(str, key)) for key in keys], dtype=pl.String)

    def _refuse_duplicates(self, suspects: pl.Series) -> None:
        """Raise SourceError if rows share a key. suspects: hashes of keys that came more than once."""
        if not suspects.len():
            return
        places: dict[str, list[str]] = {}
        for chunk in self._chunks():
            texts = self._key_texts(chunk)
            for i in duplicates.hashes(texts).is_in(suspects.implode()).arg_true():
                places.setdefault(texts[i], []).append(chunk.place(i))
        twice = [where for where in places.values() if len(where) > 1]
        if twice:
            field = "source.key" if self._gold.path is None else "gold.path"
            listed = "; ".join(" and ".join(where[:3]) for where in twice[:SHOWN])
            more = f" (and {len(twice) - SHOWN} more)" if len(twice) > SHOWN else ""
            raise SourceError(f"{field}: rows of gold have the same key: {listed}{more}; keep one of each")


def _shown(value: Any) -> str:
    text = inline(str(value))
    return repr(text if len(text) <= 60 else text[:60] + "...")


# -- where gold stands -----------------------------------------------------------------------------------------------


def _rows(job: Job, gold: Gold) -> Rows:
    """Return the rows that have the gold. Raises SourceError if they cannot be read."""
    if gold.path is None:
        return Rows(job.source)
    try:
        if Path(gold.path).suffix.lower() in WORKBOOKS:
            return _workbook(job, gold.path)
        rows = Rows(Source(path=[gold.path], key=job.source.key))
    except SourceError as exc:
        raise SourceError(f"gold.path: {str(exc).removeprefix('source.path: ')}") from exc
    _refuse_source_that_shows_gold(job, gold, rows)
    return rows


def _workbook(job: Job, path: str) -> Rows:
    """Return the rows of the first sheet of an Excel workbook."""
    import fastexcel

    try:
        sheet = pl.read_excel(path, engine="calamine", infer_schema_length=None)
    except (OSError, fastexcel.FastExcelError, pl.exceptions.PolarsError) as exc:
        raise SourceError(f"{path} cannot be read as an Excel workbook: {exc}") from exc
    rows = Rows(Source(frame=sheet, key=job.source.key))
    rows.inputs = [replace(one, path=path, name=Path(path).name) for one in rows.inputs if isinstance(one, FrameInput)]
    return rows


def _refuse_source_that_shows_gold(job: Job, gold: Gold, rows: Rows) -> None:
    """Raise JobError if the gold file is a file of the source, and the request uses a column of gold."""
    if job.source.path is None:
        return
    own = {file.path for file in files.find(job.source)}
    if any(one.path in own for one in rows.inputs):
        try:
            refuse_seen(gold, *job.request.named())
        except ValueError as exc:
            raise JobError(f"gold.columns: {exc}") from exc


# -- storing it ------------------------------------------------------------------------------------------------------


def read_gold(job: Job, columns: ResultColumns) -> GoldReader | None:
    """Return a reader of the job's gold whose values have been checked; None if neither source nor file has gold.

    columns: of the job's results table. Raises JobError and SourceError for gold that cannot be used.
    """
    refuse_impossible(job)
    if job.gold is None or job.gold.reviews:
        return None
    reader = GoldReader(job, columns.key)
    reader.check()
    return reader


def check_table(conn: Connection, sink: ResultsTable, reader: RowsWithGold) -> None:
    """Raise DatabaseError or JobError if the reader's `store` could not make the gold table."""
    gold_table(sink, reader.columns).check(conn)


def gold_table(sink: ResultsTable, columns: Sequence[GoldColumn]) -> GoldTable:
    """Return the gold table of a results table, for gold in these columns of the output."""
    return GoldTable(sink, {column.name: column.kind for column in columns})


def replace_gold(database: Database, table: GoldTable, pages: Iterable[Sequence[tuple[Any, ...]]]) -> None:
    """Replace what a gold table holds. pages: rows with gold, for GoldTable.write."""
    with database.write() as conn:
        reading = table.begin(conn)
    for rows in pages:
        with database.write() as conn:
            table.write(conn, reading, rows)
    removed = True
    while removed:
        with database.write() as conn:
            removed = bool(table.remove_older(conn, reading))
