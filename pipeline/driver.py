"""What a driver works with: the database, the spool, the API, the job's lease, a clock, and whom to tell."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from pipeline import store
from pipeline.api import Api
from pipeline.database import Database
from pipeline.errors import InputError, Interrupted
from pipeline.leases import Lease
from pipeline.sink import Sink
from pipeline.spool import Spool
from pipeline.store import Batch

Tell = Callable[..., None]  #: tell(event, **facts): what happened, for progress and logs


@dataclass(frozen=True)
class Settings:
    """How long a driver waits for what, in seconds."""

    timeout: float = 600.0  #: one HTTP call
    grace: float = 300.0  #: until a batch shows in the API's listing at the latest
    lease: float = 120.0
    poll: float | None = None  #: between polls of a batch; None: as the API says, growing to 60

    @classmethod
    def from_environment(cls, *, poll_seconds: float | None = None, grace: float | None = None) -> "Settings":
        """BATCH_TIMEOUT_SECONDS, BATCH_GRACE_SECONDS, BATCH_LEASE_SECONDS, BATCH_POLL_SECONDS; what is given wins."""
        return cls(
            timeout=_seconds("BATCH_TIMEOUT_SECONDS", cls.timeout, least=1.0),
            grace=_seconds("BATCH_GRACE_SECONDS", cls.grace if grace is None else grace),
            lease=_seconds("BATCH_LEASE_SECONDS", cls.lease, least=1.0),
            poll=_seconds("BATCH_POLL_SECONDS", None) if poll_seconds is None else poll_seconds,
        )


@dataclass
class Stop:
    """Whether somebody asked the driver to stop. Steps ask between two transactions; waiting wakes up by it."""

    event: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises Interrupted when asked to stop."""
        if self.event.is_set():
            raise Interrupted("interrupted")

    def wait(self, seconds: float) -> None:
        """Wait, or raise Interrupted as soon as asked to stop."""
        if self.event.wait(max(0.0, seconds)):
            raise Interrupted("interrupted")


@dataclass
class Driver:
    """One driver at work on one job, whose lease it holds."""

    database: Database
    spool: Spool
    api: Api
    account_id: int
    job_id: int
    job_name: str
    sink: Sink
    lease: Lease
    settings: Settings
    tell: Tell
    stop: Stop = field(default_factory=Stop)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    planning: bool = False  #: pass two is under way in another thread: batches it has seen must stay as they are
    tries_account: bool = False  #: an explicit run may try one batch on an account that was refused

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A writing transaction that is ours to make: it raises LostRace when the lease is somebody else's."""
        with self.database.write() as conn:
            self.lease.check(conn)
            yield conn

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A reading transaction."""
        with self.database.read() as conn:
            yield conn


def leave_alone(driver: Driver, batch: Batch, *, wait: float) -> None:
    """A batch that another account has sent: say so, and look at it again after `wait` seconds."""
    with driver.transaction() as conn:
        problem = "it was sent by another account; run with that account's key"
        store.postpone(conn, batch.id, due_at=store.soon(driver.now(), wait), wait=wait, problem=problem)
    driver.tell("other_account", batch=batch.id)


def nothing(event: str, **facts: Any) -> None:
    """Tell nobody."""


def _seconds(name: str, default: Any, least: float = 0.0) -> Any:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value < float("inf"):
        raise InputError(f"{name}={text!r}: this must be a number of seconds, {least:g} or more")
    return value
