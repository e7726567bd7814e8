"""What makes a new file or folder survive a power cut? Edge: files.

A file's content is durable once the file is synced. Its name is durable once the folder that holds the name is synced,
and so is the name of a folder. A rename, too, is durable once the folder is synced.
"""

import os
from pathlib import Path
from typing import Any

PRIVATE = 0o700  # readable for its owner only


def sync_file(out: Any) -> None:
    """Sync what was written into an open file."""
    out.flush()
    os.fsync(out.fileno())


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder: new, renamed and removed ones."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder, and those above it that are missing, and sync each folder that has a new one in it.

    mode: of this one, before the umask. Raises OSError.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode, exist_ok=True)  # another process may have just made it
    sync_folder(folder.parent)
