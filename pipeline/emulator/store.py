"""The data folder: batches and uploads in SQLite, bodies, results and what was uploaded as files.

    lock                 held by flock while an emulator uses the folder; says which
    emulator.db          batches, files, and the clock's offset
    log.ndjson           the calls seen
    uploads/             bodies on their way in; emptied at each start
    batches/ID/          accepted  "sha256 custom_id" a line, in the order of the create; stays for good
                         requests  "custom_id params" a line, until archived or deleted
                         results   JSONL in the order it is delivered, until archived or deleted
                         outcomes  one byte a request, in the order of the create; stays for good
    files/ID             what was uploaded, until deleted

A batch or a file exists once its row is committed; what belongs to it on the disk is complete and synced before that.
What has no row was left behind by a crash, and is removed at the next start.
"""

import fcntl
import json
import os
import shutil
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from pipeline.emulator.errors import EmulatorError
from pipeline.emulator.model.files import StoredFile

DAY_US = 24 * 3600 * 1_000_000
RETENTION_US = 29 * DAY_US
RESULT_CODES = {"succeeded": b"s", "errored": b"e", "canceled": b"c", "expired": b"x"}
RESULT_NAMES = {code[0]: name for name, code in RESULT_CODES.items()}
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


@dataclass(frozen=True)
class Batch:
    """A row of `batches`; times in microseconds since 1970."""

    number: int
    id: str
    workspace: str
    version: str
    betas: str
    requests: int
    status: str
    created_us: int
    cancel_initiated_us: int | None
    ended_us: int | None
    archived_us: int | None
    deleted_us: int | None
    succeeded: int
    errored: int
    canceled: int
    expired: int

    @property
    def expires_us(self) -> int:
        return self.created_us + DAY_US


class Store:
    """The data folder, opened by one process. Raises EmulatorError if another one has it. Safe across threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        except OSError as exc:
            raise EmulatorError(f"the data folder {folder} cannot be used: {exc.strerror}") from exc
        self._lock_file = _flock(folder)
        self._db = self._open_database()
        self._batches = folder / "batches"
        self._files = folder / "files"
        self.uploads = folder / "uploads"
        self._log = os.open(folder / "log.ndjson", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._clean()
        self.close = weakref.finalize(self, _close, self._db, self._log, self._lock_file)

    def _open_database(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.folder / "emulator.db", check_same_thread=False, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # a create is durable before its 200 is sent
        db.executescript(SCHEMA)
        return db

    def _clean(self) -> None:
        shutil.rmtree(self.uploads, ignore_errors=True)
        self.uploads.mkdir(mode=0o700)
        self._batches.mkdir(exist_ok=True, mode=0o700)
        known = {row[0] for row in self._rows("SELECT id FROM batches")}
        for folder in self._batches.iterdir():
            if folder.name not in known:
                shutil.rmtree(folder)
        self._files.mkdir(exist_ok=True, mode=0o700)
        uploaded = {row[0] for row in self._rows("SELECT id FROM files")}
        for file in self._files.iterdir():
            if file.name not in uploaded:
                file.unlink()
        log = self.folder / "log.ndjson"
        end = _end_of_last_line(log)
        if end != log.stat().st_size:  # killed while it wrote a line
            os.ftruncate(self._log, end)

    def set_url(self, url: str) -> None:
        """Leave the address where the next one who wants this folder finds it."""
        os.ftruncate(self._lock_file, 0)
        os.pwrite(self._lock_file, json.dumps({"pid": os.getpid(), "url": url}).encode(), 0)

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    # batches

    def path(self, batch_id: str, name: str) -> Path:
        """A file of a batch; its folder need not exist yet."""
        return self._batches / batch_id / name

    def make_folder(self, batch_id: str) -> Path:
        folder = self._batches / batch_id
        folder.mkdir(mode=0o700)
        return folder

    def drop_folder(self, batch_id: str) -> None:
        shutil.rmtree(self._batches / batch_id, ignore_errors=True)

    def add(self, batch_id: str, *, workspace: str, version: str, betas: str, requests: int, now_us: int) -> Batch:
        """Record a batch whose folder is complete: from here on it was accepted."""
        sync_folder(self._batches / batch_id)
        sync_folder(self._batches)
        with self._lock:
            self._db.execute(
                "INSERT INTO batches (id, workspace, version, betas, requests, status, created_us) "
                "VALUES (?, ?, ?, ?, ?, 'in_progress', ?)",
                (batch_id, workspace, version, betas, requests, now_us),
            )
        return self.get(batch_id)

    def get(self, batch_id: str) -> Batch:
        """Raises KeyError if there is none of that id (a deleted one is there)."""
        rows = self._rows("SELECT * FROM batches WHERE id = ?", batch_id)
        if not rows:
            raise KeyError(batch_id)
        return Batch(*rows[0])

    def all(self) -> list[Batch]:
        """Every batch ever accepted, oldest first."""
        return [Batch(*row) for row in self._rows("SELECT * FROM batches ORDER BY number")]

    def running(self) -> list[Batch]:
        """Not ended, oldest first."""
        return [Batch(*row) for row in self._rows("SELECT * FROM batches WHERE status <> 'ended' ORDER BY number")]

    def listed(self, workspace: str, before_us: int) -> list[Batch]:
        """What a listing shows, newest first: not deleted, created at `before_us` or earlier."""
        rows = self._rows(
            "SELECT * FROM batches WHERE workspace = ? AND deleted_us IS NULL AND created_us <= ? ORDER BY number DESC",
            workspace,
            before_us,
        )
        return [Batch(*row) for row in rows]

    def newest(self, workspace: str) -> Batch | None:
        """The batch accepted last, deleted or not; None if there never was one."""
        rows = self._rows("SELECT * FROM batches WHERE workspace = ? ORDER BY number DESC LIMIT 1", workspace)
        return Batch(*rows[0]) if rows else None

    def queued(self, workspace: str) -> int:
        """Requests of the workspace that are not processed yet."""
        rows = self._rows("SELECT sum(requests) FROM batches WHERE workspace = ? AND status <> 'ended'", workspace)
        return rows[0][0] or 0

    # moves; each only from the state it expects, and says whether it moved

    def mark_canceling(self, batch_id: str, now_us: int) -> bool:
        """in_progress -> canceling."""
        return self._move(
            "UPDATE batches SET status = 'canceling', cancel_initiated_us = ? WHERE id = ? AND status = 'in_progress'",
            now_us,
            batch_id,
        )

    def mark_ended(self, batch_id: str, counts: dict[str, int], now_us: int) -> bool:
        """in_progress or canceling -> ended; the results file is in place and synced."""
        return self._move(
            "UPDATE batches SET status = 'ended', ended_us = ?, succeeded = ?, errored = ?, canceled = ?, expired = ? "
            "WHERE id = ? AND status <> 'ended'",
            now_us,
            *(counts[name] for name in RESULT_CODES),
            batch_id,
        )

    def mark_archived(self, now_us: int) -> None:
        """ended -> archived, all that are 29 days old; their bodies and results go."""
        due = self._rows(
            "SELECT id FROM batches WHERE status = 'ended' AND archived_us IS NULL AND created_us <= ?",
            now_us - RETENTION_US,
        )
        for (batch_id,) in due:
            self._move("UPDATE batches SET archived_us = created_us + ? WHERE id = ?", RETENTION_US, batch_id)
            self._forget_texts(batch_id)

    def mark_deleted(self, batch_id: str, now_us: int) -> bool:
        """ended -> deleted; what was accepted stays known to the audit, the texts go."""
        moved = self._move(
            "UPDATE batches SET deleted_us = ? WHERE id = ? AND status = 'ended' AND deleted_us IS NULL",
            now_us,
            batch_id,
        )
        if moved:
            self._forget_texts(batch_id)
        return moved

    def _move(self, sql: str, *values: object) -> bool:
        with self._lock:
            return self._db.execute(sql, values).rowcount == 1

    def _forget_texts(self, batch_id: str) -> None:
        for name in ("requests", "results"):
            self.path(batch_id, name).unlink(missing_ok=True)

    # files

    def add_file(
        self,
        file_id: str,
        write: Callable[[Path], None],
        *,
        workspace: str,
        filename: str,
        mime_type: str,
        size_bytes: int,
        now_us: int,
        expires_us: int | None,
    ) -> StoredFile:
        """Record a file. write: puts its bytes at the path it is given."""
        path = self._files / file_id
        write(path)
        sync_folder(path)
        sync_folder(self._files)
        with self._lock:
            self._db.execute(
                "INSERT INTO files (id, workspace, filename, mime_type, size_bytes, created_us, expires_us) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (file_id, workspace, filename, mime_type, size_bytes, now_us, expires_us),
            )
        stored = self.file(workspace, file_id)
        assert stored is not None
        return stored

    def file(self, workspace: str, file_id: str) -> StoredFile | None:
        """None if the workspace has none of that id; an expired one is there."""
        rows = self._rows("SELECT * FROM files WHERE id = ? AND workspace = ?", file_id, workspace)
        return self._stored(rows[0]) if rows else None

    def files(self, workspace: str, *, before: int | None, most: int) -> list[StoredFile]:
        """At most so many, newest first; before: only those with a lower number."""
        rows = self._rows(
            "SELECT * FROM files WHERE workspace = ? AND number < ? ORDER BY number DESC LIMIT ?",
            workspace,
            2**62 if before is None else before,
            most,
        )
        return [self._stored(row) for row in rows]

    def remove_file(self, file_id: str) -> None:
        """The row first: bytes without a row are cleaned up, a row without bytes would be a lie."""
        with self._lock:
            self._db.execute("DELETE FROM files WHERE id = ?", (file_id,))
        (self._files / file_id).unlink(missing_ok=True)

    def _stored(self, row: tuple[Any, ...]) -> StoredFile:
        return StoredFile(*(*row, self._files / row[1]))

    # meta and log

    def load(self, name: str) -> str | None:
        rows = self._rows("SELECT value FROM meta WHERE name = ?", name)
        return rows[0][0] if rows else None

    def save(self, name: str, value: str) -> None:
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def log_size(self) -> int:
        """Lines in the log."""
        with (self.folder / "log.ndjson").open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))

    def append_log(self, line: bytes) -> None:
        os.write(self._log, line + b"\n")

    def log(self) -> Iterator[dict[str, Any]]:
        """Each call seen, oldest first; a line that is being written does not count."""
        with (self.folder / "log.ndjson").open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield orjson.loads(line)


def _flock(folder: Path) -> int:
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
    try:
        other = json.loads(text)
    except ValueError:  # it has the lock and has not yet written who it is
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
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(size - (1 << 20), 0)
        file.seek(start)
        return start + file.read().rfind(b"\n") + 1


def sync_folder(path: Path) -> None:
    """Make durable the names in a folder, or what is in a file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
