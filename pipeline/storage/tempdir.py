"""A private folder on a local disk for what a process has at hand; it is gone with the process. Edge: files.

It lies where Python's tempfile puts things: TMPDIR, else /tmp. What a killed process left is removed by the next one of
the same user: the lock on a file in it is held as long as its process lives.
"""

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from pathlib import Path

from pipeline.errors import Stopped

LOCK = "lock"


def folder() -> Path:
    """The folder of this process, readable for its owner only. Raises Stopped when it cannot be made."""
    try:
        return _folder(os.getpid())  # a forked process has one of its own
    except OSError as exc:
        raise Stopped(f"{where()}: {exc.strerror or exc}; safe to run again") from exc


def where() -> str:
    """The place, in the words of an error."""
    with contextlib.suppress(FileNotFoundError):  # there is none at all
        return f"temporary folder {tempfile.gettempdir()} (TMPDIR names another)"
    return "temporary folder (TMPDIR names it)"


@functools.cache
def _folder(pid: int) -> Path:
    prefix = f"batch-pipeline-{os.getuid()}-"
    _remove_dead(Path(tempfile.gettempdir()), prefix)
    made = Path(tempfile.mkdtemp(prefix=prefix))  # 0700
    part = made / f"{LOCK}.new"
    fcntl.flock(os.open(part, os.O_CREAT | os.O_RDWR, 0o600), fcntl.LOCK_EX)  # kept open until the process ends
    part.rename(made / LOCK)  # whoever finds the file finds it locked
    atexit.register(_remove, made, pid)
    return made


def _remove(made: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(made, ignore_errors=True)


def _remove_dead(parent: Path, prefix: str) -> None:
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # another process removes it just now, or it is not ours, or in use
            handle = os.open(left / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if os.fstat(handle).st_uid == os.getuid():
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)
