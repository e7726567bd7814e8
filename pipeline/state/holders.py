"""The process that holds a lease, and whether it is certainly dead. Edge: /proc."""

import os
import socket
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

PROC = Path("/proc")
MOST_PROCESSES = 2**22  # the highest process id of Linux


def holder() -> dict[str, Any]:
    """Return what tells this process from every other one. A part that cannot be read is None.

    host: for people only, never compared. boot, namespace: where the process id is valid. pid, started: the process.
    """
    pid = os.getpid()
    stat = _stat("self")
    return {
        "host": socket.gethostname(),
        "boot": _text(PROC / "sys/kernel/random/boot_id"),
        "namespace": _link(PROC / "self/ns/pid"),
        "pid": pid,
        # a /proc of another pid namespace has other ids, so its entry for this id is about another process
        "started": stat.started if stat is not None and stat.pid == str(pid) else None,
    }


def lives(other: object) -> bool | None:
    """Return whether the process of a holder still runs; None if that cannot be seen from here.

    Only a process of the same boot and the same pid namespace can be seen. Names prove nothing: two machines may have
    the same host name, or the same machine id if one is a copy of the other, and the first pid namespace has the same
    number on every machine. The price: after a restart of the machine, its earlier drivers are not seen dead, because
    they belong to another boot, so the first run there waits until their leases have run out. Without /proc no process
    can be seen.
    """
    here = holder()
    if not isinstance(other, dict) or not all(here[part] for part in ("boot", "namespace", "started")):
        return None
    if any(other.get(part) != here[part] for part in ("boot", "namespace")):
        return None
    pid, started = other.get("pid"), other.get("started")
    if type(pid) is not int or not 0 < pid <= MOST_PROCESSES:
        return None
    if not isinstance(started, str) or not started.isdecimal():
        return None  # the driver could not read its start time, so its id may belong to another process by now
    return _runs(pid, started)


def is_dead(other: object) -> bool:
    """Return whether the process is certainly dead. A process that cannot be seen from here is not."""
    return lives(other) is False


def holds(other: object, expires_at: datetime | None, now: datetime) -> bool:
    """Return whether a lease with this holder and this end is held. now: the time by the clock of leases."""
    return other is not None and expires_at is not None and expires_at > now and not is_dead(other)


def in_words(other: object) -> str:
    """Return the process of a holder as text for people. Parts that the holder lacks are shown as unknown."""
    parts = other if isinstance(other, dict) else {}
    return f"process {parts.get('pid', '?')} on {parts.get('host') or 'an unknown machine'}"


def until(expires_at: datetime) -> str:
    """Return the end of a lease as text for people."""
    return f"{expires_at:%Y-%m-%d %H:%M:%S} UTC"


class _Stat(NamedTuple):
    """The entry of a process in /proc. started: in clock ticks since the boot."""

    pid: str
    state: str
    started: str


def _runs(pid: int, started: str) -> bool | None:
    """Return whether the process with this id and this start time runs; None if /proc hides it."""
    stat = _stat(pid)
    if stat is None:
        return None if _exists(pid) else False
    return stat.started == started and stat.state not in ("Z", "X")  # a zombie has ended


def _exists(pid: int) -> bool:
    """Return whether a process has this id, even if /proc hides processes of other users (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists and belongs to another user
        return True
    return True


def _stat(pid: int | str) -> _Stat | None:
    """Return the entry of a process in /proc; None if there is none, which alone does not prove that it has ended."""
    text = _text(PROC / str(pid) / "stat")
    if text is None:
        return None
    number, _, rest = text.partition(" ")
    fields = rest.rpartition(")")[2].split()  # after the name, which may hold any character
    return _Stat(number, fields[0], fields[19]) if len(fields) > 19 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()  # a process may have a name in any encoding
    except OSError:
        return None


def _link(path: Path) -> str | None:
    try:
        return os.readlink(path)  # a magic link: pathlib would follow it
    except OSError:
        return None
