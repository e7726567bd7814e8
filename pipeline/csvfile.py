"""CSV and TSV files as polars frames. Edge: files."""

import contextlib
import csv
import io
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.csv

from pipeline.errors import SourceError
from pipeline.files import SourceFile
from pipeline.frames import BLOCK_BYTES, LONGEST_ROW, Frame, of_arrow
from pipeline.identity import columns_of
from pipeline.readahead import ReadAhead
from pipeline.translated import RowTooLong, Translated


def columns(file: SourceFile) -> list[str]:
    for block in (BLOCK_BYTES, LONGEST_ROW):
        with contextlib.suppress(RowTooLong), Translated(file), ReadAhead(file) as ahead:
            ahead.reader = _csv_reader(ahead, file, [], block)
            found = list(ahead.reader.schema.names)
            if file.csv.header:
                return found
            return [f"column_{i + 1}" for i in range(len(found))] if file.csv.columns is None else file.csv.columns
    raise SourceError(f"{file.path} row 1: the row is longer than {LONGEST_ROW:,} bytes")


def frames(file: SourceFile, own: list[str], names: list[str]) -> Iterator[Frame]:
    rows, block = 0, BLOCK_BYTES
    # the last column is where a quote that is never closed swallows the rest of the file without an error
    last = own[-1]
    read = names if last in names else [*names, last]
    end: str | None = ""
    while True:
        skip = rows
        try:
            with Translated(file), ReadAhead(file) as ahead:
                ahead.reader = _csv_reader(ahead, file, read, block, own)
                for batch in ahead.batches():
                    frame = of_arrow(batch)
                    frame.columns = read
                    new = frame.slice(skip)
                    skip -= frame.height - new.height
                    rows += new.height
                    if new.height:
                        end = new.get_column(last)[-1]
                        yield Frame(rows - new.height + 1, columns_of(new, names))
        except RowTooLong:
            if block >= LONGEST_ROW:
                raise SourceError(f"{file.path} row {rows + 1}: the row is longer than {LONGEST_ROW:,} bytes") from None
            block = min(block * 16, LONGEST_ROW)  # read on behind what was handed out, in larger blocks
            continue
        if file.csv.quote and ("\n" in (end or "") or _is_cut_in_quotes(file, end or "")):
            _refuse_open_quote(file, rows)
        return


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
