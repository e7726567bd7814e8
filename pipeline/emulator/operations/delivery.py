"""Stream the results of a batch from its file and apply faults to them."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import orjson

from pipeline.emulator.errors import ConnectionCut
from pipeline.emulator.faults import line_chosen
from pipeline.emulator.operations.damage import damaged
from pipeline.emulator.rules import Fault

CHUNK_BYTES = 1 << 18


class Download(Iterator[bytes]):
    """The chunks of a file. The file is closed after the last chunk, or by close() if the chunks are not all read."""

    def __init__(self, file: BinaryIO, chunks: Iterator[bytes]) -> None:
        self._file, self._chunks = file, chunks

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def deliver(path: Path, faults: list[Fault]) -> Iterator[bytes]:
    """Return the chunks of a results file with these faults applied.

    The file is opened at once, so that a delete does not stop a running download.
    """
    file = path.open("rb")
    return Download(file, _with_faults(file, faults) if faults else iter(lambda: file.read(CHUNK_BYTES), b""))


def _with_faults(file: BinaryIO, faults: list[Fault]) -> Iterator[bytes]:
    """Yield the chunks of a results file with these faults applied. Raises ConnectionCut where a fault cuts it."""
    cut = next((fault for fault in faults if fault.do == "truncate"), None)
    total = 0 if cut is None else _lines_in(file)
    lines = _with_line_faults((line.rstrip(b"\n") for line in file), faults)
    if cut is not None:
        lines = _truncated(lines, total, cut)
    before = [(fault.text or "").encode() for fault in faults if fault.do == "first_line"]
    yield from _in_chunks(chain(before, lines))
    if cut is not None and cut.end != "clean":
        raise ConnectionCut(reset=cut.end == "reset")


def _lines_in(file: BinaryIO) -> int:
    """Return how many lines the file has, and go back to its start."""
    lines = 1 + sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(CHUNK_BYTES), b""))
    file.seek(0)
    return lines


def _with_line_faults(lines: Iterable[bytes], faults: list[Fault]) -> Iterator[bytes]:
    """Yield the lines with the faults of single lines applied."""
    for fault in faults:
        if fault.do == "unknown_lines":
            for number in range(fault.count):
                yield orjson.dumps({"custom_id": f"unknown-{number}", "result": {"type": "canceled"}})
    for position, line in enumerate(lines):
        chosen = [fault for fault in faults if line_chosen(fault, line, position)]
        actions = {fault.do for fault in chosen}
        if "missing_lines" in actions:
            continue
        damage = next((fault.damage for fault in chosen if fault.damage is not None), None)
        shown = line if damage is None else damaged(line, damage)
        yield shown
        if "duplicate_lines" in actions:
            yield shown
        if "conflicting_lines" in actions:
            yield _contradiction(line)


def _contradiction(line: bytes) -> bytes:
    """Return a line with the same custom_id and another result."""
    result_line = orjson.loads(line)
    kind = "expired" if result_line["result"]["type"] != "expired" else "canceled"
    return orjson.dumps({"custom_id": result_line["custom_id"], "result": {"type": kind}})


def _truncated(lines: Iterator[bytes], total: int, cut: Fault) -> Iterator[bytes]:
    """Yield the first lines, as many as a `truncate` rule keeps, and half of the next one if it cuts mid-line."""
    yield from islice(lines, min(int(total * cut.keep), total - 1))  # at least one line is lost
    if cut.cut_at == "mid_line":
        following = next(lines, b"")
        yield following[: len(following) // 2]


def _in_chunks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines in chunks of about CHUNK_BYTES, joined by newlines."""
    buffer = bytearray()
    first = True
    for line in lines:
        buffer += line if first else b"\n" + line
        first = False
        if len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)
