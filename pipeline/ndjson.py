"""NDJSON files as polars frames. Edge: files."""

from collections.abc import Iterator
from typing import Any

import orjson
import polars as pl
import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.files import SourceFile
from pipeline.frames import CHUNK_BYTES, CHUNK_ROWS, Frame
from pipeline.translated import Translated


def frames(file: SourceFile, names: list[str]) -> Iterator[Frame]:
    for first, items in objects(file):
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


def objects(file: SourceFile) -> Iterator[tuple[int, list[dict[str, Any]]]]:
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
    with Translated(file), file.native() as raw, pa.input_stream(raw, compression=file.compression) as stream:
        rest: list[bytes] = []
        while data := stream.read(1_000_000):
            *lines, tail = data.split(b"\n")
            for line in lines:
                yield b"".join([*rest, line]) if rest else line
                rest = []
            rest.append(tail)
        if any(rest):
            yield b"".join(rest)
