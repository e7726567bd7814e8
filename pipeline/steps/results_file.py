"""A batch's results as a file on this machine, downloaded once and read in chunks. Edge: HTTP, files."""

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
CHUNK_BYTES = 16_000_000  # of result lines: two chunks are in memory at a time
STRETCH_BYTES = 2_000_000  # of result lines that are sorted together while they come in


class Found:
    """The result lines of a batch in a file: stretches of it, each in the order of the request positions.

    So the lines of a window of positions are read at once from each stretch, and not one by one from all over the file:
    while another thread computes, each call of the system waits for its turn.
    """

    def __init__(self, file: Path, batch: Batch) -> None:
        self.file = file
        self.known = 0  #: lines that name a request of the batch
        self.unknown = 0  #: lines that name none
        self._requests = batch.requests
        self._position = packing.position_of_results(batch.nonce)
        self._stretches: list[
            tuple[array[int], array[int]]
        ] = []  # positions; where each line starts, and the last ends
        self._lines: list[tuple[int, bytes]] = []  # not written yet: position and line
        self._unwritten = 0
        self._size = 0

    def add(self, lines: Iterable[bytes], out: BinaryIO) -> None:
        """Lines as the API gave them, without newlines."""
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
        """Write what has come so far, in order."""
        self._lines.sort(key=itemgetter(0))  # stable: of two lines for one request, the later one comes later
        positions = array("q", [n for n, _ in self._lines])
        starts = array("q", accumulate((len(line) + 1 for _, line in self._lines), initial=self._size))
        self._lines.append((0, b""))  # for the newline behind the last line
        out.write(b"\n".join([line for _, line in self._lines]))
        self._stretches.append((positions, starts))
        self._lines, self._unwritten, self._size = [], 0, starts[-1]

    def windows(self, rows: int) -> Iterator[tuple[int, int]]:
        """Ranges of positions, first and last, with about CHUNK_ROWS rows each and at most about CHUNK_BYTES of lines.

        rows: of the batch, of which several may share a request.
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
        """Of each stretch the lines at these positions: the positions, and where they start and end in the file."""
        for positions, starts in self._stretches:
            some = slice(bisect_left(positions, first), bisect_right(positions, last))
            yield positions[some], starts[some.start], starts[some.stop]

    def lines(self, file: int, first: int, last: int) -> dict[int, bytes]:
        """The lines at these positions, by position. file: the descriptor.

        Of two lines one that can be read wins, and of these `succeeded`, for it was paid.
        """
        found: dict[int, bytes] = {}
        for positions, start, end in self._parts(first, last):
            for n, line in zip(positions, os.pread(file, end - start, start).split(b"\n"), strict=False):
                if n not in found or _rank(line) > _rank(found[n]):
                    found[n] = line
        return found


def download(driver: Driver, batch: Batch, file: Path, given_up: threading.Event) -> Found:
    """Stream a batch's results to `file`. The next step fetches them again when this fails.

    Raises Stopped when the stream breaks, or when what comes is not the results of this batch.
    """
    assert batch.api_id is not None
    found = Found(file, batch)
    with open(file, "wb") as out:
        file.chmod(0o600)
        with driver.api.results(batch.api_id) as chunks:
            for some in lines.split_lines(_until_stopped(driver, chunks, given_up)):
                found.add(some, out)
        found.write(out)
    if found.unknown and not found.known:  # a page of something else, or another batch's results
        raise ApiUnreachable(
            f"what came back for the results of {batch.api_id} names no request of it; nothing of it is believed"
        )
    return found


def _until_stopped(driver: Driver, chunks: Iterable[bytes], given_up: threading.Event) -> Iterator[bytes]:
    """The chunks, and between two of them, however small, a look whether somebody wants it to stop."""
    for chunk in chunks:
        driver.stop.check()
        if given_up.is_set():
            raise Interrupted("interrupted")
        yield chunk


def _rank(line: bytes) -> int:
    """How much a line is worth beside another one for the same request."""
    result = (lines.parse_line(line) or {}).get("result")
    return 0 if not isinstance(result, dict) else 2 if result.get("type") == "succeeded" else 1
