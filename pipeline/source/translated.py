"""Translate pyarrow's errors about a file into messages with file, row and remedy. Edge: files."""

import re

import pyarrow as pa

from pipeline.errors import PipelineError, SourceError
from pipeline.source import kinds
from pipeline.source.files import SourceFile


class RowTooLong(Exception):
    """A row of a CSV file does not fit into a block."""


class TranslatedErrors:
    """A context that turns pyarrow's errors into a SourceError that names the file, or into RowTooLong."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if isinstance(exc, PipelineError):
            return
        if not isinstance(exc, pa.ArrowException | OSError | UnicodeError):
            return
        self.file.check()  # a file that is still being written may have any fault
        text = str(exc).splitlines()[0][:300] if str(exc) else type(exc).__name__
        if "straddl" in text:
            raise RowTooLong from exc
        if "Empty CSV file" in text:
            raise SourceError(f"source.path: {self.file.path} is empty") from exc
        raise SourceError(_translated(self.file, text, exc)) from exc


def _translated(file: SourceFile, text: str, exc: BaseException) -> str:
    """Return our message for an error of pyarrow, whose row numbers count the header; ours do not.

    text: the first line of the error's message.
    """
    row = re.search(r"Row #(\d+): ", text)
    place = f"{file.path} row {int(row[1]) - file.csv.header}" if row else file.path
    fields = re.search(r"Expected (\d+) columns, got (\d+): ", text)
    with file.open() as raw:
        start = raw.read(kinds.START_BYTES)
    if problem := file.mismatch(start):
        return f"{file.path} {problem}"
    wide = start[:2] in (b"\xff\xfe", b"\xfe\xff")
    if (wide and file.compression is None) or "UTF8" in text or isinstance(exc, UnicodeError):
        return other_encoding(place if row else f"{place}: the header" if file.format == "csv" else place, file)
    if fields:
        return f"{place}: {_ragged(file, int(fields[1]), int(fields[2]), text[fields.end() :])}"
    return f"{place}: the {file.format} file cannot be read ({text}); write it again, or leave it out of source.path"


def other_encoding(place: str, file: SourceFile) -> str:
    """Return the message for bytes that are not text in the file's encoding."""
    return f"{place}: the text is not in {file.encoding}; set source.encoding to the file's encoding"


def _ragged(file: SourceFile, wanted: int, got: int, row: str) -> str:
    """Return problem and remedy for a row with too few or too many fields. wanted, got: numbers of fields."""
    first = "header" if file.csv.header else "first row"
    problem = f"the row has {got} field{'' if got == 1 else 's'}, the {first} {wanted}: {row}"
    return f"{problem}; {_remedy(file, wanted, got, row, first)}" if row.strip() else "the line is blank; remove it"


def _remedy(file: SourceFile, wanted: int, got: int, row: str, first: str) -> str:
    """Return what to do about a row with a wrong number of fields. first: what has the right number, for messages."""
    delimiter = repr(file.delimiter)
    if file.csv.comment is None and row.startswith(("#", "//")):
        return f"if lines that begin with {row[:1]!r} are comments, set source.csv.comment"
    if got < wanted:
        return "complete the row, remove it, or put a field that holds a line end into quotes"
    if row.endswith(file.delimiter * (got - wanted)) and row.count(file.delimiter) == got - 1:
        return f"remove the delimiter ({delimiter}) at the end of the row, or name the column in the {first}"
    if wanted == 1 and file.csv.header:
        return "if there are lines before the header, set source.csv.skip to their number"
    return f"put a field that holds the delimiter ({delimiter}) into quotes"
