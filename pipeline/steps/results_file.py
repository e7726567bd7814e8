"""Download a batch's results to memory, or to a file if they are large; read them in chunks. Edge: HTTP, files."""

import contextlib
import os
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from operator import le
from pathlib import Path
from typing import NamedTuple

from pipeline.answer import lines
from pipeline.driver.driver import Driver
from pipeline.errors import ApiUnreachable, Interrupted
from pipeline.request import packing
from pipeline.state.batches import Batch

CHUNK_ROWS = 5_000
#: Times as many rows are in a chunk if they share requests and their answers are short. They are all over the tables,
#: so that a chunk changes many pages of a SQLite file, however few its rows are; an answer is in memory only once.
MORE_SHARING = 10
CHUNK_BYTES = 16_000_000  # of result lines in a chunk: two chunks are in memory at a time
MEMORY_BYTES = 4_000_000  # of result lines that stay in memory; two batches at a time
STRETCH_BYTES = 2_000_000  # of result lines that are sorted together when they go to a file


class _Stretch(NamedTuple):
    """Result lines sorted by request position. starts: where each line starts in the file, and where the last one ends.

    lines: None: they are in the file.
    """

    positions: "array[int]"
    starts: "array[int]"
    lines: list[bytes] | None

    def between(self, first: int, last: int) -> tuple[int, int]:
        """Return the index of the first line at these positions, and the index after the last one."""
        return bisect_left(self.positions, first), bisect_right(self.positions, last)

    def bytes_between(self, first: int, last: int) -> int:
        """Return the bytes of the lines at these positions, with their newlines."""
        start, stop = self.between(first, last)
        return self.starts[stop] - self.starts[start]


class Found:
    """The result lines of a batch: one stretch in memory, or several stretches in a file if they are large.

    The lines of a stretch are sorted by request position, so those of a range of positions are read by one system call
    for each stretch, and not line by line from all over the file: each system call has to wait while another thread
    computes.
    """

    def __init__(self, file: Path, batch: Batch) -> None:
        self.known = 0  #: lines that name a request of the batch
        self.unknown = 0  #: lines that name none
        self._file = file
        self._requests = batch.requests
        self._position = packing.position_of_results(batch.nonce)
        self._stretches: list[_Stretch] = []
        self._positions = array("q")  # of the lines that are in no stretch yet
        self._lines: list[bytes] = []
        self._held = 0  # their bytes
        self._written = 0  # bytes in the file; 0: there is no file

    def add(self, lines: Iterable[bytes]) -> None:
        """Add result lines, and write a stretch if memory is full. lines: as the API gave them, without newlines."""
        requests, position = self._requests, self._position
        for line in lines:
            n = position(line)
            if n is not None and n < requests:
                self._positions.append(n)
                self._lines.append(line)
                self._held += len(line) + 1
            elif line.strip():
                self.unknown += 1
        if self._held > (STRETCH_BYTES if self._written else MEMORY_BYTES):
            self._write()

    def finish(self) -> None:
        """Make the lines that are in no stretch yet the last stretch; no line is added after this."""
        if self._written:
            self._write()
        else:
            self._stretches.append(self._stretch())

    def _write(self) -> None:
        stretch = self._stretch()
        assert stretch.lines is not None
        with open(self._file, "ab" if self._written else "wb") as out:
            self._file.chmod(0o600)
            out.write(b"\n".join([*stretch.lines, b""]))  # with a newline after the last line
        self._written = stretch.starts[-1]
        self._stretches.append(stretch._replace(lines=None))

    def _stretch(self) -> _Stretch:
        """Return the lines that are in no stretch yet as one stretch, sorted by position, and hold them no longer."""
        positions, lines = self._positions, self._lines
        if not all(map(le, positions, islice(positions, 1, None))):
            order = sorted(range(len(lines)), key=positions.__getitem__)  # two lines for one request keep their order
            positions = array("q", [positions[i] for i in order])
            lines = [lines[i] for i in order]
        self.known += len(lines)
        self._positions, self._lines, self._held = array("q"), [], 0
        starts = array("q", accumulate((len(line) + 1 for line in lines), initial=self._written))
        return _Stretch(positions, starts, lines)

    def windows(self, shared: Mapping[int, int], request_bytes: int = 0) -> Iterator[tuple[int, int]]:
        """Yield ranges of positions, (first, last), with at most CHUNK_ROWS rows and about CHUNK_BYTES of lines.

        shared: the number of rows at each position that has more than one. A position alone may have more than that.
        Of such rows a range has up to MORE_SHARING times as many, if CHUNK_BYTES hold an answer for each of them.
        request_bytes: the mean size of a request, if requests are read with the lines; they count as well.
        """
        requests = self._requests
        rows: Sequence[float] = range(requests + 1)  # before each position
        if shared:
            rows = list(accumulate(map(self._weight, range(requests), map(shared.get, range(requests))), initial=0))
        first = 0
        while first < requests:
            last = max(first, bisect_right(rows, rows[first] + CHUNK_ROWS) - 2)
            while last > first and self._bytes(first, last) + (last - first + 1) * request_bytes > CHUNK_BYTES:
                last = first + (last - first) // 2
            yield first, last
            first = last + 1

    def _weight(self, n: int, rows: int | None) -> float:
        """Return as how many rows a position counts. rows: that share its request; None: there is one."""
        if rows is None:
            return 1
        return max(1, rows * min(1, max(1 / MORE_SHARING, self._bytes(n, n) * CHUNK_ROWS / CHUNK_BYTES)))

    def _bytes(self, first: int, last: int) -> int:
        return sum(stretch.bytes_between(first, last) for stretch in self._stretches)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[int, int], dict[int, bytes]]]:
        """Yield a function that returns the lines at positions first to last; it may be called in any thread.

        It returns the lines by position, without the positions that have no line. If a request has two lines, a
        readable one wins, and of two readable ones `succeeded`, because it was paid.
        """
        with open(self._file, "rb") if self._written else contextlib.nullcontext() as file:
            yield lambda first, last: self._at(None if file is None else file.fileno(), first, last)

    def _at(self, file: int | None, first: int, last: int) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for stretch in self._stretches:
            start, stop = stretch.between(first, last)
            for n, line in zip(stretch.positions[start:stop], _lines_of(stretch, start, stop, file), strict=True):
                if n not in found or _rank(line) > _rank(found[n]):
                    found[n] = line
        return found


def _lines_of(stretch: _Stretch, start: int, stop: int, file: int | None) -> list[bytes]:
    """Return lines of a stretch by their indexes. file: the descriptor of the file; None: there is none."""
    if stretch.lines is not None:
        return stretch.lines[start:stop]
    assert file is not None
    offset = stretch.starts[start]
    return os.pread(file, stretch.starts[stop] - offset, offset).split(b"\n")[:-1]


def download(driver: Driver, batch: Batch, file: Path, given_up: threading.Event) -> Found:
    """Download a batch's results, to `file` if they are large. If this fails, a later step downloads them again.

    given_up: when it is set, stop and raise Interrupted. Raises NotFound when the API does not have the results, and
    Stopped when the download breaks off, or when what arrives is not the results of this batch.
    """
    assert batch.api_id is not None
    found = Found(file, batch)
    with driver.api.results(batch.api_id) as chunks:
        for some in lines.split_lines(_until_stopped(driver, chunks, given_up)):
            found.add(some)
    found.finish()
    if found.unknown and not found.known:  # a page that is no results, or another batch's results
        raise ApiUnreachable(
            f"the API's response for the results of {batch.api_id} names no request of that batch; nothing of it is "
            "stored"
        )
    return found


def _until_stopped(driver: Driver, chunks: Iterable[bytes], given_up: threading.Event) -> Iterator[bytes]:
    """Yield the chunks. Raises Interrupted before any of them if the driver is to stop or `given_up` is set."""
    for chunk in chunks:
        driver.stop.check()
        if given_up.is_set():
            raise Interrupted("interrupted")
        yield chunk


def _rank(line: bytes) -> int:
    """Return the rank of a line among those for the same request: 2 succeeded, 1 another result, 0 not readable."""
    result = (lines.parse_line(line) or {}).get("result")
    return 0 if not isinstance(result, dict) else 2 if result.get("type") == "succeeded" else 1
