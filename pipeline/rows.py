"""A source's rows in bounded chunks, each row with the place it came from. Edge: files, network, SQL."""

import difflib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import polars as pl
import pyarrow as pa

from pipeline import files, identity
from pipeline.attachments import Folder
from pipeline.errors import SourceError
from pipeline.formats import FileInput
from pipeline.frames import LATE_FIELDS, Frame
from pipeline.identity import columns_of
from pipeline.job import Source
from pipeline.predicate import Predicate
from pipeline.queries import Query, memory


class Input(Protocol):
    """One input of a source: a file, the rows of a query, a frame in memory.

    path: what names it in full; name: in short; folder: what the paths of attachments are relative to; columns: all it
    has, as far as its start tells; later_columns: those that only the whole of it tells; types: the Arrow types of its
    columns, if it has any that must be the same in all inputs; partition: columns with one value; by_value: whether a
    column's type is that of each of its values.
    """

    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> Folder: ...
    @property
    def columns(self) -> list[str]: ...
    @property
    def later_columns(self) -> list[str]: ...
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
    """Up to frames.CHUNK_ROWS rows of one input. numbers: for each row its number in the input, from 1."""

    input: Input
    frame: pl.DataFrame
    numbers: Sequence[int]

    @property
    def folder(self) -> Folder:
        """What the paths of attachments are relative to."""
        return self.input.folder

    def place(self, i: int) -> str:
        """Where the i-th row stands, for a message."""
        return f"{self.input.name} row {self.numbers[i]}"

    def part(self, start: int, end: int) -> "Chunk":
        """Its rows from `start` to before `end`."""
        return Chunk(self.input, self.frame[start:end], self.numbers[start:end])


class Rows:
    """The rows of a source: which columns they have, and a stream of them that can be read again."""

    def __init__(self, source: Source) -> None:
        """Finds the files and reads their headers. Raises SourceError that names the path, file or column."""
        self._source = source
        _check_encoding(source.encoding)
        self.inputs = _inputs(source)
        self.columns = _common_columns(self.inputs)
        self._dtypes = _dtypes(source)
        self.require(list(self._dtypes), "source.types")

    def require(self, names: Sequence[str], by: str) -> None:
        """Raises SourceError unless the source has all these columns. by: what names them, for the message.

        A column that the start of each input does not have is looked for in the whole of them.
        """
        for name in names:
            if name not in self.columns and name not in self._later and name != LATE_FIELDS:
                every = [*self.columns, *self._later]
                near = difflib.get_close_matches(name, every, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                known = ", ".join(every[:20])
                raise SourceError(f"{by} names column {name!r}, which the source does not have (it has: {known}){hint}")

    @cached_property
    def _later(self) -> list[str]:
        """The columns that no input has at its start."""
        found = dict.fromkeys(name for one in self.inputs for name in one.later_columns)
        return [name for name in found if name not in self.columns]

    @property
    def has_later(self) -> bool:
        """Whether rows may have columns beyond `columns`; frames.LATE_FIELDS is these of each row."""
        return any(one.by_value for one in self.inputs)

    def chunks(
        self, columns: Sequence[str], *, limit: int | None = None, inputs: Sequence[Input] | None = None
    ) -> Iterator[Chunk]:
        """The rows that `where` leaves, in the order of the inputs, with these columns only.

        limit: stop after so many rows; inputs: of these only. Raises SourceError that names file, row and column.
        """
        needed = list(dict.fromkeys(columns))
        where = None if self._source.where is None else Predicate(self._source.where, list(self._dtypes))
        read = list(dict.fromkeys([*needed, *([] if where is None else where.columns)]))
        self.require(read, "source.where" if where is not None else "the job")
        return _ahead(self._chunks(where, needed, read, limit, self.inputs if inputs is None else inputs))

    def _chunks(
        self, where: Predicate | None, needed: list[str], read: list[str], limit: int | None, inputs: Sequence[Input]
    ) -> Iterator[Chunk]:
        left, known = limit, frozenset(self.columns)
        for one in inputs if where is None else self._ruled_in(inputs, where):
            for first, frame in one.frames(read, where, known):
                typed = self._typed(frame, one, first)
                numbers: Sequence[int] = range(first, first + frame.height)
                if where is not None:
                    kept = where.kept(typed)
                    numbers = [numbers[i] for i in kept]
                    typed = typed[kept]
                if left is not None:
                    typed, numbers = typed.head(left), numbers[:left]
                    left -= typed.height
                if typed.height:
                    yield Chunk(one, columns_of(typed, needed), numbers)
                if left == 0:
                    return

    def _ruled_in(self, inputs: Sequence[Input], where: Predicate) -> list[Input]:
        """Those that may hold wanted rows, as far as their folders tell: the others are never opened."""
        names = [name for name, _ in inputs[0].partition]
        if set(names).isdisjoint(where.columns) or any([n for n, _ in one.partition] != names for one in inputs):
            return list(inputs)
        said = pl.DataFrame(
            {name: [dict(one.partition)[name] for one in inputs] for name in names},
            schema=dict.fromkeys(names, pl.String),
        )
        typed = self._typed(said, inputs[0], 1)
        others = {name: self._dtypes.get(name, pl.String) for name in where.columns if name not in names}
        if inputs[0].types:  # the predicate must fit the types that the files have
            empty = pl.DataFrame(pa.schema(list(inputs[0].types.items())).empty_table())
            others = {name: empty.schema[name] for name in others if name in empty.columns}
        return [inputs[i] for i in where.files(typed, others)]

    def kinds(self, columns: Sequence[str]) -> dict[str, str]:
        """For each column what its values are in SQL: text, integer, number, boolean, date, datetime or json.

        NDJSON says it value by value, so there the whole source is looked at; values of several kinds are text.
        """
        found: dict[str, set[str]] = {name: set() for name in columns}
        for one in self.inputs:
            for first, frame in one.frames(list(columns)):
                typed = self._typed(frame, one, first)
                for name in columns:
                    found[name] |= _kinds(typed.get_column(name))
                if not one.by_value and all(found.values()):
                    break
            if not one.by_value and all(found.values()):
                break
        return {name: kinds.pop() if len(kinds) == 1 else "text" for name, kinds in found.items()}

    def _typed(self, frame: pl.DataFrame, one: Input, first: int) -> pl.DataFrame:
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
                    f"{one.path} row {first + i}: column {name!r} is {text[i]!r}, which is no "
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


def _inputs(source: Source) -> list[Input]:
    if source.path is not None:
        return [FileInput(file) for file in files.find(source)]
    if source.query is not None:
        assert source.database is not None
        return [Query(source.query, source.database)]
    if isinstance(source.frame, str):
        raise SourceError(
            "source.frame: the rows were a frame in Python, which is not kept; run the job from Python again, with its "
            "frame"
        )
    return [memory(source.frame)]


def _common_columns(inputs: Sequence[Input]) -> list[str]:
    first: list[str] = []
    with ThreadPoolExecutor(HEADERS, thread_name_prefix="header") as reader:  # one by one they would take long
        for coming in [reader.submit(lambda one: one.columns, one) for one in inputs]:
            coming.exception()  # is raised below, of the first file that has one
    for one in inputs:
        columns = one.columns
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice:
            raise SourceError(f"{one.path}: column {twice[0]!r} stands twice in the header; rename one")
        if not first:
            first = columns
        elif one.by_value:  # a field may be absent where it has no value
            first = [*first, *(name for name in columns if name not in first)]
        elif set(columns) != set(first):
            name = sorted(set(columns) ^ set(first))[0]
            has, lacks = (one, inputs[0]) if name in columns else (inputs[0], one)
            raise SourceError(f"column {name!r} is in {has.path} but not in {lacks.path}; all files need the same ones")
    _refuse_other_types(inputs)
    return first


def _refuse_other_types(inputs: Sequence[Input]) -> None:
    """A column has one type: 17 and "17" would be two keys, and one row of answers."""
    first: dict[str, Any] = {}
    for one in inputs:
        for name, kind in one.types.items():
            if first.setdefault(name, kind) != kind:
                raise SourceError(
                    f"column {name!r} is {first[name]} in {inputs[0].path} and {kind} in {one.path}; "
                    "all files need the same types"
                )


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
        large = {"text" for value in values if identity.is_large(value)}
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
