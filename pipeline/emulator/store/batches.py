"""The batches of a data folder: their rows, and where the texts of each lie."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.emulator.store.folder import DataFolder, sync_folder

DAY_US = 24 * 3600 * 1_000_000
RETENTION_US = 29 * DAY_US
RESULT_CODES = {"succeeded": b"s", "errored": b"e", "canceled": b"c", "expired": b"x"}
RESULT_NAMES = {code[0]: name for name, code in RESULT_CODES.items()}


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


class BatchStore:
    """Every batch ever accepted. What a crash left behind without a row is removed at the start."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._batches = folder.path / "batches"
        self._clean()

    def _clean(self) -> None:
        self._batches.mkdir(exist_ok=True, mode=0o700)
        known = {row[0] for row in self._folder.rows("SELECT id FROM batches")}
        for folder in self._batches.iterdir():
            if folder.name not in known:
                shutil.rmtree(folder)

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
        self._folder.execute(
            "INSERT INTO batches (id, workspace, version, betas, requests, status, created_us) "
            "VALUES (?, ?, ?, ?, ?, 'in_progress', ?)",
            batch_id,
            workspace,
            version,
            betas,
            requests,
            now_us,
        )
        return self.get(batch_id)

    def get(self, batch_id: str) -> Batch:
        """Raises KeyError if there is none of that id (a deleted one is there)."""
        rows = self._folder.rows("SELECT * FROM batches WHERE id = ?", batch_id)
        if not rows:
            raise KeyError(batch_id)
        return Batch(*rows[0])

    def all(self) -> list[Batch]:
        """Every batch ever accepted, oldest first."""
        return [Batch(*row) for row in self._folder.rows("SELECT * FROM batches ORDER BY number")]

    def running(self) -> list[Batch]:
        """Not ended, oldest first."""
        return [
            Batch(*row) for row in self._folder.rows("SELECT * FROM batches WHERE status <> 'ended' ORDER BY number")
        ]

    def listed(self, workspace: str, before_us: int) -> list[Batch]:
        """What a listing shows, newest first: not deleted, created at `before_us` or earlier."""
        rows = self._folder.rows(
            "SELECT * FROM batches WHERE workspace = ? AND deleted_us IS NULL AND created_us <= ? ORDER BY number DESC",
            workspace,
            before_us,
        )
        return [Batch(*row) for row in rows]

    def newest(self, workspace: str) -> Batch | None:
        """The batch accepted last, deleted or not; None if there never was one."""
        rows = self._folder.rows("SELECT * FROM batches WHERE workspace = ? ORDER BY number DESC LIMIT 1", workspace)
        return Batch(*rows[0]) if rows else None

    def queued(self, workspace: str) -> int:
        """Requests of the workspace that are not processed yet."""
        rows = self._folder.rows(
            "SELECT sum(requests) FROM batches WHERE workspace = ? AND status <> 'ended'", workspace
        )
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
        due = self._folder.rows(
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
        return self._folder.execute(sql, *values) == 1

    def _forget_texts(self, batch_id: str) -> None:
        for name in ("requests", "results"):
            self.path(batch_id, name).unlink(missing_ok=True)
