"""Has a local file changed? Edge: files."""

import os
from typing import NamedTuple


class Stamp(NamedTuple):
    """The version of a local file: it differs if the file is replaced or written to. size: in bytes."""

    size: int
    mtime_ns: int
    inode: int


def stamp(path: str) -> Stamp | None:
    """Return the current version of a local file; None if it does not exist."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino)
