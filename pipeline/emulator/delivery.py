"""Streams the results of a batch from its file, with the faults asked for on the way."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import orjson

from pipeline.emulator.errors import ConnectionCut
from pipeline.emulator.faults import Fault, line_chosen

CHUNK_BYTES = 1 << 18


def deliver(path: Path, faults: list[Fault]) -> Iterator[bytes]:
    """The file in chunks; opened at once, so that a delete does not take it away from a running download."""
    file = path.open("rb")

    def chunks() -> Iterator[bytes]:
        with file:
            yield from iter(lambda: file.read(CHUNK_BYTES), b"")

    return _faulty(file, faults) if faults else chunks()


def _faulty(file: BinaryIO, faults: list[Fault]) -> Iterator[bytes]:
    cut = next((fault for fault in faults if fault.do == "truncate"), None)
    with file:
        total = 0 if cut is None else _lines_in(file)
        lines = _touched((line.rstrip(b"\n") for line in file), faults)
        if cut is not None:
            lines = _kept(lines, total, cut)
        yield from _joined(lines)
    if cut is not None and cut.end != "clean":
        raise ConnectionCut(reset=cut.end == "reset")


def _lines_in(file: BinaryIO) -> int:
    lines = 1 + sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(CHUNK_BYTES), b""))
    file.seek(0)
    return lines


def _touched(lines: Iterable[bytes], faults: list[Fault]) -> Iterator[bytes]:
    for fault in faults:
        if fault.do == "unknown_lines":
            for number in range(fault.count):
                yield orjson.dumps({"custom_id": f"unknown-{number}", "result": {"type": "canceled"}})
    for position, line in enumerate(lines):
        dos = {fault.do for fault in faults if line_chosen(fault, line, position)}
        if "missing_lines" in dos:
            continue
        yield line
        if "duplicate_lines" in dos:
            yield line
        if "conflicting_lines" in dos:
            yield _contradiction(line)


def _contradiction(line: bytes) -> bytes:
    """A second line of the same custom_id that says otherwise."""
    told = orjson.loads(line)
    kind = "expired" if told["result"]["type"] != "expired" else "canceled"
    return orjson.dumps({"custom_id": told["custom_id"], "result": {"type": kind}})


def _kept(lines: Iterator[bytes], total: int, cut: Fault) -> Iterator[bytes]:
    yield from islice(lines, min(int(total * cut.keep), total - 1))  # truncation that loses nothing is none
    if cut.cut_at == "mid_line":
        following = next(lines, b"")
        yield following[: len(following) // 2]


def _joined(lines: Iterable[bytes]) -> Iterator[bytes]:
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
