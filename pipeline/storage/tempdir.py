"""A private temporary folder of this process, removed when the process ends. Edge: files.

It is made where Python's tempfile makes things: in TMPDIR, else in /tmp. The folder of a killed process is removed by
the same user's next process: each process holds a lock on a file in its folder for as long as it lives.
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
    """Return the folder of this process, which only its user can read. Raises Stopped if it cannot be created."""
    try:
        return _folder(os.getpid())  # a forked process has one of its own
    except OSError as exc:
        raise Stopped(f"{description()}: {exc.strerror or exc}; safe to run again") from exc


def description() -> str:
    """Return how an error message names the place of the temporary folder."""
    with contextlib.suppress(FileNotFoundError):  # this machine has no place for temporary files
        return f"temporary folder {tempfile.gettempdir()} (TMPDIR names another)"
    return "temporary folder (TMPDIR names it)"


@functools.cache
def _folder(pid: int) -> Path:
    prefix = f"batch-pipeline-{os.getuid()}-"
    _remove_dead(Path(tempfile.gettempdir()), prefix)
    made = Path(tempfile.mkdtemp(prefix=prefix))  # 0700
    unlocked = made / f"{LOCK}.new"
    fcntl.flock(os.open(unlocked, os.O_CREAT | os.O_RDWR, 0o600), fcntl.LOCK_EX)  # kept open until the process ends
    unlocked.rename(made / LOCK)  # so that no other process ever sees the lock file unlocked
    atexit.register(_remove, made, pid)
    return made


def _remove(made: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(made, ignore_errors=True)


def _remove_dead(parent: Path, prefix: str) -> None:
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # another process is removing it, or it is another user's, or in use
            handle = os.open(left / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if os.fstat(handle).st_uid == os.getuid():
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)
