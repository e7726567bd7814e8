"""Give the columns of a source file, and read its rows in frames of bounded size. Edge: files.

pyarrow reads CSV, TSV, Parquet and Arrow as streams; NDJSON is parsed line by line. Text may be plain, .gz or .zst.
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
    """A file of a source, as an Input (see rows.Input)."""

    file: SourceFile

    @property
    def path(self) -> str:
        """The whole path, or the URL."""
        return self.file.path

    @property
    def name(self) -> str:
        """The file's name, without folders."""
        return self.file.name

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return self.file.found.size

    @property
    def folder(self) -> Folder:
        """The folder that holds the file."""
        return self.file.folder

    @property
    def partition(self) -> tuple[tuple[str, str | None], ...]:
        """The columns whose values the names of the folders give, except those that the file has itself."""
        return tuple(pair for pair in self.file.partition if pair[0] not in self._own)

    @property
    def by_value(self) -> bool:
        """Whether each value has a type of its own, as in NDJSON, rather than each column."""
        return self.file.format == "ndjson"

    @cached_property
    def types(self) -> dict[str, Any]:
        """The Arrow type of each of the file's own columns; empty for a text file."""
        found = self._schema
        return {} if found is None else dict(zip(found.names, found.types, strict=True))

    @cached_property
    def columns(self) -> list[str]:
        """The file's own columns, then those of its folders. Raises SourceError."""
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
    def late_columns(self) -> list[str]:
        """The columns beyond `columns`: fields of NDJSON that the first objects do not have.

        Reads the whole of an NDJSON file. Raises SourceError.
        """
        found = ndjson.all_fields(self.file) if self.by_value else []
        return [name for name in found if name not in self.columns]

    def frames(
        self, names: list[str], where: Predicate | None = None, known: frozenset[str] = frozenset()
    ) -> Iterator[Frame]:
        """Yield the rows in frames of at most CHUNK_ROWS rows and about CHUNK_BYTES bytes.

        names: the columns, in this order; frames.LATE_FIELDS among them is a column of the fields that are not `known`.
        where: parts of the file that cannot hold a wanted row are skipped; other parts are yielded with all their rows.
        known: all columns of the source.
        Raises SourceError that names the file and the row, also if the file changes meanwhile.
        """
        from_folders = [pl.lit(value, dtype=pl.String).alias(name) for name, value in self.partition if name in names]
        folder_columns = {name for name, _ in self.partition}
        wanted = [name for name in names if name not in folder_columns]
        read = wanted or self._own[:1]  # a frame without columns would have no rows
        for first, frame in _read(self.file, self._own, read, where, known):
            self.file.check()  # first, so that no caller gets rows of a file that is being written
            yield Frame(first, columns_of(frame.with_columns(from_folders), names) if from_folders else frame)
        self.file.check()


def _read(
    file: SourceFile, own: list[str], names: list[str], where: Predicate | None, known: frozenset[str]
) -> Iterator[Frame]:
    """Yield the rows of a file. own: all its columns; names: the columns to read."""
    match file.format:
        case "parquet":
            return _in_chunks(columnar.parquet_frames(file, names, where))
        case "arrow":
            return _in_chunks(columnar.arrow_frames(file, names))
        case "csv":
            return _in_chunks(csv_file.frames(file, own, names))
        case _:  # its frames have the right size already, and their types may differ, so they cannot be joined
            return ndjson.frames(file, names, known)


def _in_chunks(found: Iterator[Frame]) -> Iterator[Frame]:
    """Split and join frames, so that each has at most CHUNK_ROWS rows and about CHUNK_BYTES bytes."""
    gathered: list[pl.DataFrame] = []
    start = height = size = 0
    for first, frame in found:
        most = frames.rows_per_chunk(frame)
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
