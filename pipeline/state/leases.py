"""Leases: the right of one driver to plan a job, and the signs of life of drivers. Edge: SQL, threads.

The token of a lease grows with each holder. Work under a lease checks the token in the transaction that writes, so that
a driver that was suspended until after the end of its lease can write nothing when it wakes. Each driver also holds a
lease of its own as a sign of life; the batches that it has claimed are free when that lease has run out. See
`claims.claim`.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Executable, Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from pipeline.errors import Busy, LostRace, PipelineError
from pipeline.state import migrations
from pipeline.state.database import Database
from pipeline.state.holders import holder, holds, in_words, is_dead, lives, until
from pipeline.state.tables import leases

DRIVER = "driver "
# after its sign of life ran out; all its create calls have passed their deadline by then
FORGOTTEN_AFTER = timedelta(days=2)


class Lease:
    """A lease that this process holds. `lost` says whether another driver may hold it by now."""

    def __init__(self, resource: str, token: int, seconds: float) -> None:
        self.resource, self.token, self._seconds = resource, token, seconds
        self.gone = (
            False  #: another driver has it, or removed it because it presumed this driver dead; it cannot come back
        )
        self._until = time.monotonic() + seconds

    def check(self, conn: Connection) -> None:
        """Raise LostRace if this driver no longer holds the lease. Otherwise it keeps it until the transaction ends."""
        query = select(leases.c.token).where(leases.c.resource == self.resource)
        if (
            conn.scalar(query.with_for_update(read=True)) != self.token
        ):  # a shared lock: several threads work under the lease
            raise LostRace(f"{self.resource}: another driver took over; run the same command again to continue")

    @property
    def lost(self) -> bool:
        """Return whether the lease ran out without a renewal, or another driver has it."""
        return self.gone or time.monotonic() >= self._until

    def give_up(self) -> None:
        """Make the lease count as lost, so that threads that still run stop."""
        self._until = float("-inf")

    def renewed(self, at: float) -> None:
        """Note a renewal. at: time.monotonic() just before the renewal was sent."""
        self._until = at + self._seconds


Now = Callable[[], datetime]


def local_now() -> datetime:
    """Return the time by this machine's clock, in UTC."""
    return datetime.now(UTC)


@contextlib.contextmanager
def hold(database: Database, resource: str, *, seconds: float, now: Now = local_now) -> Iterator[Lease]:
    """Hold the lease on `resource` while the block runs. A thread renews it each third of `seconds`.

    Raises Busy, which names the holder, if another living driver holds it. A holder that is certainly dead is replaced
    at once, any other one when its lease has run out. Raises Stopped if the database was upgraded.
    """
    lease = _take(database, resource, seconds, now)
    mine = (leases.c.resource == resource, leases.c.token == lease.token)
    with _held(database, lease, seconds, now, update(leases).where(*mine).values(holder=None, expires_at=None)):
        yield lease


@contextlib.contextmanager
def sign_of_life(database: Database, *, seconds: float, now: Now = local_now) -> Iterator[Lease]:
    """Hold this driver's sign of life while the block runs, then remove it, so that its batches are free at once."""
    lease = _take(database, DRIVER + secrets.token_hex(8), seconds, now)
    with _held(database, lease, seconds, now, delete(leases).where(leases.c.resource == lease.resource)):
        yield lease


def bury(conn: Connection, now: datetime) -> None:
    """Remove the signs of life of drivers that are certainly dead, so that their batches are free."""
    drivers = conn.execute(select(leases).where(leases.c.resource.startswith(DRIVER))).all()
    dead = [row.resource for row in drivers if is_dead(row.holder) or _is_forgotten(row, now)]
    if dead:
        conn.execute(delete(leases).where(leases.c.resource.in_(dead)))


def _is_forgotten(row: Row[Any], now: datetime) -> bool:
    """Return whether the driver has been silent for days. A driver that is seen to live is not: the clock jumped."""
    return row.expires_at is not None and row.expires_at < now - FORGOTTEN_AFTER and not lives(row.holder)


def planning_of(job_name: str) -> str:
    """Return the resource of the lease on the planning of a job."""
    return f"planning {job_name}"


def last_token(conn: Connection, resource: str) -> int:
    """Return the token of the newest lease on `resource`; 0: there was none. Each new lease adds one."""
    return conn.scalar(select(leases.c.token).where(leases.c.resource == resource)) or 0


def is_held(conn: Connection, resource: str, now: datetime) -> bool:
    """Return whether a driver that is not certainly dead holds this lease. now: the time by the clock of leases."""
    row = conn.execute(select(leases).where(leases.c.resource == resource)).one_or_none()
    return row is not None and holds(row.holder, row.expires_at, now)


def is_gone(conn: Connection, driver: str) -> bool:
    """Return whether the driver with this sign of life has certainly stopped: it has ended or is dead.

    A driver whose lease ran out may be suspended, so it has not. Empty is an unknown driver, which has not either.
    """
    holders = conn.scalars(select(leases.c.holder).where(leases.c.resource == driver)).all()
    return bool(driver) and all(is_dead(holder) for holder in holders)


@contextlib.contextmanager
def _held(database: Database, lease: Lease, seconds: float, now: Now, give_back: Executable) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=_renew, args=(database, lease, seconds, stop, now), daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        lease.give_up()
        with contextlib.suppress(PipelineError), database.write() as conn:
            conn.execute(give_back)


def _take(database: Database, resource: str, seconds: float, now: Now) -> Lease:
    with database.write() as conn:
        migrations.require_current(conn)
        at = database.now(conn, now())
        values: dict[str, Any] = {"holder": holder(), "expires_at": at + timedelta(seconds=seconds)}
        query = select(leases).where(leases.c.resource == resource)
        row = conn.execute(query.with_for_update(key_share=True)).one_or_none()
        if row is None:
            try:
                with conn.begin_nested():
                    conn.execute(insert(leases).values(resource=resource, token=1, **values))
            except IntegrityError as exc:
                raise Busy(
                    f"{resource}: another driver has just started this; wait until it has finished, "
                    "then run the same command again"
                ) from exc
            return Lease(resource, 1, seconds)
        if holds(row.holder, row.expires_at, at):
            raise Busy(
                f"{resource}: {in_words(row.holder)} is doing this now; its lease lasts until {until(row.expires_at)} "
                "and is renewed while the process lives: wait, or stop the process"
            )
        conn.execute(update(leases).where(leases.c.resource == resource).values(token=row.token + 1, **values))
        return Lease(resource, row.token + 1, seconds)


def _renew(database: Database, lease: Lease, seconds: float, stop: threading.Event, now: Now) -> None:
    while not stop.wait(seconds / 3):
        before = time.monotonic()
        with contextlib.suppress(PipelineError), database.write() as conn:  # a renewal that fails is repeated
            mine = (leases.c.resource == lease.resource, leases.c.token == lease.token)
            expires_at = database.now(conn, now()) + timedelta(seconds=seconds)
            if not conn.execute(update(leases).where(*mine).values(expires_at=expires_at)).rowcount:
                lease.gone = True
                return
            lease.renewed(before)
