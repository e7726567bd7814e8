"""A folder of this machine as a spool. Edge: files."""

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
from pipeline.spool.spool import UNKNOWN_AGE, Known, Spool, Stored, another_one, unusable
from pipeline.storage import durable
from pipeline.storage.folders import MARKER

FORGOTTEN_SECONDS = 86_400.0  # since a results file was written: nobody is at it any more


@dataclass(frozen=True)
class LocalSpool(Spool):
    """A spool in a folder, which several machines may share: one file a batch."""

    folder: Path
    id: str

    @classmethod
    def open(cls, root: Path, job: str, *, expected: str | None = None) -> "LocalSpool":
        """The folder of `job` below `root`, made readable for its owner only.

        expected: the id of the spool that the job has used. Raises DatabaseError if this is another one, as on a
        machine where it is not mounted, or if it cannot be used.
        """
        folder, marker = root / job, root / MARKER
        try:
            if expected is not None and _marked(marker) != expected:
                raise another_one(str(root), job, expected)
            durable.make_folder(root, mode=durable.PRIVATE)
            durable.make_folder(folder, mode=durable.PRIVATE)
            identifier = _marked(marker) or _mark(marker)
        except OSError as exc:
            raise unusable(folder, exc.strerror) from exc
        return cls(folder, identifier)

    @staticmethod
    def look_at(root: Path) -> str | None:
        """The id of the spool in this folder; None when there is none yet. Raises DatabaseError if none can be."""
        try:
            identifier = _marked(root / MARKER)
        except OSError as exc:
            raise unusable(root, exc.strerror) from exc
        there = next(folder for folder in (root, *root.parents) if folder.exists())
        if not there.is_dir():
            raise unusable(root, f"{there} is no folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise unusable(root, f"{there} is not writable")
        return identifier

    def path(self, nonce: str) -> Path:
        """Where the body of this nonce is."""
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
    def at_hand(self, nonce: str, sha256: str) -> Iterator[Path | None]:
        yield self.path(nonce) if digest(self.path(nonce)) == sha256 else None

    def damaged(self, bodies: Iterable[Known]) -> set[str]:
        return {body.nonce for body in bodies if digest(self.path(body.nonce)) != body.digest}

    def bodies(self, now: datetime) -> dict[str, Stored]:
        found = {}
        for file in self.folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                stat = file.stat()
                seconds = time.time() - stat.st_mtime  # our clock may be another than the API's
                age = timedelta(seconds=seconds) if seconds >= 0 else UNKNOWN_AGE  # it was set back since
                found[file.stem] = Stored(str(file), stat.st_size, now - age)
        return found

    def count_requests(self, nonce: str) -> int:
        with open(self.path(nonce), "rb") as body:
            return count_requests(body)

    def remove(self, nonce: str) -> None:
        self.path(nonce).unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        for file in self.folder.glob("*.tmp"):
            file.unlink(missing_ok=True)
        for file in self.folder.glob("*.results"):  # of drivers that died while they collected
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > FORGOTTEN_SECONDS:
                    file.unlink()

    def results_file(self, nonce: str, claim: int) -> Path:
        return self.folder / f"{nonce}.{claim}.results"


def _marked(marker: Path) -> str | None:
    try:
        return marker.read_text().strip() or None
    except FileNotFoundError:
        return None


def _mark(marker: Path) -> str:
    """Write a new marker, or find that another driver has just done so."""
    part = marker.with_name(f"{MARKER}.{secrets.token_hex(4)}")
    with open(part, "w") as out:
        out.write(secrets.token_hex(8) + "\n")
        durable.sync_file(out)
    with contextlib.suppress(FileExistsError):
        os.link(part, marker)
    part.unlink()
    durable.sync_folder(marker.parent)  # whoever lost the race, too: it must not go by a marker that may vanish
    return _marked(marker) or ""
