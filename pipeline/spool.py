"""Request bodies until they are no longer needed: what a spool is, and a folder as one. Edge: files."""

import contextlib
import hashlib
import io
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from pipeline import durable, packing
from pipeline.budget import Bound
from pipeline.errors import DatabaseError, Stopped

_CHUNK = 1 << 20  # bytes that are written at once
FORGOTTEN_SECONDS = 86_400.0  # since a results file was written: nobody is at it any more
UNKNOWN_AGE = timedelta(days=1)
MARKER = ".batch-pipeline-spool"


class Known(NamedTuple):
    """A body as the database knows it. digest: its sha256 in hex; size: bytes."""

    nonce: str
    digest: str
    size: int


class Stored(NamedTuple):
    """A body as the spool has it. shown: its path or URL; written_at: by the clock of the API."""

    shown: str
    size: int
    written_at: datetime


class Spool(ABC):
    """A job's bodies: one for each batch, named by the batch's nonce, written once and never altered.

    All of it may raise Stopped, when the spool cannot be reached now.
    """

    id: str  #: what the marker in the spool says: another place under the same address is not taken for it

    @abstractmethod
    def begin(self, nonce: str) -> Path:
        """Where the body of this nonce is written, on a local disk; there is no such file yet."""

    @abstractmethod
    def complete(self, nonce: str, file: io.FileIO) -> None:
        """Give the body its name, now that it is whole in the file where it was begun, and make it durable.

        Raises OSError, too.
        """

    @abstractmethod
    def discard(self, nonce: str) -> None:
        """Remove what was begun and did not become complete."""

    @property
    @abstractmethod
    def disk(self) -> str:
        """What is written to, in the words of an error."""

    @abstractmethod
    def at_hand(self, nonce: str, sha256: str) -> contextlib.AbstractContextManager[Path | None]:
        """A local file that holds the body, proven by its digest; None when the body is gone or was altered."""

    @abstractmethod
    def damaged(self, bodies: Iterable[Known]) -> set[str]:
        """The nonces of those that are gone or were altered, as far as it can be told without reading from afar."""

    @abstractmethod
    def bodies(self, now: datetime) -> dict[str, Stored]:
        """All bodies by their nonces. now: the time by the clock of the API."""

    @abstractmethod
    def count_requests(self, nonce: str) -> int:
        """How many requests a body holds that is there."""

    @abstractmethod
    def remove(self, nonce: str) -> None:
        """Remove a body that nothing needs any more; it does not have to be there."""

    @abstractmethod
    def remove_unfinished(self) -> None:
        """Remove what a driver left half written when it died; call while planning the job."""

    @abstractmethod
    def results_file(self, nonce: str, claim: int) -> Path:
        """Where the results of a batch are put while they are being collected by the driver with this claim."""


@dataclass(frozen=True)
class LocalSpool(Spool):
    """A spool in a folder, which several machines may share: one file a batch."""

    folder: Path
    id: str

    @classmethod
    def open(cls, root: Path, job: str, *, expected: str | None = None) -> "LocalSpool":
        """The folder of `job` below `root`, made readable for its owner only.

        expected: the id of the spool that the job has used. Raises DatabaseError if this is another one, as on a
        machine where it is not mounted, or if it cannot be used.
        """
        folder, marker = root / job, root / MARKER
        try:
            if expected is not None and _marked(marker) != expected:
                raise another_one(str(root), job, expected)
            durable.make_folder(root, mode=durable.PRIVATE)
            durable.make_folder(folder, mode=durable.PRIVATE)
            identifier = _marked(marker) or _mark(marker)
        except OSError as exc:
            raise unusable(folder, exc.strerror) from exc
        return cls(folder, identifier)

    @staticmethod
    def look_at(root: Path) -> str | None:
        """The id of the spool in this folder; None when there is none yet. Raises DatabaseError if none can be."""
        try:
            identifier = _marked(root / MARKER)
        except OSError as exc:
            raise unusable(root, exc.strerror) from exc
        there = next(folder for folder in (root, *root.parents) if folder.exists())
        if not there.is_dir():
            raise unusable(root, f"{there} is no folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise unusable(root, f"{there} is not writable")
        return identifier

    def path(self, nonce: str) -> Path:
        """Where the body of this nonce is."""
        return self.folder / f"{nonce}.json"

    def begin(self, nonce: str) -> Path:
        return self.path(nonce).with_suffix(".tmp")

    def complete(self, nonce: str, file: io.FileIO) -> None:
        os.fsync(file.fileno())
        self.begin(nonce).rename(self.path(nonce))
        durable.sync_folder(self.folder)

    def discard(self, nonce: str) -> None:
        self.begin(nonce).unlink(missing_ok=True)
        self.remove(nonce)

    @property
    def disk(self) -> str:
        return f"spool {self.folder}"

    @contextlib.contextmanager
    def at_hand(self, nonce: str, sha256: str) -> Iterator[Path | None]:
        yield self.path(nonce) if digest(self.path(nonce)) == sha256 else None

    def damaged(self, bodies: Iterable[Known]) -> set[str]:
        return {body.nonce for body in bodies if digest(self.path(body.nonce)) != body.digest}

    def bodies(self, now: datetime) -> dict[str, Stored]:
        found = {}
        for file in self.folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                stat = file.stat()
                seconds = time.time() - stat.st_mtime  # our clock may be another than the API's
                age = timedelta(seconds=seconds) if seconds >= 0 else UNKNOWN_AGE  # it was set back since
                found[file.stem] = Stored(str(file), stat.st_size, now - age)
        return found

    def count_requests(self, nonce: str) -> int:
        with open(self.path(nonce), "rb") as body:
            return count_requests(body)

    def remove(self, nonce: str) -> None:
        self.path(nonce).unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        for file in self.folder.glob("*.tmp"):
            file.unlink(missing_ok=True)
        for file in self.folder.glob("*.results"):  # of drivers that died while they collected
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > FORGOTTEN_SECONDS:
                    file.unlink()

    def results_file(self, nonce: str, claim: int) -> Path:
        return self.folder / f"{nonce}.{claim}.results"


def unusable(folder: Path, why: str | None) -> DatabaseError:
    """The error that no spool can be in this folder."""
    return DatabaseError(f"spool {folder} cannot be used: {why}; give another folder by --spool")


def another_one(address: str, job: str, expected: str) -> DatabaseError:
    """The error that this is not the spool which the job has used."""
    return DatabaseError(
        f"spool {address} is not the one that job {job} has used: {MARKER} in it does not say {expected}; bring that "
        "one back there, or give its new place by --spool, or, if it is gone for good, write this into the file: what "
        "was not sent yet is then planned again"
    )


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


def _marked(marker: Path) -> str | None:
    try:
        return marker.read_text().strip() or None
    except FileNotFoundError:
        return None


def _mark(marker: Path) -> str:
    """Write a new marker, or find that another driver has just done so."""
    part = marker.with_name(f"{MARKER}.{secrets.token_hex(4)}")
    with open(part, "w") as out:
        out.write(secrets.token_hex(8) + "\n")
        durable.sync_file(out)
    with contextlib.suppress(FileExistsError):
        os.link(part, marker)
    part.unlink()
    durable.sync_folder(marker.parent)  # whoever lost the race, too: it must not go by a marker that may vanish
    return _marked(marker) or ""
