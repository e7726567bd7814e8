"""Compute digests of a local file's bytes, also ahead of time. Edge: files, threads."""

import functools
import hashlib
import os
import threading
from concurrent.futures import Future

from pipeline.prefetch import map_ahead
from pipeline.storage.stamps import Stamp, is_recent, stamp

READERS = 2  # threads that read a file at the same time
_READ_BYTES = 1 << 20  # into the same memory again and again, which takes half of the time
_BLOCK_BYTES = 16 << 20  # that one thread hashes

_begun: dict[str, tuple[Stamp, "Future[bytes]"]] = {}  # by path


def begin(path: str) -> None:
    """Begin to read a file in other threads, which read and hash it while this process imports modules.

    `block_digests` then waits for the end of it, if the file has not changed since. An error is for that caller, too.
    """
    version = stamp(path)
    if version is None or is_recent(version):
        return
    digests: Future[bytes] = Future()

    def read() -> None:
        try:
            digests.set_result(_block_digests(path, version.size))
        except Exception as exc:  # noqa: BLE001  # of the reading, or because the process ends
            digests.set_exception(exc)

    _begun[path] = (version, digests)
    threading.Thread(target=read, name="digests", daemon=True).start()


def block_digests(path: str) -> bytes:
    """Return the digests of a file's blocks, one after the other. Raises OSError."""
    version, digests = _begun.pop(path, (None, None))
    if digests is not None and version == stamp(path):
        return digests.result()
    return _block_digests(path, os.stat(path).st_size)


def _block_digests(path: str, size: int) -> bytes:
    starts, digest = range(0, size, _BLOCK_BYTES), functools.partial(_digest, path)
    return b"".join(map_ahead(digest, starts, name="digest", threads=READERS, ahead=READERS))


def _digest(path: str, start: int) -> bytes:
    """Return the digest of the block of a file that begins there. Hashing releases the interpreter to other threads."""
    found, piece, left = hashlib.sha256(), bytearray(_READ_BYTES), _BLOCK_BYTES
    with open(path, "rb", buffering=0) as file, memoryview(piece) as view:
        file.seek(start)
        while left and (size := file.readinto(view[:left])):
            found.update(view[:size])
            left -= size
    return found.digest()
