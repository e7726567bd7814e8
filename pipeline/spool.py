"""Request bodies on disk until they are no longer needed. Edge: files."""

import contextlib
import hashlib
import io
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import packing
from pipeline.budget import Bound
from pipeline.errors import DatabaseError, Stopped

_CHUNK = 1 << 20  # bytes that are written at once
FORGOTTEN_SECONDS = 86_400.0  # since a results file was written: nobody is at it any more
MARKER = ".batch-pipeline-spool"


@dataclass(frozen=True)
class Spool:
    """A job's folder of bodies: one file a batch, named by the batch's nonce, written once and never altered."""

    folder: Path
    id: str  #: what the marker in the spool says: another folder under the same path is not taken for it

    @classmethod
    def open(cls, root: Path, job: str, *, expected: str | None = None) -> "Spool":
        """The folder of `job` below `root`, made readable for its owner only.

        expected: the id of the spool that the job has used. Raises DatabaseError if this is another one, as on a
        machine where it is not mounted, or if it cannot be used.
        """
        folder, marker = root / job, root / MARKER
        try:
            if expected is not None and _marked(marker) != expected:
                raise DatabaseError(
                    f"spool {root} is not the one that job {job} has used: {MARKER} in it does not say {expected}; "
                    "mount that one here, or, if it is gone for good, write this into the file: what was not sent yet "
                    "is then planned anew"
                )
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            identifier = _marked(marker) or _mark(marker)
            _sync_folder(root)
        except OSError as exc:
            raise DatabaseError(
                f"spool {folder} cannot be used: {exc.strerror}; give another folder by --spool"
            ) from exc
        return cls(folder, identifier)

    def path(self, nonce: str) -> Path:
        """Where the body of this nonce is."""
        return self.folder / f"{nonce}.json"

    def remove_unfinished(self) -> None:
        """Remove what a driver left half written when it died; call while planning the job."""
        for file in self.folder.glob("*.tmp"):
            file.unlink(missing_ok=True)
        for file in self.folder.glob("*.results"):  # of drivers that died while they collected
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > FORGOTTEN_SECONDS:
                    file.unlink()

    def bodies(self) -> dict[str, Path]:
        """All bodies by their nonces."""
        return {file.stem: file for file in self.folder.glob("*.json")}

    def remove(self, nonce: str) -> None:
        """Remove a body that nothing needs any more."""
        self.path(nonce).unlink(missing_ok=True)

    def results_file(self, nonce: str, claim: int) -> Path:
        """Where the results of a batch are put while they are being collected by the driver with this claim."""
        return self.folder / f"{nonce}.{claim}.results"

    def params(self, nonce: str, positions: Sequence[int]) -> Iterator[bytes]:
        """The params of the requests at these positions, which must ascend, as they were sent."""
        wanted = iter(positions)
        n = next(wanted, None)
        with open(self.path(nonce), "rb") as body:
            body.readline()  # the envelope
            for i, line in enumerate(body):
                while n == i:
                    yield packing.params_of(line)
                    n = next(wanted, None)
                if n is None:
                    return


class BodyWriter:
    """Writes one body. It has its final name only when it is whole and on the disk.

    Raises Stopped when the disk does not take it; what was written is then removed.
    """

    def __init__(self, spool: Spool, contents: packing.Packing) -> None:
        self.contents = contents
        self.digest = ""
        self._path = spool.path(contents.nonce)
        self._part = self._path.with_suffix(".tmp")
        self._hash = hashlib.sha256()
        with self._guarded():
            handle = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._file = os.fdopen(handle, "wb", buffering=0)
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
        with self._guarded():
            os.fsync(self._file.fileno())
            assert self._file.tell() == self.contents.size
            self._file.close()
            self._part.rename(self._path)
            _sync_folder(self._path.parent)
        self.digest = self._hash.hexdigest()

    def discard(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._part.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        data = b"".join(self._lines)
        self._lines, self._unwritten = [], 0
        self._hash.update(data)
        with self._guarded():
            self._file.write(data)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            with contextlib.suppress(AttributeError):
                self.discard()
            raise Stopped(f"spool {self._path.parent}: {exc.strerror}; nothing of this batch was sent") from exc


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


def count_requests(body: Path) -> int:
    """How many requests a body holds."""
    with open(body, "rb") as lines:
        return max(0, sum(1 for _ in lines) - 2)  # the envelope has a line before and one behind them


def digest(path: Path) -> str | None:
    """The sha256 of a body, in hex; None when there is no such file."""
    try:
        with open(path, "rb") as body:
            return hashlib.file_digest(body, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _marked(marker: Path) -> str | None:
    try:
        return marker.read_text().strip() or None
    except FileNotFoundError:
        return None


def _mark(marker: Path) -> str:
    """Write a new marker, or find that another driver has just done so."""
    part = marker.with_name(f"{MARKER}.{secrets.token_hex(4)}")
    part.write_text(secrets.token_hex(8) + "\n")
    with contextlib.suppress(FileExistsError):
        os.link(part, marker)
    part.unlink()
    return _marked(marker) or ""


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
