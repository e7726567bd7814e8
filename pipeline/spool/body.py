"""Write a request body into the spool, many requests at a time, and read it in chunks. Edge: files."""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

from pipeline.errors import Stopped
from pipeline.request import packing
from pipeline.spool.spool import Spool

_CHUNK = 1_000_000  # bytes of one write, unless one request has more


class BodyWriter:
    """Writes one body. The body gets its final name when it is complete and durable.

    Methods raise Stopped if the disk or the object store fails; what was written is then removed.

    contents: which rows and how many bytes the body has. digest: the body's sha256 in hex; empty until `finish`.
    """

    def __init__(self, spool: Spool, contents: packing.Packing) -> None:
        self.contents = contents
        self.digest = ""
        self._spool = spool
        self._hash = hashlib.sha256()
        self._file: io.FileIO | None = None
        self._complete = False
        with self._guarded():
            handle = os.open(spool.begin(contents.nonce), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._file = io.FileIO(handle, "wb")
        self._lines = [packing.PREFIX]
        self._unwritten = 0

    def fill(self, requests: packing.Requests, start: int = 0, *, dedupe: bool) -> list[int]:
        """Append the requests of some rows, and return their positions; [] if the body is full. See `Packing.fill`."""
        before = self.contents.size
        lines, positions = self.contents.fill(requests, start, dedupe=dedupe)
        added = self.contents.size - before
        if self._unwritten + added > _CHUNK:
            self._write()
        self._lines += lines
        self._unwritten += added
        return positions

    def finish(self) -> None:
        """Complete the body and make it durable. Only after this may its batch be committed."""
        self._lines.append(packing.SUFFIX)
        self._write()
        self.digest = self._hash.hexdigest()
        with self._guarded():
            assert self._file is not None
            assert self._file.tell() == self.contents.size
            self._spool.complete(self.contents.nonce, self._file)
            self._complete = True
            self._file.close()

    def discard(self) -> None:
        """Remove what was written. Errors are ignored: the next planning removes what is left."""
        with contextlib.suppress(OSError, Stopped):
            if self._file is not None:
                self._file.close()
            if self._complete:
                self._spool.remove(self.contents.nonce)
            else:
                self._spool.discard(self.contents.nonce)

    def _write(self) -> None:
        data = b"".join(self._lines)
        self._lines, self._unwritten = [], 0
        self._hash.update(data)
        assert self._file is not None
        with self._guarded():
            left = memoryview(data)
            while left:  # a disk that is nearly full writes a part of the data, and raises only at the next write
                left = left[self._file.write(left) :]

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            self.discard()
            raise Stopped(
                f"{self._spool.disk}: {exc.strerror or exc}; nothing of this batch was sent, safe to run again"
            ) from exc
        except Stopped:
            self.discard()
            raise


class HeldBack(Exception):
    """The last chunk of a body was held back, so the API cannot have accepted the body. The message is the reason."""


class BodyReader(io.FileIO):
    """A body as a file for the HTTP client, which can hold back its last chunk.

    may_finish: called once, before the last chunk is returned. None releases the chunk; a text is the reason to hold it
    back, and becomes the message of HeldBack.
    released: whether the last chunk has been returned. While it is False, the API cannot have accepted the body.
    """

    def __init__(self, path: Path, may_finish: Callable[[], str | None]) -> None:
        super().__init__(path, "rb")
        self._left = os.fstat(self.fileno()).st_size
        self._may_finish = may_finish
        self.released = False

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, at most `size`; all that are left if it is None or negative.

        Raises HeldBack instead of returning the last chunk if may_finish gives a reason, or if the file is shorter than
        it was when it was opened.
        """
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        if wanted and wanted == self._left and not self.released:
            reason = self._may_finish()
            if reason is not None:
                raise HeldBack(reason)
            self.released = True
        data = super().read(wanted)
        if data is None or len(data) != wanted:
            raise HeldBack("the body became shorter while it was read") if not self.released else OSError("short body")
        self._left -= wanted
        return data


def params_at(body: Path, positions: Sequence[int]) -> Iterator[bytes]:
    """Yield the params of these requests of a body, as JSON, byte by byte as they are sent.

    positions: of the requests in the body, from 0, ascending; a repeated position is yielded again.
    """
    with contextlib.closing(BodyParams(body)) as params:
        for n, same in groupby(positions):
            found = params.at([n])
            if not found:
                return
            yield from (found[n] for _ in same)


class BodyParams:
    """Reads the params of some requests of a body, in one pass over it."""

    def __init__(self, body: Path) -> None:
        self._lines = open(body, "rb")  # noqa: SIM115  # `close` closes it
        self._lines.readline()  # the opening line of the envelope
        self._next = 0

    def at(self, positions: Sequence[int]) -> dict[int, bytes]:
        """Return the params of these requests, as JSON, by position. positions: ascending, above those of the call
        before.
        """
        found: dict[int, bytes] = {}
        for n in positions:
            for line in islice(self._lines, n - self._next, n - self._next + 1):
                found[n] = packing.params_of(line)
            self._next = n + 1
        return found

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def count_requests(body: Iterable[bytes]) -> int:
    """Return the number of requests in a body. body: its lines."""
    return max(0, sum(1 for _ in body) - 2)  # without the first and the last line, which are the envelope


def digest(path: Path) -> str | None:
    """Return the sha256 of a file's content, in hex; None if the file does not exist."""
    try:
        with open(path, "rb") as body:
            return hashlib.file_digest(body, "sha256").hexdigest()
    except FileNotFoundError:
        return None
