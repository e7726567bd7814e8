"""Has a local file changed? Edge: files."""

import os
import time
from typing import NamedTuple

RECENT_SECONDS = 10  # more than the resolution of any file system's times


class Stamp(NamedTuple):
    """The version of a local file: it differs if the file is replaced or written to. size: in bytes.

    changed_ns: also changes when the file gets another name, link or mode, and cannot be set back, as mtime_ns can.
    """

    size: int
    mtime_ns: int
    inode: int
    changed_ns: int

    def is_written(self, now: "Stamp | None") -> bool:
        """Return whether the file has been replaced, removed or written to by now. now: its present version."""
        return now is None or self._replace(changed_ns=now.changed_ns) != now


def stamp(path: str) -> Stamp | None:
    """Return the current version of a local file; None if it does not exist."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns)


def is_recent(version: Stamp) -> bool:
    """Return whether the file was written so recently that another write could get the same time."""
    return time.time_ns() - version.mtime_ns < RECENT_SECONDS * 1_000_000_000
