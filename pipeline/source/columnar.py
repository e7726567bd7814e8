"""Read Parquet and Arrow files as polars frames. Edge: files."""

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from pipeline.errors import SourceError
from pipeline.source.files import SourceFile
from pipeline.source.frames import Frame, from_arrow, rows_for_size
from pipeline.source.identity import columns_of
from pipeline.source.predicate import Predicate
from pipeline.source.translated import TranslatedErrors

BATCH_BYTES = 900_000  # that are read at once; larger blocks than 1 MB come from the system each time, see memory.py
LONGEST_ROW = 256_000_000  # bytes; no batch of the API can carry more
_SIGNATURE_BYTES = 28  # of the signature after a plain footer, in a file whose columns are encrypted


def schema(file: SourceFile) -> Any:
    """Return the Arrow schema of a file. Raises SourceError for an encrypted file."""
    with TranslatedErrors(file), file.native() as raw:
        if file.format != "parquet":
            return _arrow_reader(raw).schema
        stated = _footer_bytes(file, raw)
        parquet = pa.parquet.ParquetFile(raw)
        # pyarrow ends the process when an encrypted column is read, so encryption is detected by the footer's size
        if stated - parquet.metadata.serialized_size == _SIGNATURE_BYTES:
            _refuse_encrypted(file)
        return parquet.schema_arrow


def _footer_bytes(file: SourceFile, raw: Any) -> int:
    """Return the size of a Parquet file's footer in bytes, as the end of the file states it."""
    raw.seek(max(0, raw.size() - 8))
    end = raw.read(8)
    raw.seek(0)
    if end[-4:] == b"PARE":
        _refuse_encrypted(file)
    return int.from_bytes(end[:4], "little")


def _refuse_encrypted(file: SourceFile) -> NoReturn:
    raise SourceError(f"{file.path}: the Parquet file is encrypted, which is not supported; write it unencrypted")


def parquet_frames(file: SourceFile, names: list[str], where: Predicate | None) -> Iterator[Frame]:
    """Yield the rows of a Parquet file, with these columns.

    where: row groups that cannot hold a wanted row are skipped; None reads all. Raises SourceError.
    """
    with TranslatedErrors(file), file.native() as raw:
        groups = None if where is None else where.row_groups(raw)
        # not pre-buffered: one row group may be larger than the memory that we want to use
        parquet = pa.parquet.ParquetFile(raw, pre_buffer=False, buffer_size=BATCH_BYTES)
        counts = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        size = _batch_rows(file, parquet.metadata, names)
        groups = range(len(counts)) if groups is None else groups
        for start, end in consecutive(groups):
            first, wanted = 1 + sum(counts[: groups[start]]), groups[start:end]
            for batch in _exact_times(raw, parquet, _batches(parquet, size, wanted, names), size, wanted, names):
                yield Frame(first, columns_of(from_arrow(batch, file.path), names))
                first += batch.num_rows


def _batches(parquet: Any, size: int, groups: Sequence[int], names: Sequence[str]) -> Iterator[Any]:
    batches: Iterator[Any] = parquet.iter_batches(batch_size=size, row_groups=groups, columns=names, use_threads=False)
    return batches


def _exact_times(
    raw: Any, parquet: Any, batches: Iterator[Any], size: int, groups: Sequence[int], names: list[str]
) -> Iterator[Any]:
    """Yield the batches, with INT96 times (as Spark writes them) in microseconds where nanoseconds cannot hold them.

    pyarrow reads INT96 as nanoseconds, and silently changes times before 1677 and after 2262.
    """
    every = (parquet.schema.column(i) for i in range(len(parquet.schema.names)))
    times = [one.name for one in every if one.physical_type == "INT96" and one.name in names and one.path == one.name]
    if not times:
        yield from batches
        return
    coarse = pa.parquet.ParquetFile(raw, pre_buffer=False, buffer_size=BATCH_BYTES, coerce_int96_timestamp_unit="us")
    for batch, other in zip(batches, _batches(coarse, size, groups, times), strict=True):
        for name in times:
            i = batch.schema.get_field_index(name)
            nanos, micros = batch.column(name).cast(pa.int64()), other.column(name).cast(pa.int64())
            import pyarrow.compute as pc  # 70 ms that few sources need

            same = pc.less(pc.abs(pc.subtract(pc.divide(nanos, 1000), micros)), 2)  # 1 apart: the two round differently
            if not pc.all(same, min_count=0).as_py():
                batch = batch.set_column(i, name, other.column(name))
        yield batch


def _batch_rows(file: SourceFile, metadata: Any, names: list[str]) -> int:
    """Return how many rows are read at once, by the row group with the largest mean row: BATCH_BYTES of rows.

    Dictionary encoding makes rows look smaller than they are; frames that are then too large are split later. With
    twice as many rows, reading took half as long again: the system provides large blocks of memory each time.
    Raises SourceError, before reading, for a mean row beyond LONGEST_ROW: a few kB of a file may hold gigabytes.
    """
    wanted, largest = set(names), 1.0
    for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
        columns = (group.column(i) for i in range(group.num_columns))
        named = [(one.path_in_schema, one.total_uncompressed_size) for one in columns]  # list.list.element
        sizes = [(size, path) for path, size in named if path in wanted or path.partition(".")[0] in wanted]
        rows = max(1, group.num_rows)
        mean = sum(size for size, _ in sizes) / rows
        if mean > LONGEST_ROW:
            raise SourceError(
                f"{file.path}: column {max(sizes)[1]!r} has {max(sizes)[0] / rows:,.0f} bytes per row on average, more "
                f"than a batch can carry ({LONGEST_ROW:,}); remove such rows from the file, or split them"
            )
        largest = max(largest, mean)
    return rows_for_size(largest, BATCH_BYTES)


def consecutive(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run of consecutive numbers, as the indices of a slice."""
    if not numbers:
        return
    start = 0
    for i in range(1, len(numbers)):
        if numbers[i] != numbers[i - 1] + 1:
            yield start, i
            start = i
    yield start, len(numbers)


def _arrow_reader(raw: Any) -> Any:
    """Return pyarrow's reader for an Arrow file, or for an Arrow stream, which has no index at its end."""
    try:
        return pa.ipc.open_file(raw)
    except pa.ArrowInvalid:
        raw.seek(0)
        return pa.ipc.open_stream(raw)


def arrow_frames(file: SourceFile, names: list[str]) -> Iterator[Frame]:
    """Yield the rows of an Arrow file or stream, with these columns. Raises SourceError."""
    with TranslatedErrors(file), file.native() as raw:
        reader = _arrow_reader(raw)
        is_file = hasattr(reader, "get_batch")
        first = 1
        for batch in (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader:
            yield Frame(first, columns_of(from_arrow(batch.select(names), file.path), names))
            first += batch.num_rows
