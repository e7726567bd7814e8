"""Parquet and Arrow files as polars frames. Edge: files."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from pipeline.files import SourceFile
from pipeline.frames import BLOCK_BYTES, Frame, of_arrow, rows_of_size
from pipeline.identity import columns_of
from pipeline.predicate import Predicate
from pipeline.translated import Translated


def schema(file: SourceFile) -> Any:
    with Translated(file), file.native() as raw:
        return pa.parquet.read_schema(raw) if file.format == "parquet" else _arrow_reader(raw).schema


def parquet_frames(file: SourceFile, names: list[str], where: Predicate | None) -> Iterator[Frame]:
    with Translated(file), file.native() as raw:
        groups = None if where is None else where.row_groups(raw)
        # not pre-buffered: a row group may be larger than all the memory we want to use
        parquet = pa.parquet.ParquetFile(raw, pre_buffer=False, buffer_size=BLOCK_BYTES)
        counts = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        size = _batch_rows(parquet.metadata, names)
        groups = range(len(counts)) if groups is None else groups
        for start, end in consecutive(groups):
            first, wanted = 1 + sum(counts[: groups[start]]), groups[start:end]
            batches = parquet.iter_batches(batch_size=size, row_groups=wanted, columns=names, use_threads=False)
            for batch in batches:
                yield Frame(first, columns_of(of_arrow(batch), names))
                first += batch.num_rows


def _batch_rows(metadata: Any, names: list[str]) -> int:
    """How many rows make a chunk, by the largest ones that a row group has in the mean.

    A dictionary makes them smaller in the file than they are; what is too large then is cut. Four times as many at once
    took half as long again for rows of 100 kB: the memory for them comes from the system each time.
    """
    wanted, largest = set(names), 1.0
    for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
        columns = (group.column(i) for i in range(group.num_columns))
        named = ((one.path_in_schema, one.total_uncompressed_size) for one in columns)  # list.list.element
        size = sum(size for path, size in named if path in wanted or path.partition(".")[0] in wanted)
        largest = max(largest, size / max(1, group.num_rows))
    return rows_of_size(largest)


def consecutive(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The places at which numbers that follow each other begin and end, as slices have them."""
    if not numbers:
        return
    start = 0
    for i in range(1, len(numbers)):
        if numbers[i] != numbers[i - 1] + 1:
            yield start, i
            start = i
    yield start, len(numbers)


def _arrow_reader(raw: Any) -> Any:
    """An Arrow file, or an Arrow stream, which has no index at its end."""
    try:
        return pa.ipc.open_file(raw)
    except pa.ArrowInvalid:
        raw.seek(0)
        return pa.ipc.open_stream(raw)


def arrow_frames(file: SourceFile, names: list[str]) -> Iterator[Frame]:
    with Translated(file), file.native() as raw:
        reader = _arrow_reader(raw)
        is_file = hasattr(reader, "get_batch")
        first = 1
        for batch in (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader:
            yield Frame(first, columns_of(of_arrow(batch.select(names)), names))
            first += batch.num_rows
