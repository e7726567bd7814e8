"""The data folder: a SQLite database and the files of batches and uploads.

    lock                 locked by flock while an emulator uses the folder; holds its process id and address
    emulator.db          batches, files, and the clock's offset
    log.ndjson           the log of calls
    uploads/             bodies that are being received; emptied at each start
    batches/ID/          accepted  a line "sha256 custom_id" for each request, in the order of the create call; kept
                         requests  a line "sha256 custom_id params" for each request, until archived or deleted
                         results   JSONL in the order of delivery, until archived or deleted
                         outcomes  one byte for each request, in the order of the create call; kept
    files/ID             the bytes of an uploaded file, until deleted

A batch or a file exists as soon as its row is committed. Its files are complete and synced before that. Files without a
row were left by a crash and are removed at the next start.
"""

import fcntl
import json
import os
import shutil
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from pipeline.emulator.errors import EmulatorError

SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    number              INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of listing
    id                  TEXT NOT NULL UNIQUE,
    workspace           TEXT NOT NULL,
    version             TEXT NOT NULL,                      -- anthropic-version of the create
    betas               TEXT NOT NULL,                      -- separated by commas
    requests            INTEGER NOT NULL CHECK (requests > 0),
    status              TEXT NOT NULL CHECK (status IN ('in_progress', 'canceling', 'ended')),
    created_us          INTEGER NOT NULL,
    cancel_initiated_us INTEGER,
    ended_us            INTEGER,
    archived_us         INTEGER,
    deleted_us          INTEGER,
    succeeded           INTEGER NOT NULL DEFAULT 0,
    errored             INTEGER NOT NULL DEFAULT 0,
    canceled            INTEGER NOT NULL DEFAULT 0,
    expired             INTEGER NOT NULL DEFAULT 0,
    CHECK ((status = 'ended') = (ended_us IS NOT NULL)),
    CHECK (status <> 'canceling' OR cancel_initiated_us IS NOT NULL),
    CHECK (archived_us IS NULL OR status = 'ended'),
    CHECK (deleted_us IS NULL OR status = 'ended')
);
CREATE INDEX IF NOT EXISTS running_batches ON batches (number) WHERE status <> 'ended';  -- the worker asks often
CREATE TABLE IF NOT EXISTS files (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of listing
    id         TEXT NOT NULL UNIQUE,
    workspace  TEXT NOT NULL,
    filename   TEXT NOT NULL,
    mime_type  TEXT NOT NULL,                      -- as the upload declared it
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
    created_us INTEGER NOT NULL,
    expires_us INTEGER CHECK (expires_us > created_us)
);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class DataFolder:
    """The data folder, opened by one process. Safe across threads.

    Raises EmulatorError if another emulator uses the folder, or it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.chmod(0o700)
        except OSError as exc:
            raise EmulatorError(f"the data folder {path} cannot be used: {exc.strerror}") from exc
        self._lock_file = _locked(path)
        self._db = self._open_database()
        self.uploads = path / "uploads"
        self._log = os.open(path / "log.ndjson", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._remove_leftovers()
        self.close = weakref.finalize(self, _close, self._db, self._log, self._lock_file)

    def _open_database(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path / "emulator.db", check_same_thread=False, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # a batch is durable before its creation is answered
        db.executescript(SCHEMA)
        return db

    def _remove_leftovers(self) -> None:
        shutil.rmtree(self.uploads, ignore_errors=True)
        self.uploads.mkdir(mode=0o700)
        log = self.path / "log.ndjson"
        end = _end_of_last_line(log)
        if end != log.stat().st_size:  # the process was killed while it wrote a line
            os.ftruncate(self._log, end)

    def set_url(self, url: str) -> None:
        """Store the emulator's address in the lock file, for the error message of a second emulator."""
        os.ftruncate(self._lock_file, 0)
        os.pwrite(self._lock_file, json.dumps({"pid": os.getpid(), "url": url}).encode(), 0)

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def execute(self, sql: str, *values: object) -> int:
        """Execute and commit a statement, and return the number of rows that it changed."""
        with self._lock:
            return self._db.execute(sql, values).rowcount

    # meta and log

    def load(self, name: str) -> str | None:
        """Return the value that was saved under this name; None if there is none."""
        rows = self.rows("SELECT value FROM meta WHERE name = ?", name)
        return rows[0][0] if rows else None

    def save(self, name: str, value: str) -> None:
        """Save a value under a name."""
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", name, value)

    def log_size(self) -> int:
        """Return the number of lines in the log of calls."""
        with (self.path / "log.ndjson").open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))

    def append_log(self, line: bytes) -> None:
        """Add a line, without its newline, to the log of calls."""
        os.write(self._log, line + b"\n")

    def log(self) -> Iterator[dict[str, Any]]:
        """Yield the calls in the log, oldest first. A line that is still being written is left out."""
        with (self.path / "log.ndjson").open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield orjson.loads(line)


def _locked(folder: Path) -> int:
    """Lock the folder and return the open lock file. Raises EmulatorError if another emulator holds the lock."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(handle, 1000, 0)
        os.close(handle)
        raise EmulatorError(_used_by(folder, text)) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps({"pid": os.getpid(), "url": None}).encode(), 0)
    return handle


def _used_by(folder: Path, text: bytes) -> str:
    """Return the message about the emulator that uses the folder. text: the content of its lock file."""
    try:
        other = json.loads(text)
    except ValueError:  # the other emulator has the lock and has not written its process id yet
        other = {"pid": "unknown", "url": None}
    at = other["url"] or "no address, used from Python"
    return (
        f"the data folder {folder} is used by another emulator (pid {other['pid']}, {at}); "
        "use that one, stop it, or choose another folder"
    )


def _close(db: sqlite3.Connection, *handles: int) -> None:
    db.close()
    for handle in handles:
        os.close(handle)


def _end_of_last_line(path: Path) -> int:
    """Return the size of the file up to and with its last newline, which must be in its last MB."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(size - (1 << 20), 0)
        file.seek(start)
        return start + file.read().rfind(b"\n") + 1


def sync_folder(path: Path) -> None:
    """Sync a folder or a file to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
