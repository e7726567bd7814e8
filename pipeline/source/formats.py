"""A source's files as inputs: which columns one has, and its rows in bounded chunks. Edge: files.

CSV, TSV and NDJSON (plain, .gz, .zst), Parquet and Arrow are read by pyarrow as streams.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from pipeline import memory
from pipeline.source import columnar, csv_file, frames, ndjson
from pipeline.source.files import TYPED, SourceFile
from pipeline.source.frames import Frame
from pipeline.source.identity import columns_of
from pipeline.source.predicate import Predicate
from pipeline.storage.folders import Folder


@dataclass(frozen=True)
class FileInput:
    """A file of a source, as an input of rows."""

    file: SourceFile

    @property
    def path(self) -> str:
        """The whole path, or the URL."""
        return self.file.path

    @property
    def name(self) -> str:
        """Its own name, without the folders."""
        return self.file.name

    @property
    def folder(self) -> Folder:
        """Where the file is."""
        return self.file.folder

    @property
    def partition(self) -> tuple[tuple[str, str | None], ...]:
        """The columns that its folders say, as far as the file does not have them itself."""
        return tuple(pair for pair in self.file.partition if pair[0] not in self._own)

    @property
    def by_value(self) -> bool:
        """Whether a column's type is that of each of its values."""
        return self.file.format == "ndjson"

    @cached_property
    def types(self) -> dict[str, Any]:
        """The Arrow type of each of the file's own columns; nothing for a file of text."""
        found = self._schema
        return {} if found is None else dict(zip(found.names, found.types, strict=True))

    @cached_property
    def columns(self) -> list[str]:
        """The file's columns, those that its folders say behind its own. Raises SourceError."""
        return [*self._own, *(name for name, _ in self.partition)]

    @cached_property
    def _schema(self) -> Any:
        return columnar.schema(self.file) if self.file.format in TYPED else None

    @cached_property
    def _own(self) -> list[str]:
        if self._schema is not None:
            return list(self._schema.names)
        if self.file.format == "csv":
            return csv_file.columns(self.file)
        return ndjson.first_fields(self.file)

    @cached_property
    def later_columns(self) -> list[str]:
        """Columns that the file has beyond `columns`: fields of NDJSON that no object at its start has.

        This reads the whole of an NDJSON file. Raises SourceError.
        """
        found = ndjson.all_fields(self.file) if self.by_value else []
        return [name for name in found if name not in self.columns]

    def frames(
        self, names: list[str], where: Predicate | None = None, known: frozenset[str] = frozenset()
    ) -> Iterator[Frame]:
        """The file's rows as frames of at most CHUNK_ROWS rows and about CHUNK_BYTES bytes, columns in this order.

        known: the columns that the source has; frames.LATE_FIELDS among the names is the fields beyond these.
        where: parts of a file of which it proves that they hold no wanted row are not read; the others come whole.
        Raises SourceError that names the file and the row, and when the file changes meanwhile.
        """
        said = [pl.lit(value, dtype=pl.String).alias(name) for name, value in self.partition if name in names]
        of_folders = {name for name, _ in self.partition}
        wanted = [name for name in names if name not in of_folders]
        read = wanted or self._own[:1]  # without a column a frame would have no rows
        for first, frame in _read(self.file, self._own, read, where, known):
            self.file.check()  # before anybody sees rows of a file that is being written
            yield Frame(first, columns_of(frame.with_columns(said), names) if said else frame)
        self.file.check()


def _read(
    file: SourceFile, own: list[str], names: list[str], where: Predicate | None, known: frozenset[str]
) -> Iterator[Frame]:
    """own: all columns of the file; names: those to read."""
    match file.format:
        case "parquet":
            return _in_chunks(columnar.parquet_frames(file, names, where))
        case "arrow":
            return _in_chunks(columnar.arrow_frames(file, names))
        case "csv":
            return _in_chunks(csv_file.frames(file, own, names))
        case _:  # is in chunks already, and each has types of its own
            return ndjson.frames(file, names, known)


def _in_chunks(found: Iterator[Frame]) -> Iterator[Frame]:
    """The same rows in frames of the size that we want."""
    gathered: list[pl.DataFrame] = []
    start = height = size = 0
    for first, frame in found:
        most = frames.rows_of_a_chunk(frame)
        if most < frames.FEW_ROWS:
            memory.keep_large_blocks()
        for part in frame.iter_slices(most):
            part_size = int(part.estimated_size())
            follows = first == start + height
            if gathered and (
                not follows or height + part.height > frames.CHUNK_ROWS or size + part_size > frames.CHUNK_BYTES
            ):
                yield Frame(start, pl.concat(gathered))
                gathered = []
            if not gathered:
                start, height, size = first, 0, 0
            gathered.append(part)
            height += part.height
            size += part_size
            first += part.height
    if gathered:
        yield Frame(start, pl.concat(gathered))
