"""Has a local file changed? Edge: files."""

import os
import time
from typing import NamedTuple

RECENT_SECONDS = 10  # more than the resolution of any file system's times


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


def is_recent(version: Stamp) -> bool:
    """Return whether the file was written so recently that another write could get the same time."""
    return time.time_ns() - version.mtime_ns < RECENT_SECONDS * 1_000_000_000
