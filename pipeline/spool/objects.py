"""A spool on object storage, which drivers on several machines share. Edge: network.

A body is written to a private local file first and put up whole. Whoever sends it has it in a local file again, proven
by its digest, before the intent: the store cannot fail in the middle of a POST, a body that was altered is never begun,
and the request goes out as from a folder, its length and digest known.
"""

import contextlib
import io
import os
import secrets
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pipeline.errors import DatabaseError, InputError, Stopped
from pipeline.spool.body import count_requests, digest
from pipeline.spool.spool import Known, Spool, Stored, another_one
from pipeline.storage import objects, tempdir
from pipeline.storage.folders import MARKER

COPIES_BYTES = 256_000_000  # of bodies that are kept at hand when they are not in use


class _Copies:
    """Local copies of bodies that this process has written or read lately: who sends one soon need not fetch it."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}
        self._lock = threading.Lock()  # one thread plans while another submits

    def put(self, nonce: str, file: Path) -> None:
        """Keep the file, and as many of those before it as there is room for."""
        with self._lock, contextlib.suppress(FileNotFoundError):
            self._files[nonce] = file
            left = COPIES_BYTES
            for other, copy in reversed(list(self._files.items())):
                left -= copy.stat().st_size
                if left < 0 and other != nonce:
                    self._files.pop(other).unlink(missing_ok=True)

    def take(self, nonce: str) -> Path | None:
        """The copy, which is the caller's from now on."""
        with self._lock:
            return self._files.pop(nonce, None)


_COPIES = _Copies()  # of all jobs: one process sends one body after the other


@dataclass(frozen=True)
class ObjectSpool(Spool):
    """A spool below an address: one object a batch. folder: the address of the job's bodies."""

    folder: str
    id: str

    @classmethod
    def open(cls, root: str, job: str, *, expected: str | None = None) -> "ObjectSpool":
        """The bodies of `job` below `root`.

        expected: the id of the spool that the job has used. Raises DatabaseError if this is another one, or if bucket
        or credentials are missing or wrong, and Stopped when the store cannot be reached.
        """
        marker = f"{root}/{MARKER}"
        identifier = cls.look_at(root)
        try:
            if expected is not None and identifier != expected:
                raise another_one(root, job, expected)
            if identifier is None:
                with contextlib.suppress(objects.Exists):  # another driver has just made it
                    objects.put(marker, f"{secrets.token_hex(8)}\n".encode(), create=True)
                identifier = _marked(marker)
        except DatabaseError:
            raise
        except InputError as exc:  # it may be read and not written to
            raise DatabaseError(f"spool {exc}") from exc
        return cls(f"{root}/{job}", identifier or "")

    @staticmethod
    def look_at(root: str) -> str | None:
        """The id of the spool below this address; None when there is none yet. Raises as `open`."""
        try:
            return _marked(f"{root}/{MARKER}")
        except InputError as exc:
            raise DatabaseError(f"spool {exc}") from exc

    def url(self, nonce: str) -> str:
        """Where the body of this nonce is."""
        return f"{self.folder}/{nonce}.json"

    def begin(self, nonce: str) -> Path:
        return tempdir.folder() / f"{nonce}.json"

    def complete(self, nonce: str, file: io.FileIO) -> None:
        size = file.tell()
        with _while_it_is_used():
            try:
                objects.put(self.url(nonce), self.begin(nonce))
            except (objects.NotThere, Stopped):
                # The last answer may have got lost, and the end of an upload in parts cannot be asked for twice. Only
                # this body has this name, and a store has it whole or not at all.
                if not _is_there(self.url(nonce), size):
                    raise
        _COPIES.put(nonce, self.begin(nonce))

    def discard(self, nonce: str) -> None:
        with contextlib.suppress(OSError):
            self.begin(nonce).unlink()

    @property
    def disk(self) -> str:
        return tempdir.where()

    @contextlib.contextmanager
    def at_hand(self, nonce: str, sha256: str) -> Iterator[Path | None]:
        file = _sound(_COPIES.take(nonce), sha256) or _sound(self._downloaded(nonce), sha256)
        try:
            yield file
        finally:
            if file is not None:
                _COPIES.put(nonce, file)  # it may be held back, and tried again soon

    def damaged(self, bodies: Iterable[Known]) -> set[str]:
        known = list(bodies)
        if not known:
            return set()
        sizes = {nonce: obj.size for nonce, obj in self._listed().items()}  # the digest is proven before it is sent
        return {body.nonce for body in known if sizes.get(body.nonce) != body.size}

    def bodies(self, now: datetime) -> dict[str, Stored]:
        # The store's clock is taken for the API's, which ours need not be: both are kept by somebody who has to.
        return {nonce: Stored(obj.url, obj.size, obj.written_at) for nonce, obj in self._listed().items()}

    def count_requests(self, nonce: str) -> int:
        with _while_it_is_used(), objects.opened(objects.found(self.url(nonce))) as body:
            return count_requests(body)

    def remove(self, nonce: str) -> None:
        copy = _COPIES.take(nonce)
        if copy is not None:
            copy.unlink(missing_ok=True)
        with _while_it_is_used():
            objects.remove(self.url(nonce))

    def remove_unfinished(self) -> None:
        with _while_it_is_used():
            objects.abandon_uploads(self.folder)

    def results_file(self, nonce: str, claim: int) -> Path:
        return tempdir.folder() / f"{nonce}.{claim}.results"

    def _listed(self) -> dict[str, objects.Object]:
        with _while_it_is_used():
            named = {obj.url.rpartition("/")[2]: obj for obj in objects.listed(self.folder)}
        return {name.removesuffix(".json"): obj for name, obj in named.items() if name.endswith(".json")}

    def _downloaded(self, nonce: str) -> Path | None:
        """The body in a new local file; None when it is gone, or becomes another one while it is read."""
        with _while_it_is_used():
            try:
                obj = objects.found(self.url(nonce))
                handle, name = tempfile.mkstemp(dir=tempdir.folder(), prefix=nonce)
                try:
                    with os.fdopen(handle, "wb") as out:
                        objects.download(obj, out)
                except BaseException:
                    os.unlink(name)
                    raise
            except (objects.NotThere, objects.Replaced):
                return None
            except OSError as exc:
                raise Stopped(f"{tempdir.where()}: {exc.strerror or exc}; safe to run again") from exc
            return Path(name)


def _sound(file: Path | None, sha256: str) -> Path | None:
    """The file if this is its digest; else it is removed."""
    if file is None or digest(file) == sha256:
        return file
    file.unlink(missing_ok=True)
    return None


def _marked(marker: str) -> str | None:
    try:
        return objects.content(marker).decode().strip() or None
    except objects.NoBucket:
        raise
    except objects.NotThere:
        return None


def _is_there(url: str, size: int) -> bool:
    try:
        return objects.found(url).size == size
    except (InputError, Stopped):
        return False


@contextlib.contextmanager
def _while_it_is_used() -> Iterator[None]:
    """What is wrong with a store that was all right when it was opened: the driver stops, and it is safe to go on."""
    try:
        yield
    except InputError as exc:
        raise Stopped(f"spool {exc}; safe to run again") from exc
