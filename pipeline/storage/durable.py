"""Sync files and folders, so that they survive a power cut. Edge: files.

The content of a file is durable once the file is synced. The name of a file or folder is durable once the folder that
contains it is synced; a rename likewise.
"""

import os
from pathlib import Path
from typing import Any

PRIVATE = 0o700  # only the owner may read, write and list


def sync_file(out: Any) -> None:
    """Flush and fsync an open file: its content is then on the disk. Raises OSError."""
    out.flush()
    os.fsync(out.fileno())


def sync_folder(folder: Path) -> None:
    """Fsync a folder: names that were created, renamed or removed in it are then durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Create a folder and its missing parents, durably; do nothing if it exists.

    mode: the permissions of the last folder, before the umask; the parents get the default. Raises OSError.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode, exist_ok=True)  # another process may have just made it
    sync_folder(folder.parent)
