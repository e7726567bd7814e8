"""Whether very many texts are all different, by 8 bytes of each, on disk where that is much. Edge: temporary files."""

import contextlib
import tempfile
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

AT_ONCE = 250_000  # hashes that are held in memory
_PARTS = 16  # each a range of hashes: looked at one after the other, a sixteenth is in memory
_PART_BITS = 60  # below the bits that tell the part


class Mark(NamedTuple):
    """What a `Distinct` had at some moment."""

    held: list[pl.Series]
    size: int
    ends: list[int]


class Distinct:
    """Hashes of texts, kept until it is asked which came twice. Close it, or use it in a `with` block."""

    def __init__(self) -> None:
        self._held: list[pl.Series] = []
        self._count = 0
        self._files = contextlib.ExitStack()
        self._parts: list[Any] = []

    def __enter__(self) -> "Distinct":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def add(self, hashed: pl.Series) -> None:
        """Take note of texts by their `hashes`."""
        self._held.append(hashed)
        self._count += hashed.len()
        if self._count >= AT_ONCE:
            self._put_away()

    def mark(self) -> "Mark":
        """What there is so far, to come back to."""
        return Mark(list(self._held), self._count, [part.tell() for part in self._parts])

    def back_to(self, mark: "Mark") -> None:
        """Forget what was added since."""
        self._held, self._count = list(mark.held), mark.size
        for part, end in zip(self._parts, mark.ends or [0] * len(self._parts), strict=True):
            part.seek(end)
            part.truncate()

    def twice(self) -> pl.Series:
        """The hashes that came more than once: nearly always of equal texts, which is for the caller to look at."""
        if not self._parts:
            return _twice(self._held)
        self._put_away()
        found = []
        for part in self._parts:
            part.seek(0)
            data = part.read()
            values = pa.Array.from_buffers(pa.uint64(), len(data) // 8, [None, pa.py_buffer(data)])
            found.append(_twice([pl.Series(values, dtype=pl.UInt64)]))
        return pl.concat(found)

    def _put_away(self) -> None:
        if not self._parts:
            opened = (tempfile.TemporaryFile() for _ in range(_PARTS))  # noqa: SIM115  # closed with us
            self._parts = [self._files.enter_context(part) for part in opened]
        ordered = pl.concat([pl.Series(dtype=pl.UInt64), *self._held]).sort()
        ends = [ordered.search_sorted(i << _PART_BITS) for i in range(1, _PARTS)]
        data = memoryview(ordered.rechunk().to_arrow().buffers()[1]).cast("B")
        for part, start, end in zip(self._parts, [0, *ends], [*ends, ordered.len()], strict=True):
            part.write(data[8 * start : 8 * end])
        self._held, self._count = [], 0


def hashes(texts: pl.Series) -> pl.Series:
    """64 bits for each text, the same for equal ones within this process."""
    return texts.hash()


def _twice(hashed: list[pl.Series]) -> pl.Series:
    ordered = pl.concat([pl.Series(dtype=pl.UInt64), *hashed]).sort()
    return ordered.filter(ordered == ordered.shift(1)).unique()
