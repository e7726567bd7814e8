"""Frames: the rows of an input in bounded pieces, and how many rows make one. Pure."""

from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

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


def of_arrow(batch: Any) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame
