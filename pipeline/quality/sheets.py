"""Write and read spreadsheets in which people fill in columns: .xlsx and .csv. Edge: files.

Excel and LibreOffice change what they take for numbers, dates and formulas, and save CSV with other separators and
encodings. So all cells of a workbook are written as texts, a formula in a CSV file gets an apostrophe in front, which
reading takes off again, and reading finds out separator and encoding by itself.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pipeline.errors import InputError
from pipeline.escapes import escaped, inline
from pipeline.sink.export import require_parent, whole_file
from pipeline.sink.formats import FORMULAS
from pipeline.storage import durable

WORKBOOKS = (".xlsx", ".ods")  # .ods is read only
LONGEST_CELL = 32_000  # UTF-16 units; Excel takes 32,767 in a cell
MOST_LINES = 100_000
CUT = " ... (cut)"
RANGES_AT_ONCE = 200  # of cells with one drop-down: Excel does not take a list of any length
_SEPARATORS = (",", ";", "\t")
_ERROR = re.compile(r".*'Error\((\w+)\)'.*")  # what fastexcel says of a cell that shows an error


@dataclass
class Sheet:
    """A table for people. rows: texts in the order of the headings.

    filled: the headings of the columns that people fill in. choices: by heading, the texts between which they choose in
    some rows, and the indexes of these rows. long: the headings of columns with long texts.
    """

    headings: list[str]
    rows: list[list[str]]
    filled: list[str] = field(default_factory=list)
    choices: dict[str, list[tuple[list[str], list[int]]]] = field(default_factory=dict)
    long: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """A line of a read sheet. number: in the sheet, from 1 on; cells: texts by heading in lower case, "" if empty."""

    number: int
    cells: dict[str, str]

    def __getitem__(self, heading: str) -> str:
        """Return the text of a cell without outer blanks; "" if the sheet has no such column."""
        return self.cells.get(heading, "").strip()


# -- writing ---------------------------------------------------------------------------------------------------------


def check_place(path: Path, *, overwrite: bool) -> None:
    """Raise InputError for a file that cannot be written: another ending, no such folder, or it exists."""
    if path.suffix.lower() not in (".xlsx", ".csv"):
        raise InputError(f"{path}: the name must end in .xlsx or .csv")
    if path.is_symlink() or (path.exists() and not overwrite):
        raise InputError(f"{path} exists; give another name, or --overwrite")
    require_parent(path)


def write_sheet(path: Path, sheet: Sheet) -> None:
    """Write a sheet to a file, whole or not at all. Raises InputError for too many lines, and Stopped if a disk fails.

    path: see `check_place`.
    """
    if len(sheet.rows) > MOST_LINES:
        raise InputError(f"{len(sheet.rows):,} lines are too many for people; choose rows by --sample or --where")
    rows = [[_cell(text) for text in row] for row in sheet.rows]
    with whole_file(path) as part, open(part, "wb") as out:
        if path.suffix.lower() == ".csv":
            _write_csv(out, sheet.headings, rows)
        else:
            _write_workbook(out, sheet, rows)
        durable.sync_file(out)


def _cell(text: str) -> str:
    """Return a text as a cell shows it: without control characters, and as long as Excel takes."""
    shown = escaped(text.replace("\r\n", "\n"))
    units = shown.encode("utf-16-le")
    if len(units) <= 2 * LONGEST_CELL:
        return shown
    return units[: 2 * LONGEST_CELL].decode("utf-16-le", "ignore") + CUT


def _write_csv(out: IO[bytes], headings: list[str], rows: list[list[str]]) -> None:
    """Write UTF-8 with a byte order mark, without which Excel reads another encoding."""
    text = io.TextIOWrapper(out, encoding="utf-8-sig", newline="")
    writer = csv.writer(text)
    writer.writerows([f"'{cell}" if cell.startswith(FORMULAS) else cell for cell in row] for row in (headings, *rows))
    text.detach()


def _write_workbook(out: IO[bytes], sheet: Sheet, rows: list[list[str]]) -> None:
    import xlsxwriter

    book = xlsxwriter.Workbook(out, {"in_memory": True})
    page = book.add_worksheet("reviews")
    plain = book.add_format({"valign": "top", "text_wrap": True, "num_format": "@"})  # @: typed values stay texts
    to_fill = book.add_format({"valign": "top", "num_format": "@", "bg_color": "#FFF8DC", "border": 1})
    bold = book.add_format({"bold": True})
    for i, heading in enumerate(sheet.headings):
        page.set_column(i, i, 60 if heading in sheet.long else 14)
        page.write_string(0, i, heading, bold)
    formats = [to_fill if heading in sheet.filled else plain for heading in sheet.headings]
    for n, row in enumerate(rows, 1):
        for i, cell in enumerate(row):
            if cell or formats[i] is to_fill:
                page.write_string(n, i, cell, formats[i]) if cell else page.write_blank(n, i, None, formats[i])
    page.freeze_panes(1, 0)
    if rows:
        page.autofilter(0, 0, len(rows), len(sheet.headings) - 1)
    _add_choices(book, page, sheet)
    book.close()


def _add_choices(book: Any, page: Any, sheet: Sheet) -> None:
    """Add the drop-downs. They refer to a second sheet, because a list inside one takes 255 characters in all."""
    from xlsxwriter.utility import xl_col_to_name

    listed = [(heading, *one) for heading, found in sheet.choices.items() for one in found if one[1]]
    if not listed:
        return
    lists = book.add_worksheet("choices")
    lists.hide()
    for n, (heading, texts, places) in enumerate(listed):
        for i, text in enumerate(texts):
            lists.write_string(i, n, text)
        column, name = sheet.headings.index(heading), xl_col_to_name(n, col_abs=True)
        source = f"=choices!{name}$1:{name}${len(texts)}"
        ranges = [(first + 1, column, last + 1, column) for first, last in _runs(places)]
        for start in range(0, len(ranges), RANGES_AT_ONCE):
            first, *others = ranges[start : start + RANGES_AT_ONCE]
            page.data_validation(*first, {"validate": "list", "source": source, "other_cells": others})


def _runs(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of each run of consecutive numbers. places: in ascending order."""
    first = last = places[0]
    for place in places[1:]:
        if place != last + 1:
            yield first, last
            first = place
        last = place
    yield first, last


# -- reading ---------------------------------------------------------------------------------------------------------


def read_sheet(path: Path, heading: str) -> list[Line]:
    """Return the lines of a sheet that are not empty. heading: of a column by which its first line is found.

    Raises InputError for a file that cannot be read, or that has no such column.
    """
    ending = path.suffix.lower()
    if not path.is_file():
        raise InputError(f"{path} is no file")
    if ending not in (*WORKBOOKS, ".csv", ".tsv", ".txt"):
        raise InputError(f"{path}: the name must end in .xlsx, .ods or .csv")
    for rows in _sheets_of_workbook(path) if ending in WORKBOOKS else [_rows_of_text(path, heading)]:
        lines = _lines(rows, heading)
        if lines is not None:
            return lines
    raise InputError(f"{path} has no column {heading!r}; import a file that `review JOB export` has written")


def _lines(rows: Sequence[Sequence[str | None]], heading: str) -> list[Line] | None:
    """Return the lines below that with the headings; None if there is no such line among the first ones."""
    headings = [[(cell or "").strip().lower() for cell in row] for row in rows[:10]]
    first = next((i for i, names in enumerate(headings) if heading in names), None)
    if first is None:
        return None
    names, found = headings[first], []
    for number, row in enumerate(rows[first + 1 :], first + 2):
        cells: dict[str, str] = {}
        for name, cell in zip(names, row, strict=False):
            if name:
                cells.setdefault(name, _unguarded(cell or ""))
        if any(cell.strip() for cell in cells.values()):
            found.append(Line(number, cells))
    return found


def _unguarded(cell: str) -> str:
    """Return a cell without the apostrophe that the writing of CSV puts in front of a formula."""
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(FORMULAS) else cell


def _sheets_of_workbook(path: Path) -> Iterator[list[list[str | None]]]:
    """Yield the rows of each sheet of a workbook. A cell that shows an error, such as #REF!, has that as its text."""
    import fastexcel

    try:
        book = fastexcel.read_excel(path)
        for name in book.sheet_names:
            batch, errors = book.load_sheet(name, header_row=None, dtypes="string").to_arrow_with_errors()
            rows = [list(row) for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)]
            for error in () if errors is None else errors.errors:  # of these the library makes empty cells
                line, place = error.offset_position
                rows[line][place] = _ERROR.sub(lambda found: f"#{found[1].upper()}!", error.detail)
            yield rows
    except (OSError, fastexcel.FastExcelError) as exc:
        reason = str(exc).splitlines()[0]  # the next ones are where in its code the library met it
        raise InputError(f"{path} cannot be read as a workbook: {reason}; save it again as .xlsx or CSV") from exc


def _rows_of_text(path: Path, heading: str) -> list[list[str]]:
    """Return the rows of a CSV file, by the separator with which one of the first lines has this heading."""
    text = _text_of(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    found: list[tuple[int, list[list[str]]]] = []
    for separator in _SEPARATORS:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
        headings = [[cell.strip().lower() for cell in row] for row in rows[:10]]
        found += [(i, rows) for i, names in enumerate(headings) if heading in names][:1]
    return min(found, key=lambda one: one[0])[1] if found else []  # further down it may stand in a text


def _text_of(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 as Excel's "Unicode Text" is."""
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as exc:
        raise InputError(
            f'{path} is not in UTF-8 (byte {exc.start:,}); save it as "CSV UTF-8", or as a workbook'
        ) from exc


def place_of(path: Path, line: Line) -> str:
    """Return where a line is, for a message."""
    return f"{inline(path.name)}, line {line.number:,}"
