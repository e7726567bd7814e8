"""Read NDJSON files as polars frames. Edge: files."""

import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import orjson
import polars as pl
import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.job.json_values import is_large
from pipeline.source.files import SourceFile
from pipeline.source.frames import CHUNK_BYTES, CHUNK_ROWS, LATE_FIELDS, Frame
from pipeline.source.translated import TranslatedErrors

_DIGITS = bytes.maketrans(b"0123456789", b"0" * 10)
_LARGE = b"0" * 19  # as many digits as the smallest integer beyond 64 bits has
_ALL_DIGITS = re.compile(rb"[0-9]{19}")


def frames(file: SourceFile, names: list[str], known: frozenset[str] = frozenset()) -> Iterator[Frame]:
    """Yield the rows of a file. names: the fields to read; a missing field is null.

    LATE_FIELDS among the names gives a mapping of each object's fields that are not `known`; null if it has none.
    Raises SourceError that names the file and the line.
    """
    for first, items in objects(file):
        values = {name: [item.get(name) for item in items] for name in names}
        if LATE_FIELDS in values:
            values[LATE_FIELDS] = [_late(item, known) for item in items]
        yield Frame(first, of_values(values))


def _late(item: dict[str, Any], known: frozenset[str]) -> dict[str, Any] | None:
    if item.keys() <= known:
        return None
    return {name: value for name, value in item.items() if name not in known}


def first_fields(file: SourceFile) -> list[str]:
    """Return the fields of the first chunk of objects, in order of appearance. Raises SourceError."""
    first = next(objects(file), None)
    if first is None:
        raise SourceError(f"source.path: {file.path} is empty")
    return list(dict.fromkeys(name for item in first[1] for name in item))


def all_fields(file: SourceFile) -> list[str]:
    """Return the fields of all objects, in order of appearance. Reads the whole file. Raises SourceError."""
    found: dict[str, None] = {}
    for _, items in objects(file):
        found |= dict.fromkeys(itertools.chain.from_iterable(items))
    return list(found)


def of_values(values: dict[str, list[Any]]) -> pl.DataFrame:
    """Return a frame of Python values by column. Columns of mixed types, or of lists and objects, hold Python objects.

    So each value keeps its type; a series of polars would convert all values to one type.
    """
    return pl.DataFrame({name: _series(column) for name, column in values.items()})


def _series(values: list[Any]) -> pl.Series:
    """Return one column for `of_values`."""
    kinds = {type(value) for value in values if value is not None}
    large = int in kinds and any(map(is_large, values))
    if len(kinds) > 1 or kinds & {dict, list} or large:
        return pl.Series(values, dtype=pl.Object)
    return pl.Series(values)


def objects(file: SourceFile) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield the objects of an NDJSON file, in lists of at most CHUNK_ROWS and about CHUNK_BYTES bytes of text.

    Each list comes with the number of its first object, from 1. Blank lines are skipped.
    """
    objects: list[dict[str, Any]] = []
    first, size = 1, 0
    for number, (line, large) in enumerate(_lines(file), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is not content
        if not line.strip():
            continue
        objects.append(_object(file, number, line, large))
        size += len(line)
        if len(objects) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield first, objects
            first, objects, size = first + len(objects), [], 0
    if objects:
        yield first, objects


def _object(file: SourceFile, number: int, line: bytes, large: bool) -> dict[str, Any]:
    """Return the object of a line. large: whether it may have an integer beyond 64 bits, a float to orjson."""
    large = large and _ALL_DIGITS.search(line) is not None
    try:
        value = orjson.loads(line if file.encoding == "utf-8" else line.decode(file.encoding))
    except (orjson.JSONDecodeError, UnicodeDecodeError) as exc:
        if not large or "infinity" not in str(exc):
            _refuse_line(file, number, line, exc)
        value = {}
    if not isinstance(value, dict):
        _refuse_line(file, number, line, None)
    return _exact(file, number, line) if large else value


def _exact(file: SourceFile, number: int, line: bytes) -> Any:
    """Return the object of a line with exact integers of any size."""
    try:
        return json.loads(line.decode(file.encoding), parse_float=_finite)
    except ValueError as exc:  # Python reads integers of at most 4,300 digits
        raise SourceError(
            f"{file.path} line {number}: a number is too large to be read ({exc}); put it into quotes"
        ) from exc


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is beyond the range of a number with a point or an exponent")
    return value


def _refuse_line(file: SourceFile, number: int, line: bytes, exc: ValueError | None) -> NoReturn:
    """Raise SourceError for a line that is not a JSON object, with a hint about what the file may be."""
    if number == 1 and line.lstrip().startswith(b"["):
        raise SourceError(
            f"{file.path}: this is one JSON document (an array), and NDJSON has one object on each line; write one "
            "object per line, for instance by `jq -c '.[]'`"
        ) from exc
    if exc is None:
        raise SourceError(f"{file.path} line {number}: each line must be a JSON object")
    if number == 1 and line.lstrip().startswith(b"{") and "unexpected end of data" in str(exc):
        raise SourceError(
            f"{file.path}: the JSON object on line 1 does not end there, and NDJSON has one object on each line; write "
            "each object on one line, for instance by `jq -c .`"
        ) from exc
    raise SourceError(
        f"{file.path} line {number}: this is not JSON in {file.encoding}: {exc}{_hint(line, str(exc))}"
    ) from exc


def _hint(line: bytes, error: str) -> str:
    """Return what to do about a value that Python's json module writes and JSON does not allow; empty for no hint."""
    if re.search(rb"[:\[,]\s*-?(NaN|Infinity)\b", line):
        return "; JSON has no NaN and no Infinity: write null"
    return "; a \\u escape gives only half of a character: write the text as UTF-8" if "surrogate" in error else ""


def _lines(file: SourceFile) -> Iterator[tuple[bytes, bool]]:
    """Yield the file's lines, each with whether it may have an integer of 19 digits or more.

    Only \\n ends a line: JSON text may contain other characters that Python treats as line ends.
    """
    with TranslatedErrors(file), file.native() as raw, pa.input_stream(raw, compression=file.compression) as stream:
        rest: list[bytes] = []
        while data := stream.read(1_000_000):
            *lines, tail = data.split(b"\n")
            large = _LARGE in data.translate(_DIGITS)  # ten times as fast as a regular expression
            for line in lines:
                yield (b"".join([*rest, line]), True) if rest else (line, large)
                rest = []
            rest.append(tail)
        if any(rest):
            yield b"".join(rest), True
