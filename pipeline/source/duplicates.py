"""Find duplicates among very many texts, by hashes that move to disk when there are many. Edge: files."""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

AT_ONCE = 250_000  # hashes that are held in memory
_PARTS = 16  # files, each for a range of hashes; they are searched one by one, so that a sixteenth is in memory
_PART_BITS = 60  # the lower bits of a hash; the upper ones give its part


class Mark(NamedTuple):
    """The state of a `Distinct` at some moment, for `restore`."""

    held: list[pl.Series]
    size: int
    ends: list[int]


class Distinct:
    """Collects hashes of texts, and finds those that were added more than once. To be used in a `with` block."""

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
        """Add texts. hashed: their `hashes`."""
        self._held.append(hashed)
        self._count += hashed.len()
        if self._count >= AT_ONCE:
            self._spill()

    def mark(self) -> "Mark":
        """Return the current state, for `restore`."""
        return Mark(list(self._held), self._count, [part.tell() for part in self._parts])

    def restore(self, mark: "Mark") -> None:
        """Remove the hashes that were added after `mark`."""
        self._held, self._count = list(mark.held), mark.size
        for part, end in zip(self._parts, mark.ends or [0] * len(self._parts), strict=True):
            part.seek(end)
            part.truncate()

    def duplicates(self) -> pl.Series:
        """Return the hashes that were added more than once; the caller compares the texts, which may still differ."""
        return pl.concat([pl.Series(dtype=pl.UInt64), *map(repeated, self.parts())])

    def parts(self) -> Iterator[pl.Series]:
        """Yield all hashes in sorted parts, of which one is in memory at a time; equal hashes are in the same part."""
        if not self._parts:
            yield _sorted(self._held)
            return
        self._spill()
        for part in self._parts:
            part.seek(0)
            data = part.read()
            values = pa.Array.from_buffers(pa.uint64(), len(data) // 8, [None, pa.py_buffer(data)])
            yield _sorted([pl.Series(values, dtype=pl.UInt64)])

    def _spill(self) -> None:
        """Move the hashes in memory to the files."""
        if not self._parts:
            opened = (tempfile.TemporaryFile() for _ in range(_PARTS))  # noqa: SIM115  # closed with us
            self._parts = [self._files.enter_context(part) for part in opened]
        ordered = _sorted(self._held)
        ends = [ordered.search_sorted(i << _PART_BITS) for i in range(1, _PARTS)]
        data = memoryview(ordered.rechunk().to_arrow().buffers()[1]).cast("B")
        for part, start, end in zip(self._parts, [0, *ends], [*ends, ordered.len()], strict=True):
            part.write(data[8 * start : 8 * end])
        self._held, self._count = [], 0


def hashes(texts: pl.Series) -> pl.Series:
    """Return a hash of 64 bits for each text; equal texts have equal hashes within this process."""
    return texts.hash()


def repeated(ordered: pl.Series) -> pl.Series:
    """Return the hashes that come more than once among sorted hashes, each once."""
    return ordered.filter(ordered == ordered.shift(1)).unique()


def _sorted(hashed: list[pl.Series]) -> pl.Series:
    return pl.concat([pl.Series(dtype=pl.UInt64), *hashed]).sort()
