"""A source's files as polars frames, in bounded chunks. Edge: files.

CSV, TSV and NDJSON (plain, .gz, .zst), Parquet and Arrow are read by pyarrow as streams.
"""

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet

from pipeline import memory
from pipeline.attachments import Folder
from pipeline.errors import PipelineError, SourceError
from pipeline.files import TYPED, SourceFile
from pipeline.identity import columns_of
from pipeline.predicate import Predicate
from pipeline.readahead import ReadAhead

CHUNK_ROWS = 5_000
CHUNK_BYTES = 2_000_000  # of a frame: what is in memory at once, when rows are long
FEW_ROWS = 200  # in a chunk: they are so long that each column is one large piece of memory
BLOCK_BYTES = 1_000_000  # read at once from a text file; the parser holds several times as much
LONGEST_ROW = 1_000_000_000  # bytes; only met when one row does not fit into a block

# pyarrow's own allocators keep what they had for better times: 40 MB more of a whole run
pa.set_memory_pool(pa.system_memory_pool())


class Frame(NamedTuple):
    """Some rows that follow each other in a file. first: the number of the first one, from 1."""

    first: int
    frame: pl.DataFrame


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
        return _arrow_schema(self.file) if self.file.format in TYPED else None

    @cached_property
    def _own(self) -> list[str]:
        if self._schema is not None:
            return list(self._schema.names)
        if self.file.format == "csv":
            return _csv_columns(self.file)
        first = next(_ndjson_objects(self.file), None)
        if first is None:
            raise SourceError(f"source.path: {self.path} is empty")
        return list(dict.fromkeys(name for item in first[1] for name in item))

    def frames(self, names: list[str], where: Predicate | None = None) -> Iterator[Frame]:
        """The file's rows as frames of at most CHUNK_ROWS rows and about CHUNK_BYTES bytes, columns in this order.

        where: parts of a file of which it proves that they hold no wanted row are not read; the others come whole.
        Raises SourceError that names the file and the row, and when the file changes meanwhile.
        """
        said = [pl.lit(value, dtype=pl.String).alias(name) for name, value in self.partition if name in names]
        of_folders = {name for name, _ in self.partition}
        wanted = [name for name in names if name not in of_folders]
        read = wanted or self._own[:1]  # without a column a frame would have no rows
        for first, frame in _read(self.file, self._own, read, where):
            self.file.check()  # before anybody sees rows of a file that is being written
            yield Frame(first, columns_of(frame.with_columns(said), names) if said else frame)
        self.file.check()


def _read(file: SourceFile, own: list[str], names: list[str], where: Predicate | None) -> Iterator[Frame]:
    """own: all columns of the file; names: those to read."""
    match file.format:
        case "parquet":
            return _in_chunks(_parquet_frames(file, names, where))
        case "arrow":
            return _in_chunks(_arrow_frames(file, names))
        case "csv":
            return _in_chunks(_csv_frames(file, own, names))
        case _:  # is in chunks already, and each has types of its own
            return _ndjson_frames(file, names)


def _in_chunks(found: Iterator[Frame]) -> Iterator[Frame]:
    """The same rows in frames of the size that we want."""
    gathered: list[pl.DataFrame] = []
    start = height = size = 0
    for first, frame in found:
        most = rows_of_a_chunk(frame)
        if most < FEW_ROWS:
            memory.keep_large()
        for part in frame.iter_slices(most):
            part_size = int(part.estimated_size())
            follows = first == start + height
            if gathered and (not follows or height + part.height > CHUNK_ROWS or size + part_size > CHUNK_BYTES):
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


def rows_of_a_chunk(frame: pl.DataFrame) -> int:
    """How many rows of this frame make a chunk of CHUNK_BYTES, at most CHUNK_ROWS."""
    return _rows_of_size(frame.estimated_size() / max(1, frame.height))


def _rows_of_size(mean: float) -> int:
    """As `rows_of_a_chunk`, of rows that have so many bytes in the mean."""
    return max(1, min(CHUNK_ROWS, int(CHUNK_BYTES / max(1.0, mean))))


def _polars(batch: Any) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame


# -- Parquet and Arrow -----------------------------------------------------------------------------------------------


def _arrow_schema(file: SourceFile) -> Any:
    with _translated(file), file.native() as raw:
        return pa.parquet.read_schema(raw) if file.format == "parquet" else _arrow_reader(raw).schema


def _parquet_frames(file: SourceFile, names: list[str], where: Predicate | None) -> Iterator[Frame]:
    with _translated(file), file.native() as raw:
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
                yield Frame(first, columns_of(_polars(batch), names))
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
    return _rows_of_size(largest)


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


def _arrow_frames(file: SourceFile, names: list[str]) -> Iterator[Frame]:
    with _translated(file), file.native() as raw:
        reader = _arrow_reader(raw)
        is_file = hasattr(reader, "get_batch")
        first = 1
        for batch in (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader:
            yield Frame(first, columns_of(_polars(batch.select(names)), names))
            first += batch.num_rows


# -- CSV -------------------------------------------------------------------------------------------------------------


def _csv_columns(file: SourceFile) -> list[str]:
    for block in (BLOCK_BYTES, LONGEST_ROW):
        with contextlib.suppress(_RowTooLong), _translated(file), ReadAhead(file) as ahead:
            ahead.reader = _csv_reader(ahead, file, [], block)
            found = list(ahead.reader.schema.names)
            if file.csv.header:
                return found
            return [f"column_{i + 1}" for i in range(len(found))] if file.csv.columns is None else file.csv.columns
    raise SourceError(f"{file.path} row 1: the row is longer than {LONGEST_ROW:,} bytes")


def _csv_frames(file: SourceFile, own: list[str], names: list[str]) -> Iterator[Frame]:
    rows, block = 0, BLOCK_BYTES
    # the last column is where a quote that is never closed swallows the rest of the file without an error
    last = own[-1]
    read = names if last in names else [*names, last]
    end: str | None = ""
    while True:
        skip = rows
        try:
            with _translated(file), ReadAhead(file) as ahead:
                ahead.reader = _csv_reader(ahead, file, read, block, own)
                for batch in ahead.batches():
                    frame = _polars(batch)
                    frame.columns = read
                    new = frame.slice(skip)
                    skip -= frame.height - new.height
                    rows += new.height
                    if new.height:
                        end = new.get_column(last)[-1]
                        yield Frame(rows - new.height + 1, columns_of(new, names))
        except _RowTooLong:
            if block >= LONGEST_ROW:
                raise SourceError(f"{file.path} row {rows + 1}: the row is longer than {LONGEST_ROW:,} bytes") from None
            block = min(block * 16, LONGEST_ROW)  # read on behind what was handed out, in larger blocks
            continue
        if file.csv.quote and ("\n" in (end or "") or _is_cut_in_quotes(file, end or "")):
            _refuse_open_quote(file, rows)
        return


class _RowTooLong(Exception):
    """One row does not fit into a block of a CSV file."""


def _csv_reader(ahead: ReadAhead, file: SourceFile, names: list[str], block: int, own: list[str] | None = None) -> Any:
    """names: of the columns to read; own: of all columns, which a file without a header does not say itself."""
    unnamed = {} if file.csv.header else {"column_names": own} if own else {"autogenerate_column_names": True}
    nulls = file.csv.null_values
    return pa.csv.open_csv(
        ahead.stream,
        read_options=pa.csv.ReadOptions(use_threads=False, block_size=block, encoding=file.encoding, **unnamed),
        parse_options=pa.csv.ParseOptions(
            delimiter=file.delimiter, newlines_in_values=True, quote_char=file.csv.quote or False
        ),
        convert_options=pa.csv.ConvertOptions(
            null_values=nulls,
            strings_can_be_null=bool(nulls),  # else an empty field is empty text, and NULL is a word
            quoted_strings_can_be_null=False,
            include_columns=names,
            column_types=dict.fromkeys(names, pa.string()),  # 08123 stays 08123
        ),
    )


def _is_cut_in_quotes(file: SourceFile, end: str) -> bool:
    """Whether the file seems to end inside of a quoted field, whose value is `end`, without a line end behind it."""
    quote = file.csv.quote
    field = (quote + end.replace(quote, quote * 2)).encode(file.encoding)
    with file.open() as raw:
        size = raw.seek(0, io.SEEK_END)
        raw.seek(max(0, size - len(field) - 1))
        tail = raw.read()
    return tail.endswith(field) and tail[: -len(field)] in (b"\n", b"\r", file.delimiter.encode())


def _refuse_open_quote(file: SourceFile, rows: int) -> None:
    """Raises SourceError if the file ends inside of quotes: then a row put behind it is none of its own.

    Python's parser reads the whole file for that, so it is asked only when the last field holds a line end.
    """
    mark, quote = "-- the end --", file.csv.quote
    csv.field_size_limit(LONGEST_ROW)
    with file.native() as raw, pa.input_stream(raw, compression=file.compression) as stream:
        lines = io.TextIOWrapper(io.BufferedReader(stream), encoding=file.encoding, newline="")
        row: list[str] = []
        reader = csv.reader(chain(lines, ["\n", mark]), delimiter=file.delimiter, quotechar=quote)
        for row in reader:  # noqa: B007  # the last one counts
            pass
    if row != [mark]:
        raise SourceError(f"{file.path} row {rows}: a quote ({quote}) is opened and never closed")


# -- NDJSON ----------------------------------------------------------------------------------------------------------


def _ndjson_frames(file: SourceFile, names: list[str]) -> Iterator[Frame]:
    for first, items in _ndjson_objects(file):
        yield Frame(first, of_values({name: [item.get(name) for item in items] for name in names}))


def of_values(values: dict[str, list[Any]]) -> pl.DataFrame:
    """Python values by column as a frame; where those of a column are of several kinds, or nested, as they are.

    So each value stays what it is in its source, whatever stands beside it: a series has one type for all.
    """
    return pl.DataFrame({name: _series(column) for name, column in values.items()})


def _series(values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    large = int in kinds and any(isinstance(v, int) and not -(2**63) <= v < 2**63 for v in values)
    if len(kinds) > 1 or kinds & {dict, list} or large:
        return pl.Series(values, dtype=pl.Object)
    return pl.Series(values)


def _ndjson_objects(file: SourceFile) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The objects of an NDJSON file, in lists of at most CHUNK_ROWS and about CHUNK_BYTES bytes of text.

    Each with the number of its first object, from 1.
    """
    objects: list[dict[str, Any]] = []
    first, size = 1, 0
    for number, line in enumerate(_lines(file), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no content
        if not line.strip():
            continue
        try:
            value = orjson.loads(line if file.encoding == "utf-8" else line.decode(file.encoding))
        except (orjson.JSONDecodeError, UnicodeDecodeError) as exc:
            raise SourceError(f"{file.path} line {number}: this is not JSON in {file.encoding}: {exc}") from exc
        if not isinstance(value, dict):
            raise SourceError(f"{file.path} line {number}: each line must be a JSON object")
        objects.append(value)
        size += len(line)
        if len(objects) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield first, objects
            first, objects, size = first + len(objects), [], 0
    if objects:
        yield first, objects


def _lines(file: SourceFile) -> Iterator[bytes]:
    """The file's lines, split at \\n only: JSON text may hold other characters that Python takes for line ends."""
    with _translated(file), file.native() as raw, pa.input_stream(raw, compression=file.compression) as stream:
        rest: list[bytes] = []
        while data := stream.read(1_000_000):
            *lines, tail = data.split(b"\n")
            for line in lines:
                yield b"".join([*rest, line]) if rest else line
                rest = []
            rest.append(tail)
        if any(rest):
            yield b"".join(rest)


# -- what pyarrow says -----------------------------------------------------------------------------------------------


class _translated:
    """Turns what pyarrow raises into a SourceError that names the file, or into _RowTooLong."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if isinstance(exc, PipelineError):
            return
        if not isinstance(exc, pa.ArrowException | OSError | UnicodeError):
            return
        self.file.check()  # half a file may be anything
        text = str(exc).splitlines()[0][:300] if str(exc) else type(exc).__name__
        if "straddl" in text:
            raise _RowTooLong from exc
        if "Empty CSV file" in text:
            raise SourceError(f"source.path: {self.file.path} is empty") from exc
        raise SourceError(_said(self.file, text, exc)) from exc


def _said(file: SourceFile, text: str, exc: BaseException) -> str:
    """What pyarrow says of a file, in our words; its rows count the header, ours do not."""
    row = re.search(r"Row #(\d+): ", text)
    place = f"{file.path} row {int(row[1]) - file.csv.header}" if row else file.path
    fields = re.search(r"Expected (\d+) columns, got (\d+)", text)
    with file.open() as start:
        wide = start.read(2) in (b"\xff\xfe", b"\xfe\xff")
    if (wide and file.compression is None) or "UTF8" in text or isinstance(exc, UnicodeError):
        return f"{place}: the text is in another encoding; say the file's encoding in source.encoding"
    if fields:
        first = "header" if file.csv.header else "first row"
        return (
            f"{place}: the row has {fields[2]} fields, the {first} {fields[1]}: "
            f"{text.partition(fields[0] + ': ')[2]}; put a field that holds the delimiter or a line end into quotes"
        )
    return f"{place}: the {file.format} file cannot be read ({text}); write it again, or leave it out of source.path"
