"""Download a batch's results to a file on this machine, and read them in chunks. Edge: HTTP, files."""

import os
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

from pipeline.answer import lines
from pipeline.driver.driver import Driver
from pipeline.errors import ApiUnreachable, Interrupted
from pipeline.request import packing
from pipeline.state.batches import Batch

CHUNK_ROWS = 5_000
CHUNK_BYTES = 16_000_000  # of result lines in a chunk: two chunks are in memory at a time
STRETCH_BYTES = 2_000_000  # of result lines that are sorted together while they are downloaded


class Found:
    """The result lines of a batch in a file of several stretches; the lines of each are sorted by request position.

    So the lines of a range of positions are read by one system call for each stretch, and not line by line from all
    over the file: each system call has to wait while another thread computes.
    """

    def __init__(self, file: Path, batch: Batch) -> None:
        self.file = file
        self.known = 0  #: lines that name a request of the batch
        self.unknown = 0  #: lines that name none
        self._requests = batch.requests
        self._position = packing.position_of_results(batch.nonce)
        self._stretches: list[
            tuple[array[int], array[int]]
        ] = []  # positions; where each line starts, and the last one ends
        self._lines: list[tuple[int, bytes]] = []  # not written yet: position and line
        self._unwritten = 0
        self._size = 0

    def add(self, lines: Iterable[bytes], out: BinaryIO) -> None:
        """Add result lines, and write a stretch if there are enough. lines: as the API gave them, without newlines."""
        requests, position = self._requests, self._position
        for line in lines:
            n = position(line)
            if n is not None and n < requests:
                self.known += 1
                self._lines.append((n, line))
                self._unwritten += len(line)
            elif line.strip():
                self.unknown += 1
        if self._unwritten >= STRETCH_BYTES:
            self.write(out)

    def write(self, out: BinaryIO) -> None:
        """Write the lines that are not written yet as one stretch, sorted by position."""
        self._lines.sort(key=itemgetter(0))  # stable: two lines for one request keep their order
        positions = array("q", [n for n, _ in self._lines])
        starts = array("q", accumulate((len(line) + 1 for _, line in self._lines), initial=self._size))
        self._lines.append((0, b""))  # for the newline after the last line
        out.write(b"\n".join([line for _, line in self._lines]))
        self._stretches.append((positions, starts))
        self._lines, self._unwritten, self._size = [], 0, starts[-1]

    def windows(self, rows: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of positions, (first, last), with about CHUNK_ROWS rows and at most about CHUNK_BYTES of lines.

        rows: the number of rows of the batch; several rows may share a request.
        """
        requests = self._requests
        step = max(1, CHUNK_ROWS * requests // max(1, rows))
        first = 0
        while first < requests:
            last = min(first + step, requests) - 1
            while last > first and self._bytes(first, last) > CHUNK_BYTES:
                last = first + (last - first) // 2
            yield first, last
            first = last + 1

    def _bytes(self, first: int, last: int) -> int:
        return sum(end - start for _, start, end in self._parts(first, last))

    def _parts(self, first: int, last: int) -> Iterator[tuple["array[int]", int, int]]:
        """Yield for each stretch the positions of its lines in this range, and where they start and end in the file."""
        for positions, starts in self._stretches:
            some = slice(bisect_left(positions, first), bisect_right(positions, last))
            yield positions[some], starts[some.start], starts[some.stop]

    def lines(self, file: int, first: int, last: int) -> dict[int, bytes]:
        """Return the lines at these positions, by position, without those that have no line. file: the descriptor.

        If a request has two lines, a readable one wins, and of two readable ones `succeeded`, because it was paid.
        """
        found: dict[int, bytes] = {}
        for positions, start, end in self._parts(first, last):
            for n, line in zip(positions, os.pread(file, end - start, start).split(b"\n"), strict=False):
                if n not in found or _rank(line) > _rank(found[n]):
                    found[n] = line
        return found


def download(driver: Driver, batch: Batch, file: Path, given_up: threading.Event) -> Found:
    """Download a batch's results to `file`. If this fails, a later step downloads them again.

    given_up: when it is set, stop and raise Interrupted. Raises NotFound when the API does not have the results, and
    Stopped when the download breaks off, or when what arrives is not the results of this batch.
    """
    assert batch.api_id is not None
    found = Found(file, batch)
    with open(file, "wb") as out:
        file.chmod(0o600)
        with driver.api.results(batch.api_id) as chunks:
            for some in lines.split_lines(_until_stopped(driver, chunks, given_up)):
                found.add(some, out)
        found.write(out)
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
