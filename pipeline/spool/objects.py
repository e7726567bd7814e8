"""A spool on object storage, which drivers on several machines share. Edge: files, network.

A body is written to a private local file and then uploaded whole. Before the intent is committed, the driver that sends
the body has a local copy whose digest it has checked. So the store cannot fail in the middle of a POST, an altered body
is never sent, and the length and the digest of the request are known, as with a local folder.
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
from pipeline.spool.spool import KnownBody, Spool, StoredBody, wrong_spool
from pipeline.storage import objects, tempdir
from pipeline.storage.folders import MARKER

COPIES_BYTES = 256_000_000  # of local copies that are kept while they are not in use


class _Copies:
    """A cache of local copies of bodies that this process wrote or read recently, so that sending needs no download."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}
        self._lock = threading.Lock()  # one thread plans while another submits

    def put(self, nonce: str, file: Path) -> None:
        """Add a file; remove the oldest files beyond COPIES_BYTES, but never this one."""
        with self._lock, contextlib.suppress(FileNotFoundError):
            self._files[nonce] = file
            left = COPIES_BYTES
            for other, copy in reversed(list(self._files.items())):
                left -= copy.stat().st_size
                if left < 0 and other != nonce:
                    self._files.pop(other).unlink(missing_ok=True)

    def take(self, nonce: str) -> Path | None:
        """Take the copy of this body out of the cache, so that the caller owns the file; None if there is no copy."""
        with self._lock:
            return self._files.pop(nonce, None)


_COPIES = _Copies()  # one cache for all jobs: a process sends one body at a time


@dataclass(frozen=True)
class ObjectSpool(Spool):
    """A spool on object storage, with one object per batch.

    folder: the URL below which the job's bodies are; id: see Spool.
    """

    folder: str
    id: str

    @classmethod
    def open(cls, root: str, job: str, *, expected: str | None = None) -> "ObjectSpool":
        """Return the spool of a job below the URL `root`, and create its marker if it is missing.

        expected: the id of the spool that the job has used; None if any will do.
        Raises DatabaseError if the id differs, or if the bucket or the credentials are missing or wrong, and Stopped if
        the store cannot be reached.
        """
        marker = f"{root}/{MARKER}"
        identifier = cls.read_id(root)
        try:
            if expected is not None and identifier != expected:
                raise wrong_spool(root, job, expected)
            if identifier is None:
                with contextlib.suppress(objects.AlreadyExists):  # another driver has just made it
                    objects.put(marker, f"{secrets.token_hex(8)}\n".encode(), create=True)
                identifier = _read_marker(marker)
        except DatabaseError:
            raise
        except InputError as exc:  # for example: reading is permitted and writing is not
            raise DatabaseError(f"spool {exc}") from exc
        return cls(f"{root}/{job}", identifier or "")

    @staticmethod
    def read_id(root: str) -> str | None:
        """Return the id of the spool below this URL; None if there is no spool yet. Raises as `open`."""
        try:
            return _read_marker(f"{root}/{MARKER}")
        except InputError as exc:
            raise DatabaseError(f"spool {exc}") from exc

    def url(self, nonce: str) -> str:
        """Return the URL of the body with this nonce."""
        return f"{self.folder}/{nonce}.json"

    def begin(self, nonce: str) -> Path:
        return tempdir.folder() / f"{nonce}.json"

    def complete(self, nonce: str, file: io.FileIO) -> None:
        size = file.tell()
        with _errors_stop_the_driver():
            try:
                objects.put(self.url(nonce), self.begin(nonce))
            except (objects.NotFound, Stopped):
                # Perhaps only the response was lost, and a multipart upload cannot be completed twice. An object of the
                # right size is our body: no other body has this name, and a store never holds a part of an object.
                if not _has_size(self.url(nonce), size):
                    raise
        _COPIES.put(nonce, self.begin(nonce))

    def discard(self, nonce: str) -> None:
        with contextlib.suppress(OSError):
            self.begin(nonce).unlink()

    @property
    def disk(self) -> str:
        return tempdir.description()

    @contextlib.contextmanager
    def local_copy(self, nonce: str, sha256: str) -> Iterator[Path | None]:
        file = _verified(_COPIES.take(nonce), sha256) or _verified(self._download(nonce), sha256)
        try:
            yield file
        finally:
            if file is not None:
                _COPIES.put(nonce, file)  # if the body was held back, it is sent again soon

    def damaged(self, bodies: Iterable[KnownBody]) -> set[str]:
        known = list(bodies)
        if not known:
            return set()
        sizes = {nonce: obj.size for nonce, obj in self._list_bodies().items()}  # digests are checked before sending
        return {body.nonce for body in known if sizes.get(body.nonce) != body.size}

    def bodies(self, now: datetime) -> dict[str, StoredBody]:
        # The dates are by the store's clock, which can stand in for the API's: both are kept exact, ours may not be.
        return {nonce: StoredBody(obj.url, obj.size, obj.written_at) for nonce, obj in self._list_bodies().items()}

    def count_requests(self, nonce: str) -> int:
        with _errors_stop_the_driver(), objects.open_object(objects.head(self.url(nonce))) as body:
            return count_requests(body)

    def remove(self, nonce: str) -> None:
        copy = _COPIES.take(nonce)
        if copy is not None:
            copy.unlink(missing_ok=True)
        with _errors_stop_the_driver():
            objects.remove(self.url(nonce))

    def remove_unfinished(self) -> None:
        with _errors_stop_the_driver():
            objects.abandon_uploads(self.folder)

    def results_file(self, nonce: str, claim: int) -> Path:
        return tempdir.folder() / f"{nonce}.{claim}.results"

    def _list_bodies(self) -> dict[str, objects.Object]:
        """Return the stored bodies by their nonces."""
        with _errors_stop_the_driver():
            named = {obj.url.rpartition("/")[2]: obj for obj in objects.list_objects(self.folder)}
        return {name.removesuffix(".json"): obj for name, obj in named.items() if name.endswith(".json")}

    def _download(self, nonce: str) -> Path | None:
        """Download the body into a new local file; return None if it does not exist, or is replaced meanwhile."""
        with _errors_stop_the_driver():
            try:
                obj = objects.head(self.url(nonce))
                handle, name = tempfile.mkstemp(dir=tempdir.folder(), prefix=nonce)
                try:
                    with os.fdopen(handle, "wb") as out:
                        objects.download(obj, out)
                except BaseException:
                    os.unlink(name)
                    raise
            except (objects.NotFound, objects.Replaced):
                return None
            except OSError as exc:
                raise Stopped(f"{tempdir.description()}: {exc.strerror or exc}; safe to run again") from exc
            return Path(name)


def _verified(file: Path | None, sha256: str) -> Path | None:
    """Return the file if its digest is `sha256`; else delete it and return None. None stays None."""
    if file is None or digest(file) == sha256:
        return file
    file.unlink(missing_ok=True)
    return None


def _read_marker(marker: str) -> str | None:
    """Return the spool id in the marker at this URL; None if there is no marker, or it is empty."""
    try:
        return objects.get(marker).decode().strip() or None
    except objects.BucketNotFound:
        raise
    except objects.NotFound:
        return None


def _has_size(url: str, size: int) -> bool:
    """Return whether there is an object of this size, in bytes; False also if the store cannot tell."""
    try:
        return objects.head(url).size == size
    except (InputError, Stopped):
        return False


@contextlib.contextmanager
def _errors_stop_the_driver() -> Iterator[None]:
    """Turn an InputError into Stopped: the spool could be opened, so the cause may pass, and a new run is safe."""
    try:
        yield
    except InputError as exc:
        raise Stopped(f"spool {exc}; safe to run again") from exc
