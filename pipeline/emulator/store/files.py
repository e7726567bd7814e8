"""The uploaded files of a data folder: their rows in SQLite and their bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.emulator.model.files import StoredFile
from pipeline.emulator.store.folder import DataFolder, sync_folder


class FileStore:
    """The files that were uploaded and not deleted. At the start, bytes that a crash left without a row are removed."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._files = folder.path / "files"
        self._remove_unknown_files()

    def _remove_unknown_files(self) -> None:
        self._files.mkdir(exist_ok=True, mode=0o700)
        uploaded = {row[0] for row in self._folder.rows("SELECT id FROM files")}
        for file in self._files.iterdir():
            if file.name not in uploaded:
                file.unlink()

    def add(
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
        """Store a file and return its row. write: called with a path, to which it writes the file's bytes.

        now_us, expires_us: microseconds since 1970; expires_us None: the file does not expire.
        """
        path = self._files / file_id
        write(path)
        sync_folder(path)
        sync_folder(self._files)
        self._folder.execute(
            "INSERT INTO files (id, workspace, filename, mime_type, size_bytes, created_us, expires_us) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            file_id,
            workspace,
            filename,
            mime_type,
            size_bytes,
            now_us,
            expires_us,
        )
        stored = self.get(workspace, file_id)
        assert stored is not None
        return stored

    def get(self, workspace: str, file_id: str) -> StoredFile | None:
        """Return a file, also an expired one; None if the workspace has no file with this id."""
        rows = self._folder.rows("SELECT * FROM files WHERE id = ? AND workspace = ?", file_id, workspace)
        return self._stored(rows[0]) if rows else None

    def listed(self, workspace: str, *, before: int | None, most: int) -> list[StoredFile]:
        """Return at most `most` files of a workspace, newest first. before: only lower numbers; None: all."""
        rows = self._folder.rows(
            "SELECT * FROM files WHERE workspace = ? AND number < ? ORDER BY number DESC LIMIT ?",
            workspace,
            2**62 if before is None else before,
            most,
        )
        return [self._stored(row) for row in rows]

    def remove(self, file_id: str) -> None:
        """Remove a file."""
        # the row first: after a crash, bytes without a row are removed, but a row without bytes would stay
        self._folder.execute("DELETE FROM files WHERE id = ?", file_id)
        (self._files / file_id).unlink(missing_ok=True)

    def _stored(self, row: tuple[Any, ...]) -> StoredFile:
        return StoredFile(*(*row, self._files / row[1]))
