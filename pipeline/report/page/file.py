"""Write a page to a file that only its owner can read, whole or not at all. Edge: files."""

import os
from pathlib import Path

from pipeline.errors import InputError
from pipeline.sink.export import require_parent, whole_file
from pipeline.storage import durable

PRIVATE = 0o600


def write(path: Path, page: str, *, overwrite: bool) -> int:
    """Write a page, and return its size in bytes. A link of this name is replaced, not followed.

    Raises InputError as `refuse_taken` does, and Stopped if the disk fails.
    """
    refuse_taken(path, overwrite=overwrite)
    content = page.encode()
    with whole_file(path) as part, open(part, "xb", opener=_private) as out:
        out.write(content)
        durable.sync_file(out)
    return len(content)


def refuse_taken(path: Path, *, overwrite: bool) -> None:
    """Raise InputError for a folder, a missing folder, or an existing file (unless overwrite)."""
    if path.is_dir() and not path.is_symlink():
        raise InputError(f"{path} is a folder; give the name of a file, as in -o {path / 'report.html'}")
    if not overwrite and os.path.lexists(path):
        raise InputError(f"{path} exists; give another name with -o, or --overwrite")
    require_parent(path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, PRIVATE)
