"""A spool in a folder of this machine's file system. Edge: files."""

import contextlib
import io
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pipeline.spool.body import count_requests, digest
from pipeline.spool.spool import UNKNOWN_AGE, KnownBody, Spool, StoredBody, unusable_spool, wrong_spool
from pipeline.storage import durable
from pipeline.storage.folders import MARKER

FORGOTTEN_SECONDS = 86_400.0  # after the last write to a results file, no driver is still writing it


@dataclass(frozen=True)
class LocalSpool(Spool):
    """A spool in a folder, with one file per batch. Several machines may share the folder.

    folder: where the job's bodies are; id: see Spool.
    """

    folder: Path
    id: str

    @classmethod
    def open(cls, root: Path, job: str, *, expected: str | None = None) -> "LocalSpool":
        """Return the spool of a job, and create its folder `root`/`job`, private to its owner, if it is missing.

        expected: the id of the spool that the job has used; None if any will do.
        Raises DatabaseError if the id differs, for example on a machine where the shared folder is not mounted, or if
        the folder cannot be used.
        """
        folder, marker = root / job, root / MARKER
        try:
            if expected is not None and _read_marker(marker) != expected:
                raise wrong_spool(str(root), job, expected)
            durable.make_folder(root, mode=durable.PRIVATE)
            durable.make_folder(folder, mode=durable.PRIVATE)
            identifier = _read_marker(marker) or _write_marker(marker)
        except OSError as exc:
            raise unusable_spool(folder, exc.strerror) from exc
        return cls(folder, identifier)

    @staticmethod
    def read_id(root: Path) -> str | None:
        """Return the id of the spool in this folder; None if there is no spool yet. Changes nothing.

        Raises DatabaseError if a spool cannot be created here.
        """
        try:
            identifier = _read_marker(root / MARKER)
        except OSError as exc:
            raise unusable_spool(root, exc.strerror) from exc
        there = next(folder for folder in (root, *root.parents) if folder.exists())
        if not there.is_dir():
            raise unusable_spool(root, f"{there} is not a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise unusable_spool(root, f"{there} is not writable")
        return identifier

    def path(self, nonce: str) -> Path:
        """Return the path of the body with this nonce."""
        return self.folder / f"{nonce}.json"

    def begin(self, nonce: str) -> Path:
        return self.path(nonce).with_suffix(".tmp")

    def complete(self, nonce: str, file: io.FileIO) -> None:
        os.fsync(file.fileno())
        self.begin(nonce).rename(self.path(nonce))
        durable.sync_folder(self.folder)

    def discard(self, nonce: str) -> None:
        self.begin(nonce).unlink(missing_ok=True)
        self.remove(nonce)

    @property
    def disk(self) -> str:
        return f"spool {self.folder}"

    @contextlib.contextmanager
    def local_copy(self, nonce: str, sha256: str) -> Iterator[Path | None]:
        yield self.path(nonce) if digest(self.path(nonce)) == sha256 else None

    def damaged(self, bodies: Iterable[KnownBody]) -> set[str]:
        return {body.nonce for body in bodies if digest(self.path(body.nonce)) != body.digest}

    def bodies(self, now: datetime) -> dict[str, StoredBody]:
        found = {}
        for file in self.folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                stat = file.stat()
                seconds = time.time() - stat.st_mtime  # an age, because our clock may differ from the API's
                age = timedelta(seconds=seconds) if seconds >= 0 else UNKNOWN_AGE  # our clock was set back since
                found[file.stem] = StoredBody(str(file), stat.st_size, now - age)
        return found

    def count_requests(self, nonce: str) -> int:
        with open(self.path(nonce), "rb") as body:
            return count_requests(body)

    def remove(self, nonce: str) -> None:
        self.path(nonce).unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        for file in self.folder.glob("*.tmp"):
            file.unlink(missing_ok=True)
        for file in self.folder.glob("*.results"):  # left by drivers that died while they collected
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > FORGOTTEN_SECONDS:
                    file.unlink()

    def results_file(self, nonce: str, claim: int) -> Path:
        return self.folder / f"{nonce}.{claim}.results"


def _read_marker(marker: Path) -> str | None:
    """Return the spool id in a marker file; None if the file is missing or empty."""
    try:
        return marker.read_text().strip() or None
    except FileNotFoundError:
        return None


def _write_marker(marker: Path) -> str:
    """Create the marker file with a new spool id, unless another driver has just done so; return the id in the file."""
    new = marker.with_name(f"{MARKER}.{secrets.token_hex(4)}")
    with open(new, "w") as out:
        out.write(secrets.token_hex(8) + "\n")
        durable.sync_file(out)
    with contextlib.suppress(FileExistsError):
        os.link(new, marker)
    new.unlink()
    durable.sync_folder(marker.parent)  # also by the driver that lost the race: the marker it uses must not vanish
    return _read_marker(marker) or ""
