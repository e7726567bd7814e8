"""Let pyarrow read a CSV file ahead, without a hang at the end of the process. Edge: threads.

A thread of pyarrow's reads a CSV file up to 32 blocks ahead, and it continues after an error. It reads the file through
Python code. When the interpreter ends meanwhile, that thread never gets the interpreter again: the process hangs for
ever, or it aborts. So pyarrow reads a file through a gate. A gate that is shut gives no more bytes, and the process
waits at its end until pyarrow has released the file. An error of the file stays in the gate, because pyarrow's thread
would need the interpreter to free it: for pyarrow the file ends there, and the error is raised beside it.
"""

import atexit
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pyarrow as pa

COPIED_BYTES = 450_000  # that are copied at once into native memory, which a thread can free without the interpreter
RELEASED_SECONDS = 1.0  # pyarrow releases a file within this time after its last read, unless something else holds it
LOOK_SECONDS = 0.005  # between two checks at the end of the process


class Readable(Protocol):
    """A text that can be read once, from start to end."""

    def read(self, size: int, /) -> bytes: ...


class ReadAhead:
    """A text that a reader of pyarrow's may read ahead until the block ends.

    stream: the text. reader: the reader, which the caller opens on the stream. No local variable may hold the stream
    or the reader: an error keeps the variables of all functions that it passed.
    """

    def __init__(self, text: Readable) -> None:
        self._gate: _Gate | None = None
        self.reader: Any = None
        if isinstance(text, pa.NativeFile):  # pyarrow reads it without Python code
            self.stream = text
        else:
            self._gate = _Gate(text)
            self.stream = pa.BufferedInputStream(self._gate.lend(), COPIED_BYTES)
        _OPEN.add(self)

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        self.close()
        if exc is None or isinstance(exc, pa.ArrowException):  # of a file that seemed to end at the error
            self._raise_error()

    def batches(self) -> Iterator[Any]:
        """The record batches of the reader. Raises the error of the text."""
        while True:
            try:
                batch = self.reader.read_next_batch()
            except StopIteration:
                return
            self._raise_error()  # the batch may end in half a row
            yield batch

    def _raise_error(self) -> None:
        if self._gate is not None and self._gate.error is not None:
            raise self._gate.error

    def close(self) -> None:
        """Give pyarrow no more bytes, and release the reader. Does not wait for pyarrow's thread."""
        if self._gate is not None:
            self._gate.shut = True
        self.reader = self.stream = None


class _Gate:
    """A text that pyarrow's threads read.

    shut: whether it gives no more bytes; reading: whether a thread reads now; error: of the text; None: there was none.
    """

    def __init__(self, text: Readable) -> None:
        self.shut = self.reading = False
        self.error: Exception | None = None
        self._text = text

    def lend(self) -> Any:
        """Return the text as a file of pyarrow."""
        handle = _Handle(self._read)
        _LENT[handle] = self
        return pa.PythonFile(handle, mode="r")

    def _read(self, size: int) -> bytes:
        if self.shut:
            return b""
        self.reading = True
        try:
            return self._text.read(size)
        except Exception as exc:  # noqa: BLE001  # raised by `ReadAhead`
            self.error, self.shut = exc, True
            return b""
        finally:
            self.reading = False


class _Handle:
    """The object through which pyarrow reads the text. Only pyarrow holds it, so it is freed after the last read."""

    closed = False

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read  # of the gate, which outlives this object

    def close(self) -> None:
        """Do nothing: pyarrow calls it when it releases the file."""


_OPEN: "weakref.WeakSet[ReadAhead]" = weakref.WeakSet()
_LENT: "weakref.WeakKeyDictionary[_Handle, _Gate]" = weakref.WeakKeyDictionary()


def _end() -> None:
    """Close all texts that are still open, as those of abandoned iterators; wait until pyarrow has released them."""
    for each in list(_OPEN):
        each.close()
    deadline = time.monotonic() + RELEASED_SECONDS
    while gates := list(_LENT.values()):
        if any(gate.reading for gate in gates):  # this ends, because each request has a timeout
            deadline = time.monotonic() + RELEASED_SECONDS
        elif time.monotonic() > deadline:
            return
        time.sleep(LOOK_SECONDS)


atexit.register(_end)
