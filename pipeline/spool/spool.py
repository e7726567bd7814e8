"""Request bodies until they are no longer needed: what a spool is, and a folder as one. Edge: files."""

import contextlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import DatabaseError
from pipeline.storage.folders import MARKER

UNKNOWN_AGE = timedelta(days=1)


class Known(NamedTuple):
    """A body as the database knows it. digest: its sha256 in hex; size: bytes."""

    nonce: str
    digest: str
    size: int


class Stored(NamedTuple):
    """A body as the spool has it. shown: its path or URL; written_at: by the clock of the API."""

    shown: str
    size: int
    written_at: datetime


class Spool(ABC):
    """A job's bodies: one for each batch, named by the batch's nonce, written once and never altered.

    All of it may raise Stopped, when the spool cannot be reached now.
    """

    id: str  #: what the marker in the spool says: another place under the same address is not taken for it

    @abstractmethod
    def begin(self, nonce: str) -> Path:
        """Where the body of this nonce is written, on a local disk; there is no such file yet."""

    @abstractmethod
    def complete(self, nonce: str, file: io.FileIO) -> None:
        """Give the body its name, now that it is whole in the file where it was begun, and make it durable.

        Raises OSError, too.
        """

    @abstractmethod
    def discard(self, nonce: str) -> None:
        """Remove what was begun and did not become complete."""

    @property
    @abstractmethod
    def disk(self) -> str:
        """What is written to, in the words of an error."""

    @abstractmethod
    def at_hand(self, nonce: str, sha256: str) -> contextlib.AbstractContextManager[Path | None]:
        """A local file that holds the body, proven by its digest; None when the body is gone or was altered."""

    @abstractmethod
    def damaged(self, bodies: Iterable[Known]) -> set[str]:
        """The nonces of those that are gone or were altered, as far as it can be told without reading from afar."""

    @abstractmethod
    def bodies(self, now: datetime) -> dict[str, Stored]:
        """All bodies by their nonces. now: the time by the clock of the API."""

    @abstractmethod
    def count_requests(self, nonce: str) -> int:
        """How many requests a body holds that is there."""

    @abstractmethod
    def remove(self, nonce: str) -> None:
        """Remove a body that nothing needs any more; it does not have to be there."""

    @abstractmethod
    def remove_unfinished(self) -> None:
        """Remove what a driver left half written when it died; call while planning the job."""

    @abstractmethod
    def results_file(self, nonce: str, claim: int) -> Path:
        """Where the results of a batch are put while they are being collected by the driver with this claim."""


def unusable(folder: Path, why: str | None) -> DatabaseError:
    """The error that no spool can be in this folder."""
    return DatabaseError(f"spool {folder} cannot be used: {why}; give another folder by --spool")


def another_one(address: str, job: str, expected: str) -> DatabaseError:
    """The error that this is not the spool which the job has used."""
    return DatabaseError(
        f"spool {address} is not the one that job {job} has used: {MARKER} in it does not say {expected}; bring that "
        "one back there, or give its new place by --spool, or, if it is gone for good, write this into the file: what "
        "was not sent yet is then planned again"
    )
