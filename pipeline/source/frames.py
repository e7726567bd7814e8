"""Frames: the rows of an input in bounded pieces, and how many rows make one. Pure."""

from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.source import exact

CHUNK_ROWS = 5_000
CHUNK_BYTES = 2_000_000  # of a frame: what is in memory at once, when rows are long
FEW_ROWS = 200  # in a chunk: they are so long that each column is one large piece of memory
BLOCK_BYTES = 1_000_000  # read at once from a text file; the parser holds several times as much
LONGEST_ROW = 1_000_000_000  # bytes; only met when one row does not fit into a block

#: The column of the fields of an NDJSON object that no other column of a frame has. No field is called so.
LATE_FIELDS = "\0fields that are first seen late"

# pyarrow's own allocators keep what they had for better times: 40 MB more of a whole run
pa.set_memory_pool(pa.system_memory_pool())


class Frame(NamedTuple):
    """Some rows that follow each other in a file. first: the number of the first one, from 1."""

    first: int
    frame: pl.DataFrame


def rows_of_a_chunk(frame: pl.DataFrame) -> int:
    """How many rows of this frame make a chunk of CHUNK_BYTES, at most CHUNK_ROWS."""
    return rows_of_size(frame.estimated_size() / max(1, frame.height))


def rows_of_size(mean: float) -> int:
    """As `rows_of_a_chunk`, of rows that have so many bytes in the mean."""
    return max(1, min(CHUNK_ROWS, int(CHUNK_BYTES / max(1.0, mean))))


def of_arrow(batch: Any, path: str = "the file") -> pl.DataFrame:
    """An Arrow batch or table as a frame. Raises SourceError that names path and column if a value cannot be held."""
    refuse(batch.schema, path)
    if all(map(exact.is_plain, batch.schema.types)):
        try:
            frame = pl.from_arrow(batch)
        except BaseException as exc:  # a panic of polars is no Exception
            raise unreadable(exc, path, None) from exc
        assert isinstance(frame, pl.DataFrame)
        if frame.columns != batch.schema.names:  # polars calls a column without a name otherwise
            frame.columns = batch.schema.names
        return frame
    columns = zip(batch.schema.names, batch.columns, strict=True)
    return pl.DataFrame({name: _column(array, name, path) for name, array in columns})


def _column(array: Any, name: str, path: str) -> pl.Series:
    try:
        return exact.series(array).alias(name)
    except BaseException as exc:  # a panic of polars is no Exception
        raise unreadable(exc, path, name) from exc


def refuse(schema: Any, path: str) -> None:
    """Raises SourceError that names path and column if a type of this Arrow schema cannot be read."""
    for name, kind in zip(schema.names, schema.types, strict=True):
        if (why := exact.refusal(kind)) is not None:
            raise SourceError(
                f"{path}: column {name!r} is {kind}: {why}; cast it to string in the file, or leave the column out"
            )


def unreadable(exc: BaseException, path: str, name: str | None) -> BaseException:
    """What to raise for an error of polars: a SourceError that names the column; other errors as they are."""
    if not isinstance(exc, pl.exceptions.PolarsError) and type(exc).__name__ != "PanicException":
        return exc
    column = "the file" if name is None else f"column {name!r}"
    said = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
    return SourceError(f"{path}: {column} cannot be read ({said}); cast it to string in the file, or leave it out")
