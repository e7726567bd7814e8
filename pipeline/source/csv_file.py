"""Read CSV and TSV files as polars frames, whose columns are all text. Edge: files."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv

from pipeline.errors import SourceError
from pipeline.source import csv_text
from pipeline.source.files import SourceFile
from pipeline.source.frames import BLOCK_BYTES, LONGEST_ROW, Frame, from_arrow
from pipeline.source.identity import columns_of
from pipeline.source.readahead import ReadAhead
from pipeline.source.translated import RowTooLong, TranslatedErrors


def columns(file: SourceFile) -> list[str]:
    """Return the names of a file's columns: from the header, the job, or column_1, ... Raises SourceError."""
    for block in (BLOCK_BYTES, LONGEST_ROW):
        with contextlib.suppress(RowTooLong), TranslatedErrors(file), ReadAhead(csv_text.open_text(file)) as ahead:
            ahead.reader = _csv_reader(ahead, file, [], block)
            found = list(ahead.reader.schema.names)
            if file.csv.header:
                return found
            return [f"column_{i + 1}" for i in range(len(found))] if file.csv.columns is None else file.csv.columns
    raise SourceError(f"{file.path} row 1: the row is longer than {LONGEST_ROW:,} bytes")


def frames(file: SourceFile, own: list[str], names: list[str]) -> Iterator[Frame]:
    """Yield the rows of a file. own: all its columns; names: the columns to read. Raises SourceError."""
    rows, block = 0, BLOCK_BYTES
    read = names or own[-1:]  # for no column pyarrow would read all
    while True:
        skip = rows
        try:
            with TranslatedErrors(file), ReadAhead(csv_text.open_text(file)) as ahead:
                ahead.reader = _csv_reader(ahead, file, read, block, own)
                for batch in ahead.batches():
                    frame = from_arrow(batch)
                    frame.columns = read
                    new = frame.slice(skip)
                    skip -= frame.height - new.height
                    rows += new.height
                    if new.height:
                        yield Frame(rows - new.height + 1, columns_of(new, names))
        except RowTooLong:
            if block >= LONGEST_ROW:
                raise SourceError(f"{file.path} row {rows + 1}: the row is longer than {LONGEST_ROW:,} bytes") from None
            block = min(block * 4, LONGEST_ROW)  # start again in larger blocks; `skip` drops the rows yielded already
            continue
        return


def _csv_reader(ahead: ReadAhead, file: SourceFile, names: list[str], block: int, own: list[str] | None = None) -> Any:
    """Return pyarrow's reader. names: the columns to read; own: all columns, for a file without a header."""
    unnamed = {} if file.csv.header else {"column_names": own} if own else {"autogenerate_column_names": True}
    nulls = file.csv.null_values
    return pa.csv.open_csv(
        ahead.stream,
        read_options=pa.csv.ReadOptions(use_threads=False, block_size=block, **unnamed),
        parse_options=pa.csv.ParseOptions(
            delimiter=file.delimiter,
            newlines_in_values=True,
            quote_char=file.csv.quote or False,
            escape_char=file.csv.escape or False,
        ),
        convert_options=pa.csv.ConvertOptions(
            null_values=nulls,
            strings_can_be_null=bool(nulls),  # without null_values an empty field is empty text, and NULL is a word
            quoted_strings_can_be_null=False,
            include_columns=names,
            column_types=dict.fromkeys(names, pa.string()),  # 08123 stays 08123
        ),
    )
