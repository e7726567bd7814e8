"""Read the rows of a source in chunks of bounded size, with file and row number of each. Edge: files, network, SQL."""

import difflib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Protocol

import polars as pl
import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.job.json_values import Unprintable, is_large
from pipeline.job.model import Source
from pipeline.prefetch import prefetch
from pipeline.source import exact, files
from pipeline.source.formats import FileInput
from pipeline.source.frame import frame_input
from pipeline.source.frames import LATE_FIELDS, Frame, from_arrow
from pipeline.source.identity import columns_of
from pipeline.source.predicate import Predicate
from pipeline.source.query import Query
from pipeline.storage.folders import Folder
from pipeline.text import folded


class Input(Protocol):
    """One input of a source: a file, a query, or a frame in memory.

    path: its full name, for messages; name: its short name. folder: where the paths of attachments begin.
    columns: all columns that its start shows. late_columns: the columns that only reading all of it shows.
    types: the Arrow types of its columns, which must be the same in all inputs; empty if there are none to compare.
    partition: columns that have one value for the whole input. by_value: whether each value has a type of its own,
    rather than each column. size: the bytes of the file; 0: it is none.
    frames: yields the rows; see formats.FileInput.frames.
    """

    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def folder(self) -> Folder: ...
    @property
    def columns(self) -> list[str]: ...
    @property
    def late_columns(self) -> list[str]: ...
    @property
    def types(self) -> dict[str, Any]: ...
    @property
    def partition(self) -> tuple[tuple[str, str | None], ...]: ...
    @property
    def by_value(self) -> bool: ...
    def frames(
        self, names: list[str], where: Predicate | None = None, known: frozenset[str] = frozenset()
    ) -> Iterator[Frame]: ...


HEADERS = 16  # files whose headers are read at the same time


@dataclass(frozen=True)
class Chunk:
    """Up to frames.CHUNK_ROWS rows of one input. numbers: each row's number in the input, from 1."""

    input: Input
    frame: pl.DataFrame
    numbers: Sequence[int]

    @property
    def folder(self) -> Folder:
        """The folder that the paths of attachments are relative to."""
        return self.input.folder

    def place(self, i: int) -> str:
        """Return where a row comes from, for a message: "tickets.csv row 17". i: its index in the chunk."""
        return f"{self.input.name} row {self.numbers[i]}"

    def part(self, start: int, end: int) -> "Chunk":
        """Return the chunk's rows from `start` to before `end`."""
        return Chunk(self.input, self.frame[start:end], self.numbers[start:end])


class Rows:
    """The rows of a source, which can be read several times.

    inputs: its files, or its query or frame. columns: those that the start of any input shows.
    """

    def __init__(self, source: Source) -> None:
        """Find the files and read their headers. Raises SourceError that names the path, file or column."""
        self._source = source
        _check_encoding(source.encoding)
        self.inputs = _inputs(source)
        self.columns = _all_columns(self.inputs)
        self._integers: dict[str, bool] = {}  # by required column; see `_is_integer`
        self._dtypes = _dtypes(source)
        self.require(list(self._dtypes), "source.types")

    def require(self, names: Sequence[str], by: str) -> None:
        """Raise SourceError unless all inputs have these columns, with the same types.

        by: the field that names them, for the message. A column that the starts of the inputs do not show is searched
        in all rows.
        """
        for name in names:
            if name not in self.columns and name not in self._late_columns and name != LATE_FIELDS:
                every = [*self.columns, *self._late_columns]
                hint = _hint(name, every)
                known = ", ".join(every[:20])
                raise SourceError(f"{by} names column {name!r}, which the source does not have (it has: {known}){hint}")
            if name not in self._integers and name in self.columns:
                _refuse_unclear(name, self.inputs)
                self._integers[name] = _is_integer(name, self.inputs)

    @cached_property
    def _late_columns(self) -> list[str]:
        """The columns that the start of no input shows."""
        found = dict.fromkeys(name for one in self.inputs for name in one.late_columns)
        return [name for name in found if name not in self.columns]

    @property
    def has_late_columns(self) -> bool:
        """Whether rows may have fields beyond `columns`; the column frames.LATE_FIELDS holds these fields."""
        return any(one.by_value for one in self.inputs)

    def chunks(
        self, columns: Sequence[str], *, limit: int | None = None, inputs: Sequence[Input] | None = None
    ) -> Iterator[Chunk]:
        """Yield the rows for which source.where is true, in the order of the inputs. No chunk is empty.

        columns: the only columns of the chunks. limit: the highest number of rows; None for all. inputs: the inputs to
        read; None for all. Raises SourceError that names file, row and column.
        """
        needed = list(dict.fromkeys(columns))
        where = None if self._source.where is None else Predicate(self._source.where, list(self._dtypes))
        read = list(dict.fromkeys([*needed, *([] if where is None else where.columns)]))
        self.require(read, "source.where" if where is not None else "the job")
        chunks = self._chunks(where, needed, read, limit, self.inputs if inputs is None else inputs)
        return prefetch(chunks, name="read")  # parsing leaves Python to other threads

    def _chunks(
        self, where: Predicate | None, needed: list[str], read: list[str], limit: int | None, inputs: Sequence[Input]
    ) -> Iterator[Chunk]:
        left, known = limit, frozenset(self.columns)
        for one in inputs if where is None else self._candidate_inputs(inputs, where):
            for first, frame in one.frames(read, where, known):
                typed = self._typed(frame, one, first)
                numbers: Sequence[int] = range(first, first + frame.height)
                if where is not None:
                    kept = where.kept(_comparable(typed, where.columns))
                    numbers = [numbers[i] for i in kept]
                    typed = typed[kept]
                if left is not None:
                    typed, numbers = typed.head(left), numbers[:left]
                    left -= typed.height
                if typed.height:
                    yield Chunk(one, columns_of(typed, needed), numbers)
                if left == 0:
                    return

    def _candidate_inputs(self, inputs: Sequence[Input], where: Predicate) -> list[Input]:
        """Return the inputs that may hold wanted rows, by the values in their folders' names; others stay unread."""
        names = [name for name, _ in inputs[0].partition]
        if set(names).isdisjoint(where.columns) or any([n for n, _ in one.partition] != names for one in inputs):
            return list(inputs)
        folder_values = pl.DataFrame(
            {name: [dict(one.partition)[name] for one in inputs] for name in names},
            schema=dict.fromkeys(names, pl.String),
        )
        typed = self._typed(folder_values, inputs[0], 1)
        others = {name: self._dtypes.get(name, pl.String) for name in where.columns if name not in names}
        if pl.Object in others.values():
            return list(inputs)
        if inputs[0].types:  # the predicate must fit the types that the files have
            known = [(name, kind) for name, kind in inputs[0].types.items() if name in others]
            empty = from_arrow(pa.table(pa.schema(known).empty_table()), inputs[0].path)
            others = {name: empty.schema[name] for name in others if name in empty.columns}
        return [inputs[i] for i in where.files(typed, others)]

    def kinds(self, columns: Sequence[str]) -> dict[str, str]:
        """Return each column's kind in SQL: text, integer, number, boolean, date, datetime or json.

        Values of several kinds make a text column. In NDJSON each value has its own kind, so all rows are read.
        """
        columns = list(dict.fromkeys(columns))
        self.require(columns, "the job")
        found: dict[str, set[str]] = {name: self._stored(name) for name in columns}
        for one in self.inputs:
            for first, frame in one.frames(list(columns)):
                typed = self._typed(frame, one, first)
                for name in columns:
                    found[name] |= _kinds(typed.get_column(name))
                if not one.by_value and all(found.values()):
                    break
            if not one.by_value and all(found.values()):
                break
        found |= {name: {"integer"} for name in columns if self._integers.get(name)}
        return {name: kinds.pop() if len(kinds) == 1 else "text" for name, kinds in found.items()}

    def _stored(self, name: str) -> set[str]:
        """Return a column's kinds in SQL by the types of the inputs; empty if these do not differ."""
        types = {str(kind): kind for one in self.inputs if (kind := one.types.get(name)) is not None}
        if len(types) < 2:
            return set()
        empty = [from_arrow(pa.table({name: pa.array([], kind)}), self.inputs[0].path) for kind in types.values()]
        return set().union(*(_kinds(frame.get_column(name)) for frame in empty))

    def _typed(self, frame: pl.DataFrame, one: Input, first: int) -> pl.DataFrame:
        """Return the frame with the columns of source.types cast; an empty text becomes null. Raises SourceError."""
        for name, dtype in self._dtypes.items():
            if name not in frame.columns or frame.schema[name] != pl.String:
                continue
            text = frame[name]
            cast = _cast(text, dtype)
            bad = (cast.is_null() & text.is_not_null() & (text != "")).arg_true()
            if bad.len():
                i = bad[0]
                raise SourceError(
                    f"{one.path} row {first + i}: column {name!r} is {text[i]!r}, which is not a valid "
                    f"{self._source.types[name]}; correct the value, or source.types"
                )
            frame = frame.with_columns(cast.alias(name))
        for name, is_integer in self._integers.items():
            if is_integer and name in frame.columns and frame.schema[name].is_float():
                frame = frame.with_columns(_as_integers(frame[name], one, first))
        return frame


def _hint(name: str, columns: Sequence[str]) -> str:
    """Return a hint for a column that does not exist: the delimiter, or a similar column; empty if there is none."""
    separators = [character for character in ";\t|" if len(columns) == 1 and character in columns[0]]
    if separators:
        return f"; fields seem to be separated by {separators[0]!r}: set source.csv.delimiter to it"
    other_case = [column for column in columns if folded(column) == folded(name)]
    near = other_case or difflib.get_close_matches(name, columns, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _comparable(frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Return the frame with columns that a predicate can compare: decimals as numbers, bytes that are text as text."""
    for name in columns:
        column = frame.get_column(name)
        if column.dtype == pl.Binary:
            texts = [None if isinstance(text, Unprintable) else text for text in exact.values_of(column)]
            frame = frame.with_columns(pl.Series(name, texts, dtype=pl.String))
        elif column.dtype == pl.Object and all(value is None or type(value) is Decimal for value in column.to_list()):
            numbers = [None if value is None else float(value) for value in column.to_list()]
            frame = frame.with_columns(pl.Series(name, numbers, dtype=pl.Float64))
    return frame


def _as_integers(column: pl.Series, one: Input, first: int) -> pl.Series:
    """Convert doubles to integers. Raises SourceError that names the row of a double that is not a whole number."""
    whole = column.cast(pl.Int64, strict=False)
    exactly = (whole.cast(column.dtype) == column) & (whole.abs() <= _EXACT_DOUBLES)
    bad = (~exactly.fill_null(value=False) & column.is_not_null()).arg_true()
    if bad.len():
        i = bad[0]
        raise SourceError(
            f"{one.path} row {first + i}: column {column.name!r} is {column[i]}, but other files of the source have "
            "integers in this column; write it with one type in all files"
        )
    return whole


_EXACT_DOUBLES = 2**53  # a double holds each integer up to here exactly


def _check_encoding(encoding: str) -> None:
    try:
        "".encode(encoding)
    except (LookupError, ValueError) as exc:  # base64 is a codec of Python, too, but not for text
        raise SourceError(f"source.encoding: {encoding!r} is not a text encoding that Python knows") from exc


def _inputs(source: Source) -> list[Input]:
    if source.path is not None:
        return [FileInput(file) for file in files.find(source)]
    if source.query is not None:
        assert source.database is not None
        return [Query(source.query, source.database)]
    if isinstance(source.frame, str):
        raise SourceError(
            "source.frame: the rows came from a frame in Python, which is not stored; run the job from Python again, "
            "with its frame"
        )
    return [frame_input(source.frame)]


def _all_columns(inputs: Sequence[Input]) -> list[str]:
    """Return the columns that the start of any input shows, in order of appearance. Raises SourceError."""
    with ThreadPoolExecutor(HEADERS, thread_name_prefix="header") as reader:  # one by one they would take long
        for coming in [reader.submit(lambda one: one.columns, one) for one in inputs]:
            coming.exception()  # is raised below, of the first file that has one
    return list(dict.fromkeys(name for one in inputs for name in one.columns))


def _refuse_unclear(name: str, inputs: Sequence[Input]) -> None:
    """Raise SourceError if an input has the column twice, or has fixed columns without it."""
    for one in inputs:
        if one.columns.count(name) > 1:
            raise SourceError(f"{one.path}: column {name!r} occurs twice; rename one of the two")
    has = next((one for one in inputs if name in one.columns), inputs[0])
    for lacks in inputs:
        if name not in lacks.columns and not lacks.by_value:  # NDJSON may leave out a field without a value
            raise SourceError(
                f"column {name!r} is in {has.path} but not in {lacks.path}; all files need the same columns"
            )


def _is_integer(name: str, inputs: Sequence[Input]) -> bool:
    """Return whether a column has integers in some inputs and doubles in others, as pandas writes integers with nulls.

    Raises SourceError for other types with different values: 17 and "17" would be two keys with one row of answers.
    """
    first: tuple[Any, Input] | None = None
    families: set[Any] = set()
    for one in inputs:
        kind = one.types.get(name)
        family = None if kind is None else exact.family(kind)
        if family is None:
            continue
        first = first or (kind, one)
        families.add(family)
        if len(families) > 1 and not families <= {"integer", "double"}:
            raise SourceError(
                f"column {name!r} is {first[0]} in {first[1].path} and {kind} in {one.path}; "
                "all files need the same types"
            )
    return len(families) > 1


_DTYPES: dict[str, Any] = {
    "String": pl.String,
    "Int64": pl.Int64,
    "Int32": pl.Int32,
    "Float64": pl.Float64,
    "Decimal": pl.Object,  # Python's Decimal, which keeps all digits of each value
    "Boolean": pl.Boolean,
    "Date": pl.Date,
    "Datetime": pl.Datetime("us"),
}


def _dtypes(source: Source) -> dict[str, Any]:
    for name, dtype in source.types.items():
        if dtype not in _DTYPES:
            raise SourceError(f"source.types.{name}: unknown type {dtype!r}; choose one of {', '.join(_DTYPES)}")
    return {name: _DTYPES[dtype] for name, dtype in source.types.items() if dtype != "String"}


def _cast(text: pl.Series, dtype: Any) -> pl.Series:
    """Convert texts to a type; null for texts that are not of this type."""
    if dtype == pl.Boolean:
        words = {"true": True, "false": False, "t": True, "f": False, "1": True, "0": False}
        return text.str.to_lowercase().replace_strict(words, default=None, return_dtype=pl.Boolean)
    if dtype == pl.Object:
        return pl.Series(map(_decimal, text.to_list()), dtype=pl.Object)
    if dtype == pl.Date:
        return text.str.to_date("%Y-%m-%d", strict=False)
    if isinstance(dtype, pl.Datetime):
        return _in_utc(text)
    cast = text.cast(dtype, strict=False)
    if not dtype.is_float():
        return cast
    too_large = cast.is_infinite() & ~text.str.to_lowercase().str.contains("inf", literal=True)
    return cast.set(too_large.fill_null(value=False), None)


def _decimal(text: str | None) -> Decimal | None:
    """Return a decimal with all digits of the text; None if the text is not a decimal."""
    return Decimal(text) if text is not None and _DECIMAL.fullmatch(text) else None


def _in_utc(text: pl.Series) -> pl.Series:
    """Convert texts to times without time zone; a time with an offset or Z is converted to UTC.

    Null for a text that is not a time, or has more than six decimals of a second.
    """
    offset = text.str.extract_groups(_OFFSET).struct.unnest()
    sign = pl.when(pl.col("sign") == "-").then(-1).otherwise(1)
    minutes = pl.col("hours").cast(pl.Int64) * 60 + pl.col("minutes").cast(pl.Int64).fill_null(0)
    east = offset.select(pl.duration(minutes=(sign * minutes).fill_null(0)).alias("east")).to_series()
    plain = text.str.replace(_OFFSET, "${time}").str.replace("T", " ", literal=True).str.strip_suffix("Z")
    forms = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
    parsed = [plain.str.to_datetime(form, time_unit="us", strict=False) for form in forms]
    whole = pl.select(pl.coalesce([pl.lit(series) for series in parsed])).to_series()
    return (whole - east).set(plain.str.contains(_TOO_FINE).fill_null(value=False), None)


#: A decimal, without an exponent.
_DECIMAL = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?", re.ASCII)
#: The offset from UTC after a time of day.
_OFFSET = r"(?<time>:[0-9]{2}(?:\.[0-9]+)?)(?<sign>[+-])(?<hours>[01][0-9]):?(?<minutes>[0-5][0-9])?$"
_TOO_FINE = r"\.[0-9]{6}[0-9]*[1-9]"


def _kinds(column: pl.Series) -> set[str]:
    """Return the SQL kinds of a column's values; empty for a column of nulls only from NDJSON."""
    if column.dtype == pl.Object:
        values = [value for value in column.to_list() if value is not None and not isinstance(value, Unprintable)]
        large = {"text" for value in values if is_large(value)}
        return large | {_JSON_KINDS.get(type(value), "json") for value in values}
    return set() if column.dtype == pl.Null else {_kind(column.dtype)}


_JSON_KINDS: dict[type, str] = {Decimal: "text", str: "text", int: "integer", float: "number", bool: "boolean"}


def _kind(dtype: pl.DataType) -> str:
    if dtype.is_integer():
        return "integer" if dtype not in (pl.UInt64, pl.Int128, pl.UInt128) else "text"  # may not fit in 64 bits
    if dtype.is_float():
        return "number"
    if dtype.is_decimal():
        return "text"  # exact
    if dtype == pl.Boolean:
        return "boolean"
    if dtype == pl.Date:
        return "date"
    if dtype == pl.Datetime:
        return "datetime"
    if dtype.is_nested():
        return "json"
    return "text"


def lacks_key(column: pl.Series) -> pl.Series:
    """Return, for each value of a key column, whether it cannot identify a row: null, empty text, NaN or infinity."""
    if column.dtype == pl.String:
        return column.is_null() | (column == "")
    if column.dtype == pl.Object:
        return pl.Series([value in (None, "") for value in column.to_list()], dtype=pl.Boolean)
    return column.is_null() | ~column.is_finite() if column.dtype.is_float() else column.is_null()
