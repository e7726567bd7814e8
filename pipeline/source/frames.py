"""Frames of bounded size: how many rows one has, and how it is made from Arrow data. Pure."""

from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.source import exact

CHUNK_ROWS = 5_000  # of a frame, at most
CHUNK_BYTES = 2_000_000  # of a frame, about; the limit of memory when rows are long
FEW_ROWS = 200  # a chunk with fewer rows has rows so long that each column is one large block of memory
BLOCK_BYTES = 450_000  # that are read at once from a text file; pyarrow holds up to 32 blocks that it has read ahead
LONGEST_ROW = 1_000_000_000  # bytes; the largest block, for a row that does not fit into a smaller one

#: A column with the fields of an NDJSON object that have no column of their own. No field has this name.
LATE_FIELDS = "\0fields that are first seen late"

# pyarrow's own allocators do not return freed memory to the system: 40 MB more for a whole run
pa.set_memory_pool(pa.system_memory_pool())


class Frame(NamedTuple):
    """Consecutive rows of an input. first: the number of the first row in the input, from 1."""

    first: int
    frame: pl.DataFrame


def rows_per_chunk(frame: pl.DataFrame) -> int:
    """Return how many rows of this frame make a chunk of CHUNK_BYTES; from 1 to CHUNK_ROWS."""
    return rows_for_size(frame.estimated_size() / max(1, frame.height))


def rows_for_size(mean: float, size: int = CHUNK_BYTES) -> int:
    """Return how many rows have `size` bytes; from 1 to CHUNK_ROWS. mean: bytes of a mean row."""
    return max(1, min(CHUNK_ROWS, int(size / max(1.0, mean))))


def from_arrow(batch: Any, path: str = "the file") -> pl.DataFrame:
    """Return an Arrow batch or table as a polars frame. path: of the file, for messages.

    Raises SourceError that names path and column for a type or a value that polars cannot hold.
    """
    refuse_types(batch.schema, path)
    if all(map(exact.is_plain, batch.schema.types)):
        try:
            frame = pl.from_arrow(batch)
        except BaseException as exc:  # a panic of polars is not an Exception
            raise unreadable(exc, path, None) from exc
        assert isinstance(frame, pl.DataFrame)
        if frame.columns != batch.schema.names:  # polars gives a column without a name another name
            frame.columns = batch.schema.names
        return frame
    columns = zip(batch.schema.names, batch.columns, strict=True)
    return pl.DataFrame({name: _column(array, name, path) for name, array in columns})


def _column(array: Any, name: str, path: str) -> pl.Series:
    try:
        return exact.series(array).alias(name)
    except BaseException as exc:  # a panic of polars is not an Exception
        raise unreadable(exc, path, name) from exc


def refuse_types(schema: Any, path: str) -> None:
    """Raise SourceError that names path and column if a type of this Arrow schema cannot be read."""
    for name, kind in zip(schema.names, schema.types, strict=True):
        if (reason := exact.refusal(kind)) is not None:
            raise SourceError(
                f"{path}: column {name!r} is {kind}: {reason}; cast it to string in the file, or leave the column out"
            )


def unreadable(exc: BaseException, path: str, name: str | None) -> BaseException:
    """Return a SourceError that names path and column for an error of polars; any other error unchanged.

    name: the column; None if it is unknown.
    """
    if not isinstance(exc, pl.exceptions.PolarsError) and type(exc).__name__ != "PanicException":
        return exc
    column = "the file" if name is None else f"column {name!r}"
    reason = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
    return SourceError(f"{path}: {column} cannot be read ({reason}); cast it to string in the file, or leave it out")
