"""Local files to rows, in bounded chunks, each row with the place it came from. Edge: files.

CSV, TSV and NDJSON (plain, .gz, .zst) and Parquet are read by pyarrow as streams; a chunk is a polars frame.
"""

import contextlib
import csv
import glob
import io
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipeline.errors import SourceError
from pipeline.identity import columns_of
from pipeline.job import Source

CHUNK_ROWS = 5_000
CHUNK_BYTES = 2_000_000  # of a frame: what is in memory at once, when rows are long
BLOCK_BYTES = 1_000_000  # read at once from a text file; the parser holds several times as much
LONGEST_ROW = 1_000_000_000  # bytes; only met when one row does not fit into a block

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. format: csv, parquet or ndjson; compression: gzip, zstd or None."""

    path: Path
    format: str
    compression: str | None
    delimiter: str


@dataclass(frozen=True)
class Chunk:
    """Up to CHUNK_ROWS rows of one file. numbers: for each row its number in the file, from 1."""

    file: SourceFile
    frame: pl.DataFrame
    numbers: Sequence[int]

    def place(self, i: int) -> str:
        """Where the i-th row stands, for a message."""
        return f"{self.file.path.name} row {self.numbers[i]}"

    def part(self, start: int, end: int) -> "Chunk":
        """Its rows from `start` to before `end`."""
        return Chunk(self.file, self.frame[start:end], self.numbers[start:end])


class Rows:
    """The rows of a source: which columns they have, and a stream of them that can be read again."""

    def __init__(self, source: Source) -> None:
        """Finds the files and reads their headers. Raises SourceError that names the path, file or column."""
        self._source = source
        _check_encoding(source.encoding)
        self.files = _find(source.path)
        self.columns = _common_columns(self.files, source)
        self._dtypes = _dtypes(source)
        self.require(list(self._dtypes), "source.types")

    def require(self, names: Sequence[str], by: str) -> None:
        """Raises SourceError unless the source has all these columns. by: what names them, for the message."""
        for name in names:
            if name not in self.columns:
                import difflib

                near = difflib.get_close_matches(name, self.columns, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                known = ", ".join(self.columns[:20])
                raise SourceError(f"{by} names column {name!r}, which the source does not have (it has: {known}){hint}")

    def chunks(
        self, columns: Sequence[str], *, limit: int | None = None, files: Sequence[SourceFile] | None = None
    ) -> Iterator[Chunk]:
        """The rows that `where` leaves, in the order of the files, with these columns only.

        limit: stop after so many rows; files: of these only. Raises SourceError that names file, row and column.
        """
        where, needed = self._where(), list(dict.fromkeys(columns))
        read = list(dict.fromkeys([*needed, *([] if where is None else where.meta.root_names())]))
        self.require(read, "source.where" if where is not None else "the job")
        return _ahead(self._chunks(where, needed, read, limit, self.files if files is None else files))

    def _chunks(
        self, where: pl.Expr | None, needed: list[str], read: list[str], limit: int | None, files: Sequence[SourceFile]
    ) -> Iterator[Chunk]:
        left = limit
        for file in files:
            number = 1
            for frame in _frames(file, read, self._source.encoding):
                typed = self._typed(frame, file, number)
                numbers: Sequence[int] = range(number, number + frame.height)
                number += frame.height
                if where is not None:
                    kept = self._filter(typed, where)
                    numbers = [numbers[i] for i in kept]
                    typed = typed[kept]
                if left is not None:
                    typed, numbers = typed.head(left), numbers[:left]
                    left -= typed.height
                if typed.height:
                    yield Chunk(file, columns_of(typed, needed), numbers)
                if left == 0:
                    return

    def kinds(self, columns: Sequence[str]) -> dict[str, str]:
        """For each column what its values are in SQL: text, integer, number, boolean, date, datetime or json.

        NDJSON says it value by value, so there the whole source is looked at; values of several kinds are text.
        """
        found: dict[str, set[str]] = {name: set() for name in columns}
        for file in self.files:
            for frame in _frames(file, list(columns), self._source.encoding):
                typed = self._typed(frame, file, 1)
                for name in columns:
                    found[name] |= _kinds(typed.get_column(name))
                if file.format != "ndjson":
                    break
            if file.format != "ndjson" and all(found.values()):
                break
        return {name: kinds.pop() if len(kinds) == 1 else "text" for name, kinds in found.items()}

    def _where(self) -> pl.Expr | None:
        if self._source.where is None:
            return None
        try:
            return pl.sql_expr(self._source.where)
        except (pl.exceptions.PolarsError, ValueError) as exc:
            raise SourceError(f"source.where: {self._source.where!r} is not a SQL predicate: {exc}") from exc

    def _filter(self, frame: pl.DataFrame, where: pl.Expr) -> list[int]:
        try:
            mask = frame.select(where.alias("kept"))["kept"]
            if mask.dtype != pl.Boolean:
                raise SourceError(f"source.where: {self._source.where!r} is {mask.dtype}, not true or false")
            return mask.fill_null(value=False).arg_true().to_list()
        except pl.exceptions.PolarsError as exc:
            raise SourceError(
                f"source.where: {self._source.where!r} cannot be applied: {str(exc).splitlines()[0]}; "
                "columns of a text file are text unless source.types says otherwise"
            ) from exc

    def _typed(self, frame: pl.DataFrame, file: SourceFile, first: int) -> pl.DataFrame:
        """`frame` with the columns of `source.types` cast; an empty text becomes null."""
        for name, dtype in self._dtypes.items():
            if name not in frame.columns or frame.schema[name] != pl.String:
                continue
            text = frame[name]
            cast = _cast(text, dtype)
            bad = (cast.is_null() & text.is_not_null() & (text != "")).arg_true()
            if bad.len():
                i = bad[0]
                raise SourceError(
                    f"{file.path} row {first + i}: column {name!r} is {text[i]!r}, which is no "
                    f"{self._source.types[name]} (source.types)"
                )
            frame = frame.with_columns(cast.alias(name))
        return frame


def _ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same chunks, each read while the one before is being worked on: parsing leaves Python to other threads."""
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        coming = reader.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = reader.submit(next, chunks, None)
            yield chunk


def _check_encoding(encoding: str) -> None:
    try:
        "".encode(encoding)
    except (LookupError, ValueError) as exc:  # base64 and its like are codecs, too, but not of text
        raise SourceError(f"source.encoding: {encoding!r} is no encoding of text that Python knows") from exc


def _find(paths: Sequence[str]) -> list[SourceFile]:
    found: list[SourceFile] = []
    for path in paths:
        if "://" in path:
            raise SourceError(f"source.path: {path}: this version reads local files only")
        found += [_source_file(file) for file in _expand(path)]
    formats = {file.format for file in found}
    if len(formats) > 1:
        raise SourceError(f"source.path: the files are of different formats ({', '.join(sorted(formats))})")
    return found


def _expand(path: str) -> list[Path]:
    if glob.has_magic(path) and not os.path.exists(path):
        files = [Path(name) for name in sorted(glob.glob(path, recursive=True)) if os.path.isfile(name)]
        if not files:
            raise SourceError(f"source.path: no file matches {path}")
        return files
    if os.path.isdir(path):
        files = sorted(f for f in Path(path).rglob("*") if f.is_file() and _format(f) and not f.name.startswith("."))
        if not files:
            raise SourceError(f"source.path: folder {path} holds no CSV, TSV, Parquet or NDJSON file")
        return files
    if not os.path.exists(path):
        raise SourceError(f"source.path: {path} does not exist")
    return [Path(path)]


def _format(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def _source_file(path: Path) -> SourceFile:
    kind, last = _format(path), path.suffix.lower()
    if kind is None:
        raise SourceError(f"source.path: {path}: unknown kind of file; known are {', '.join(FORMATS)}, also .gz, .zst")
    if kind == "parquet" and last in COMPRESSIONS:
        raise SourceError(f"source.path: {path}: Parquet compresses by itself; give the .parquet file")
    if path.stat().st_size == 0:
        raise SourceError(f"source.path: {path} is empty")
    delimiter = "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes] else ","
    return SourceFile(path, kind, COMPRESSIONS.get(last), delimiter)


def _common_columns(files: Sequence[SourceFile], source: Source) -> list[str]:
    first: list[str] = []
    for file in files:
        columns = _columns(file, source.encoding)
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice:
            raise SourceError(f"{file.path}: column {twice[0]!r} stands twice in the header; rename one")
        if not first:
            first = columns
        elif file.format == "ndjson":  # a field may be absent where it has no value
            first += [name for name in columns if name not in first]
        elif set(columns) != set(first):
            name = sorted(set(columns) ^ set(first))[0]
            has, lacks = (file, files[0]) if name in columns else (files[0], file)
            raise SourceError(f"column {name!r} is in {has.path} but not in {lacks.path}; all files need the same ones")
    if files[0].format == "parquet":
        _refuse_other_types(files)
    return first


def _refuse_other_types(files: Sequence[SourceFile]) -> None:
    """A column of Parquet files has one type: 17 and "17" would be two keys, and one row of answers."""
    first: dict[str, Any] = {}
    for file in files:
        with _translated(file):
            schema = pa.parquet.read_schema(file.path)
        for name, kind in zip(schema.names, schema.types, strict=True):
            if first.setdefault(name, kind) != kind:
                raise SourceError(
                    f"column {name!r} is {first[name]} in {files[0].path} and {kind} in {file.path}; "
                    "all files need the same types"
                )


def _columns(file: SourceFile, encoding: str) -> list[str]:
    if file.format == "parquet":
        with _translated(file):
            return list(pa.parquet.read_schema(file.path).names)
    if file.format == "csv":
        return _csv_columns(file, encoding)
    first = next(_ndjson_objects(file, encoding), None)
    if first is None:
        raise SourceError(f"source.path: {file.path} is empty")
    return list(dict.fromkeys(name for item in first for name in item))


def _csv_columns(file: SourceFile, encoding: str) -> list[str]:
    for block in (BLOCK_BYTES, LONGEST_ROW):
        with contextlib.suppress(_RowTooLong), _translated(file), _csv_reader(file, [], encoding, block) as reader:
            return list(reader.schema.names)
    raise SourceError(f"{file.path} row 1: the row is longer than {LONGEST_ROW:,} bytes")


def _frames(file: SourceFile, columns: list[str], encoding: str) -> Iterator[pl.DataFrame]:
    """The file's rows as frames of at most CHUNK_ROWS rows and about CHUNK_BYTES bytes, columns in this order."""
    if file.format == "ndjson":  # is in chunks already, and each has types of its own
        yield from _ndjson_frames(file, columns, encoding)
        return
    readers = {"parquet": _parquet_frames, "csv": _csv_frames}
    gathered: list[pl.DataFrame] = []
    height = size = 0
    for frame in readers[file.format](file, columns, encoding):
        pa.default_memory_pool().release_unused()  # else it keeps some hundred megabytes for better times
        for part in frame.iter_slices(_rows_of_a_chunk(frame)):
            part_size = int(part.estimated_size())
            if gathered and (height + part.height > CHUNK_ROWS or size + part_size > CHUNK_BYTES):
                yield pl.concat(gathered)
                gathered, height, size = [], 0, 0
            gathered.append(part)
            height += part.height
            size += part_size
    if gathered:
        yield pl.concat(gathered)


def _rows_of_a_chunk(frame: pl.DataFrame) -> int:
    """How many rows of this frame make a chunk of CHUNK_BYTES, at most CHUNK_ROWS."""
    mean = frame.estimated_size() / max(1, frame.height)
    return max(1, min(CHUNK_ROWS, int(CHUNK_BYTES / max(1.0, mean))))


def _parquet_frames(file: SourceFile, columns: list[str], encoding: str) -> Iterator[pl.DataFrame]:
    del encoding  # Parquet says itself what its text is
    # not pre-buffered: a row group may be larger than all the memory we want to use
    with _translated(file), pa.parquet.ParquetFile(file.path, pre_buffer=False, buffer_size=BLOCK_BYTES) as parquet:
        for batch in parquet.iter_batches(batch_size=CHUNK_ROWS, columns=columns, use_threads=False):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield columns_of(frame, columns)


def _csv_frames(file: SourceFile, columns: list[str], encoding: str) -> Iterator[pl.DataFrame]:
    rows, block = 0, BLOCK_BYTES
    # the last column is where a quote that is never closed swallows the rest of the file without an error
    last = _csv_columns(file, encoding)[-1]
    read = columns if last in columns else [*columns, last]
    end: str | None = ""
    while True:
        skip = rows
        try:
            with _translated(file), _csv_reader(file, read, encoding, block) as reader:
                for batch in reader:
                    frame = pl.from_arrow(batch)
                    assert isinstance(frame, pl.DataFrame)
                    frame.columns = read
                    new = frame.slice(skip)
                    skip -= frame.height - new.height
                    rows += new.height
                    if new.height:
                        end = new.get_column(last)[-1]
                        yield columns_of(new, columns)
        except _RowTooLong:
            if block >= LONGEST_ROW:
                raise SourceError(f"{file.path} row {rows + 1}: the row is longer than {LONGEST_ROW:,} bytes") from None
            block = min(block * 16, LONGEST_ROW)  # read on behind what was handed out, in larger blocks
            continue
        if "\n" in (end or "") or _is_cut_in_quotes(file, end or "", encoding):
            _refuse_open_quote(file, rows, encoding)
        return


class _RowTooLong(Exception):
    """One row does not fit into a block of a CSV file."""


def _csv_reader(file: SourceFile, columns: list[str], encoding: str, block: int) -> Any:
    stream = pa.input_stream(str(file.path), compression=file.compression)
    return pa.csv.open_csv(
        stream,
        read_options=pa.csv.ReadOptions(use_threads=False, block_size=block, encoding=encoding),
        parse_options=pa.csv.ParseOptions(delimiter=file.delimiter, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            strings_can_be_null=False,  # an empty field is empty text, and NULL is a word
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),  # 08123 stays 08123
        ),
    )


def _is_cut_in_quotes(file: SourceFile, end: str, encoding: str) -> bool:
    """Whether the file seems to end inside of a quoted field, whose value is `end`, without a line end behind it."""
    field = ('"' + end.replace('"', '""')).encode(encoding)
    with file.path.open("rb") as raw:
        size = raw.seek(0, os.SEEK_END)
        raw.seek(max(0, size - len(field) - 1))
        tail = raw.read()
    return tail.endswith(field) and tail[: -len(field)] in (b"\n", b"\r", file.delimiter.encode())


def _refuse_open_quote(file: SourceFile, rows: int, encoding: str) -> None:
    """Raises SourceError if the file ends inside of quotes: then a row put behind it is none of its own.

    Python's parser reads the whole file for that, so it is asked only when the last field holds a line end.
    """
    mark = "-- the end --"
    csv.field_size_limit(LONGEST_ROW)
    with pa.input_stream(str(file.path), compression=file.compression) as stream:
        lines = io.TextIOWrapper(io.BufferedReader(stream), encoding=encoding, newline="")
        row: list[str] = []
        for row in csv.reader(chain(lines, ["\n", mark]), delimiter=file.delimiter):  # noqa: B007  # the last one counts
            pass
    if row != [mark]:
        raise SourceError(f'{file.path} row {rows}: a quote (") is opened and never closed')


def _ndjson_frames(file: SourceFile, columns: list[str], encoding: str) -> Iterator[pl.DataFrame]:
    for objects in _ndjson_objects(file, encoding):
        yield pl.DataFrame({name: _json_column([item.get(name) for item in objects]) for name in columns})


def _json_column(values: list[Any]) -> pl.Series:
    """JSON values as a series; where they are of several kinds, or nested, as the objects they are.

    So each value stays what it is in its file, whatever stands beside it: a series has one type for all.
    """
    kinds = {type(value) for value in values if value is not None}
    large = int in kinds and any(isinstance(v, int) and not -(2**63) <= v < 2**63 for v in values)
    if len(kinds) > 1 or kinds & {dict, list} or large:
        return pl.Series(values, dtype=pl.Object)
    return pl.Series(values)


def _ndjson_objects(file: SourceFile, encoding: str) -> Iterator[list[dict[str, Any]]]:
    """The objects of an NDJSON file, in lists of at most CHUNK_ROWS and about CHUNK_BYTES bytes of text."""
    objects: list[dict[str, Any]] = []
    size = 0
    for number, line in enumerate(_lines(file), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no content
        if not line.strip():
            continue
        try:
            value = orjson.loads(line if encoding == "utf-8" else line.decode(encoding))
        except (orjson.JSONDecodeError, UnicodeDecodeError) as exc:
            raise SourceError(f"{file.path} line {number}: this is not JSON in {encoding}: {exc}") from exc
        if not isinstance(value, dict):
            raise SourceError(f"{file.path} line {number}: each line must be a JSON object")
        objects.append(value)
        size += len(line)
        if len(objects) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield objects
            objects, size = [], 0
    if objects:
        yield objects


def _lines(file: SourceFile) -> Iterator[bytes]:
    """The file's lines, split at \\n only: JSON text may hold other characters that Python takes for line ends."""
    with _translated(file), pa.input_stream(str(file.path), compression=file.compression) as stream:
        rest: list[bytes] = []
        while data := stream.read(1_000_000):
            *lines, tail = data.split(b"\n")
            for line in lines:
                yield b"".join([*rest, line]) if rest else line
                rest = []
            rest.append(tail)
        if any(rest):
            yield b"".join(rest)


class _translated:
    """Turns what pyarrow raises into a SourceError that names the file, or into _RowTooLong."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if not isinstance(exc, pa.ArrowException | OSError | UnicodeError):
            return
        text = str(exc).splitlines()[0][:300] if str(exc) else type(exc).__name__
        if "straddl" in text:
            raise _RowTooLong from exc
        if "Empty CSV file" in text:
            raise SourceError(f"source.path: {self.file.path} is empty") from exc
        raise SourceError(_said(self.file, text, exc)) from exc


def _said(file: SourceFile, text: str, exc: BaseException) -> str:
    """What pyarrow says of a file, in our words; its rows count the header, ours do not."""
    row = re.search(r"Row #(\d+): ", text)
    place = f"{file.path} row {int(row[1]) - 1}" if row else str(file.path)
    fields = re.search(r"Expected (\d+) columns, got (\d+)", text)
    with open(file.path, "rb") as start:
        wide = start.read(2) in (b"\xff\xfe", b"\xfe\xff")
    if (wide and file.compression is None) or "UTF8" in text or isinstance(exc, UnicodeError):
        return f"{place}: the text is in another encoding; say the file's encoding in source.encoding"
    if fields:
        return (
            f"{place}: the row has {fields[2]} fields, the header {fields[1]}: {text.partition(fields[0] + ': ')[2]}; "
            "put a field that holds the delimiter or a line end into quotes"
        )
    return f"{place}: the {file.format} file cannot be read ({text}); write it again, or leave it out of source.path"


_DTYPES: dict[str, Any] = {
    "String": pl.String,
    "Int64": pl.Int64,
    "Int32": pl.Int32,
    "Float64": pl.Float64,
    "Boolean": pl.Boolean,
    "Date": pl.Date,
    "Datetime": pl.Datetime("us"),
}


def _dtypes(source: Source) -> dict[str, Any]:
    for name, dtype in source.types.items():
        if dtype not in _DTYPES:
            raise SourceError(f"source.types.{name}: {dtype!r} is not known; known are {', '.join(_DTYPES)}")
    return {name: _DTYPES[dtype] for name, dtype in source.types.items() if dtype != "String"}


def _cast(text: pl.Series, dtype: Any) -> pl.Series:
    """`text` as `dtype`, null where it is not of that kind."""
    if dtype == pl.Boolean:
        words = {"true": True, "false": False, "1": True, "0": False}
        return text.str.to_lowercase().replace_strict(words, default=None, return_dtype=pl.Boolean)
    if dtype == pl.Date:
        return text.str.to_date("%Y-%m-%d", strict=False)
    if isinstance(dtype, pl.Datetime):
        plain = text.str.replace("T", " ", literal=True).str.strip_suffix("Z")
        forms = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
        parsed = [plain.str.to_datetime(form, time_unit="us", strict=False) for form in forms]
        return pl.select(pl.coalesce([pl.lit(series) for series in parsed])).to_series()
    return text.cast(dtype, strict=False)


def _kinds(column: pl.Series) -> set[str]:
    """What the values of a column are in SQL; nothing for a column of nulls out of NDJSON."""
    if column.dtype == pl.Object:
        values = [value for value in column.to_list() if value is not None]
        large = {"text" for value in values if type(value) is int and not -(2**63) <= value < 2**63}
        return large | {_JSON_KINDS.get(type(value), "json") for value in values}
    return set() if column.dtype == pl.Null else {_kind(column.dtype)}


_JSON_KINDS: dict[type, str] = {str: "text", int: "integer", float: "number", bool: "boolean"}


def _kind(dtype: pl.DataType) -> str:
    if dtype.is_integer():
        return "integer" if dtype not in (pl.UInt64, pl.Int128, pl.UInt128) else "text"  # no column takes all of them
    if dtype.is_float():
        return "number"
    if dtype.is_decimal():
        return "text"  # exact, as it stands
    if dtype == pl.Boolean:
        return "boolean"
    if dtype == pl.Date:
        return "date"
    if dtype == pl.Datetime:
        return "datetime"
    if dtype.is_nested() or dtype == pl.Binary:
        return "json"
    return "text"
