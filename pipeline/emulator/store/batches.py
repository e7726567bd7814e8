"""The batches of a data folder: their rows in SQLite, and the paths of their files."""

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
    """A row of the table `batches`. Times in microseconds since 1970; None: it has not happened."""

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
        """Return when the batch expires: 24 hours after its creation."""
        return self.created_us + DAY_US


class BatchStore:
    """All batches that were ever accepted. At the start, folders that a crash left without a row are removed."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._batches = folder.path / "batches"
        self._remove_unknown_folders()

    def _remove_unknown_folders(self) -> None:
        self._batches.mkdir(exist_ok=True, mode=0o700)
        known = {row[0] for row in self._folder.rows("SELECT id FROM batches")}
        for folder in self._batches.iterdir():
            if folder.name not in known:
                shutil.rmtree(folder)

    def path(self, batch_id: str, name: str) -> Path:
        """Return the path of a file of a batch, whether or not it exists."""
        return self._batches / batch_id / name

    def make_folder(self, batch_id: str) -> Path:
        """Create the folder of a new batch and return its path."""
        folder = self._batches / batch_id
        folder.mkdir(mode=0o700)
        return folder

    def drop_folder(self, batch_id: str) -> None:
        """Remove the folder of a batch that was not accepted."""
        shutil.rmtree(self._batches / batch_id, ignore_errors=True)

    def add(self, batch_id: str, *, workspace: str, version: str, betas: str, requests: int, now_us: int) -> Batch:
        """Accept a batch: commit its row and return it. Its folder must be complete."""
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
        """Return a batch, also a deleted one. Raises KeyError if no batch has this id."""
        rows = self._folder.rows("SELECT * FROM batches WHERE id = ?", batch_id)
        if not rows:
            raise KeyError(batch_id)
        return Batch(*rows[0])

    def all(self) -> list[Batch]:
        """Return all batches that were ever accepted, oldest first."""
        return [Batch(*row) for row in self._folder.rows("SELECT * FROM batches ORDER BY number")]

    def running(self) -> list[Batch]:
        """Return the batches that have not ended, oldest first."""
        return [
            Batch(*row) for row in self._folder.rows("SELECT * FROM batches WHERE status <> 'ended' ORDER BY number")
        ]

    def listed(self, workspace: str, before_us: int) -> list[Batch]:
        """Return the batches of a workspace that are not deleted and were created by `before_us`, newest first."""
        rows = self._folder.rows(
            "SELECT * FROM batches WHERE workspace = ? AND deleted_us IS NULL AND created_us <= ? ORDER BY number DESC",
            workspace,
            before_us,
        )
        return [Batch(*row) for row in rows]

    def newest(self, workspace: str) -> Batch | None:
        """Return the batch of a workspace that was accepted last, deleted or not; None if there never was one."""
        rows = self._folder.rows("SELECT * FROM batches WHERE workspace = ? ORDER BY number DESC LIMIT 1", workspace)
        return Batch(*rows[0]) if rows else None

    def queued(self, workspace: str) -> int:
        """Return the number of requests of a workspace in batches that have not ended."""
        rows = self._folder.rows(
            "SELECT sum(requests) FROM batches WHERE workspace = ? AND status <> 'ended'", workspace
        )
        return rows[0][0] or 0

    # moves: each moves a batch only from the state that it expects, and returns whether it did

    def mark_canceling(self, batch_id: str, now_us: int) -> bool:
        """in_progress -> canceling. Return whether the batch was moved."""
        return self._move(
            "UPDATE batches SET status = 'canceling', cancel_initiated_us = ? WHERE id = ? AND status = 'in_progress'",
            now_us,
            batch_id,
        )

    def mark_ended(self, batch_id: str, counts: dict[str, int], now_us: int) -> bool:
        """in_progress or canceling -> ended. The results file must be complete and synced. Return whether it moved."""
        return self._move(
            "UPDATE batches SET status = 'ended', ended_us = ?, succeeded = ?, errored = ?, canceled = ?, expired = ? "
            "WHERE id = ? AND status <> 'ended'",
            now_us,
            *(counts[name] for name in RESULT_CODES),
            batch_id,
        )

    def mark_archived(self, now_us: int) -> None:
        """ended -> archived, for all batches that are 29 days old. Removes their requests and results."""
        due = self._folder.rows(
            "SELECT id FROM batches WHERE status = 'ended' AND archived_us IS NULL AND created_us <= ?",
            now_us - RETENTION_US,
        )
        for (batch_id,) in due:
            self._move("UPDATE batches SET archived_us = created_us + ? WHERE id = ?", RETENTION_US, batch_id)
            self._remove_texts(batch_id)

    def mark_deleted(self, batch_id: str, now_us: int) -> bool:
        """ended -> deleted. Removes requests and results; the audit still knows the batch. Return whether it moved."""
        moved = self._move(
            "UPDATE batches SET deleted_us = ? WHERE id = ? AND status = 'ended' AND deleted_us IS NULL",
            now_us,
            batch_id,
        )
        if moved:
            self._remove_texts(batch_id)
        return moved

    def _move(self, sql: str, *values: object) -> bool:
        """Execute an UPDATE of one batch; return whether it changed a row."""
        return self._folder.execute(sql, *values) == 1

    def _remove_texts(self, batch_id: str) -> None:
        for name in ("requests", "results"):
            self.path(batch_id, name).unlink(missing_ok=True)
