"""What pyarrow says of a file that it cannot read, in our words. Edge: files."""

import re

import pyarrow as pa

from pipeline.errors import PipelineError, SourceError
from pipeline.files import SourceFile


class RowTooLong(Exception):
    """One row does not fit into a block of a CSV file."""


class Translated:
    """Turns what pyarrow raises into a SourceError that names the file, or into RowTooLong."""

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
            raise RowTooLong from exc
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
