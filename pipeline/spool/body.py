"""A request body in the spool: written request by request, and read in pieces. Edge: files."""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.errors import Stopped
from pipeline.money.budget import Bound
from pipeline.request import packing
from pipeline.spool.spool import Spool

_CHUNK = 1 << 20  # bytes that are written at once


class BodyWriter:
    """Writes one body. It has its final name only when it is whole and durable.

    Raises Stopped when the disk, or the store behind it, does not take it; what was written is then removed.
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

    def add(self, row: int, sent_hash: bytes, params: bytes, bound: Bound | None, *, dedupe: bool) -> bool:
        """Put one row's request into the body; False when it does not fit any more. bound: see packing.Packing."""
        line = self.contents.add(row, sent_hash, params, bound, dedupe=dedupe)
        if line is None:
            return False
        self._lines.append(line)
        self._unwritten += len(line)
        if self._unwritten >= _CHUNK:
            self._write()
        return True

    def finish(self) -> None:
        """Make the body whole and durable: after this its batch may be committed."""
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
        """Remove what was written. What cannot be removed now, the next planning removes."""
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
            while left:  # a disk with little room takes a part of it, and says so only when it is asked again
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
    """The body's last chunk was not handed out, so the API cannot have taken it."""


class BodyReader(io.FileIO):
    """A body as the HTTP client reads it. Its last chunk is handed out only if `may_finish()` is None.

    may_finish: the reason to hold back, or None; asked once, before the last chunk.
    released: whether the last chunk has been handed out. While it is False the API cannot have accepted the body.
    """

    def __init__(self, path: Path, may_finish: Callable[[], str | None]) -> None:
        super().__init__(path, "rb")
        self._left = os.fstat(self.fileno()).st_size
        self._may_finish = may_finish
        self.released = False

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes, at most `size`. Raises HeldBack instead of handing out the last ones."""
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
    """The params of the requests at these positions of a body, which must ascend, as they were sent."""
    wanted = iter(positions)
    n = next(wanted, None)
    with open(body, "rb") as lines:
        lines.readline()  # the envelope
        for i, line in enumerate(lines):
            while n == i:
                yield packing.params_of(line)
                n = next(wanted, None)
            if n is None:
                return


def count_requests(body: Iterable[bytes]) -> int:
    """How many requests a body holds. body: its lines."""
    return max(0, sum(1 for _ in body) - 2)  # the envelope has a line before and one behind them


def digest(path: Path) -> str | None:
    """The sha256 of a file, in hex; None when there is no such file."""
    try:
        with open(path, "rb") as body:
            return hashlib.file_digest(body, "sha256").hexdigest()
    except FileNotFoundError:
        return None
