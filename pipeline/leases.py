"""Leases: who may work on a job now. Edge: SQL, and a thread that renews.

A lease has a token that counts up with each holder. Every move of a batch checks the token in its own transaction, so
a driver that was suspended past its lease and wakes up can no longer move anything.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, update

from pipeline.database import Database
from pipeline.errors import Busy, LostRace, PipelineError
from pipeline.tables import leases


class Lease:
    """A lease that this process holds. `lost` says whether it may be somebody else's by now."""

    def __init__(self, resource: str, token: int, seconds: float, *, holder_before_is_gone: bool = True) -> None:
        self.resource, self.token, self._seconds = resource, token, seconds
        self._holder_before_is_gone = holder_before_is_gone
        self._until = time.monotonic() + seconds

    def check(self, conn: Connection) -> None:
        """Raises LostRace unless the lease is still ours, seen in this very transaction."""
        if conn.scalar(select(leases.c.token).where(leases.c.resource == self.resource)) != self.token:
            raise LostRace(f"{self.resource}: another driver took over; the same command again goes on")

    def is_gone(self, token: int) -> bool:
        """Whether the holder with this token certainly does nothing any more: it gave its lease back, or is dead.

        One whose lease just ran out may be suspended, and wake.
        """
        return token == self.token - 1 and self._holder_before_is_gone

    @property
    def lost(self) -> bool:
        """Whether the lease has run out without being renewed."""
        return time.monotonic() >= self._until

    def give_up(self) -> None:
        """From now on it counts as lost: threads that still run must not go on."""
        self._until = float("-inf")

    def renewed(self, at: float) -> None:
        """It was renewed; at: monotonic seconds before the renewal was asked for."""
        self._until = at + self._seconds


@contextlib.contextmanager
def hold(
    database: Database, resource: str, *, seconds: float, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Iterator[Lease]:
    """Hold `resource` while the block runs; a thread renews it each third of `seconds`.

    Raises Busy, which names the holder, when another living driver has it. A holder on this machine that is dead is
    replaced at once, any other when its lease has run out.
    """
    lease = _take(database, resource, seconds, now())
    stop = threading.Event()
    thread = threading.Thread(target=_renew, args=(database, lease, seconds, stop, now), daemon=True, name="lease")
    thread.start()
    try:
        yield lease
    finally:
        stop.set()
        thread.join()
        lease.give_up()
        with contextlib.suppress(PipelineError), database.write() as conn:
            mine = (leases.c.resource == resource, leases.c.token == lease.token)
            conn.execute(update(leases).where(*mine).values(holder=None, expires_at=None))


def _take(database: Database, resource: str, seconds: float, now: datetime) -> Lease:
    values: dict[str, Any] = {"holder": holder(), "expires_at": now + timedelta(seconds=seconds)}
    with database.write() as conn:
        row = conn.execute(select(leases).where(leases.c.resource == resource)).one_or_none()
        if row is None:
            conn.execute(insert(leases).values(resource=resource, token=1, **values))
            return Lease(resource, 1, seconds)
        gone = row.holder is None or is_dead(row.holder)
        if not gone and row.expires_at > now:
            raise Busy(
                f"{resource} is being worked on by process {row.holder['pid']} on {row.holder['host']}; "
                "wait until it has ended, or stop it, and run the same command again"
            )
        conn.execute(update(leases).where(leases.c.resource == resource).values(token=row.token + 1, **values))
        return Lease(resource, row.token + 1, seconds, holder_before_is_gone=gone)


def _renew(
    database: Database, lease: Lease, seconds: float, stop: threading.Event, now: Callable[[], datetime]
) -> None:
    while not stop.wait(seconds / 3):
        before = time.monotonic()
        with contextlib.suppress(PipelineError), database.write() as conn:  # a renewal that fails is tried again
            mine = (leases.c.resource == lease.resource, leases.c.token == lease.token)
            if not conn.execute(
                update(leases).where(*mine).values(expires_at=now() + timedelta(seconds=seconds))
            ).rowcount:
                return
            lease.renewed(before)


def holder() -> dict[str, Any]:
    """This process, so that another one on the same machine can tell whether it still lives."""
    return {
        "host": socket.gethostname(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": _link("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
    }


def is_dead(other: dict[str, Any]) -> bool:
    """Whether that process is certainly dead. False for one that cannot be seen from here."""
    here = holder()
    if not here["boot"] or any(here[part] != other.get(part) for part in ("host", "namespace")):
        return False
    if here["boot"] != other.get("boot"):
        return True  # the machine has been started anew since
    return bool(_start_time(other["pid"]) != other["started"])


def _start_time(pid: int) -> str | None:
    """When the process was started, in ticks since boot; None when there is no such process (or no /proc)."""
    stat = _text(f"/proc/{pid}/stat")
    if stat is None:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else fields[18]  # a zombie does nothing any more


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)  # a magic link: pathlib would follow it
    except OSError:
        return None
