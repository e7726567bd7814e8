"""The interface of a spool, which stores request bodies until they are no longer needed. Pure."""

import contextlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import DatabaseError
from pipeline.storage.folders import MARKER

UNKNOWN_AGE = timedelta(days=1)  # assumed for a body whose date cannot be trusted


class KnownBody(NamedTuple):
    """A body, as the database knows it. digest: its sha256 in hex; size: in bytes."""

    nonce: str
    digest: str
    size: int


class StoredBody(NamedTuple):
    """A body, as it is in the spool. location: its path or URL; size: in bytes; written_at: by the API's clock."""

    location: str
    size: int
    written_at: datetime


class Spool(ABC):
    """The bodies of one job: one for each batch, named by the batch's nonce, written once and never altered.

    Every method may raise Stopped: the spool cannot be reached now.
    """

    id: str  #: from the marker file in the spool; tells this spool from another one at the same address

    @abstractmethod
    def begin(self, nonce: str) -> Path:
        """Return the local path at which the caller creates and writes the body with this nonce."""

    @abstractmethod
    def complete(self, nonce: str, file: io.FileIO) -> None:
        """Give a completely written body its final name and place, and make it durable.

        file: the open file at the path that `begin` returned. Raises OSError, too.
        """

    @abstractmethod
    def discard(self, nonce: str) -> None:
        """Remove a body that was begun and not completed."""

    @property
    @abstractmethod
    def disk(self) -> str:
        """The place that `begin` writes to, as an error message names it."""

    @abstractmethod
    def local_copy(self, nonce: str, sha256: str) -> contextlib.AbstractContextManager[Path | None]:
        """Give, as a context, a local file with the body, whose digest has been checked.

        sha256: the expected digest, in hex. Gives None if the body does not exist or was altered.
        """

    @abstractmethod
    def damaged(self, bodies: Iterable[KnownBody]) -> set[str]:
        """Return the nonces of the bodies that are missing or altered.

        A remote spool is not read for this: only the sizes are compared.
        """

    @abstractmethod
    def bodies(self, now: datetime) -> dict[str, StoredBody]:
        """Return all bodies, by nonce. now: the current time by the API's clock."""

    @abstractmethod
    def count_requests(self, nonce: str) -> int:
        """Return the number of requests in a body, which must exist."""

    @abstractmethod
    def remove(self, nonce: str) -> None:
        """Delete a body that is no longer needed; do nothing if it does not exist."""

    @abstractmethod
    def remove_unfinished(self) -> None:
        """Remove incomplete files of drivers that died. Only for the driver that holds the job's planning lease."""

    @abstractmethod
    def results_file(self, nonce: str, claim: int) -> Path:
        """Return the local path of the results that the driver with this claim is collecting from a batch."""


def unusable_spool(folder: Path, reason: str | None) -> DatabaseError:
    """Return the error for a folder that cannot hold a spool."""
    return DatabaseError(f"spool {folder} cannot be used: {reason}; give another folder by --spool")


def wrong_spool(address: str, job: str, expected: str) -> DatabaseError:
    """Return the error for a spool whose id is not the expected one, the id of the spool that the job has used."""
    return DatabaseError(
        f"spool {address} is not the one that job {job} has used: {MARKER} in it does not contain {expected}; move "
        f"that spool back, or give its new place by --spool, or, if it is lost, write {expected} into {MARKER}: the "
        "rows that were not sent yet are then planned again"
    )
