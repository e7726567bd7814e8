"""Which process holds a lease, and is that process certainly dead? Edge: /proc."""

import os
import socket
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

PROC = Path("/proc")
MOST_PROCESSES = 2**22  # Linux gives no higher number to a process


def holder() -> dict[str, Any]:
    """Return what tells this process from every other one; a part that cannot be read here is None.

    host: for people, not compared; boot, namespace: where its number counts; pid, started: which process that is.
    """
    pid = os.getpid()
    stat = _stat("self")
    return {
        "host": socket.gethostname(),
        "boot": _text(PROC / "sys/kernel/random/boot_id"),
        "namespace": _link(PROC / "self/ns/pid"),
        "pid": pid,
        # a /proc of another pid namespace has other numbers: what it says of ours is about another process
        "started": stat.started if stat is not None and stat.pid == str(pid) else None,
    }


def lives(other: object) -> bool | None:
    """Return whether the process that this holder of a lease names still runs; None when that cannot be seen from here.

    Only a process of our own boot and our own pid namespace can be seen. Names prove nothing: two machines may have one
    host name, or one machine id where one is a copy of the other, and the first pid namespace has the same number on
    every machine. The price: a driver that died with its machine is not seen dead after the restart, for its boot is
    not ours, so the first run there waits until that driver's lease has run out. Without /proc no process is seen.
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
        return None  # a driver that could not read its start time: its number may be another process's by now
    return _runs(pid, started)


def is_dead(other: object) -> bool:
    """Return whether the process is certainly dead. One that cannot be seen from here is not: its lease runs out."""
    return lives(other) is False


def holds(other: object, expires_at: datetime | None, now: datetime) -> bool:
    """Return whether a lease with this holder and this end is held; now: by the clock that leases go by."""
    return other is not None and expires_at is not None and expires_at > now and not is_dead(other)


def in_words(other: object) -> str:
    """Return the process that a holder names, for people; the holder may lack anything."""
    parts = other if isinstance(other, dict) else {}
    return f"process {parts.get('pid', '?')} on {parts.get('host') or 'an unknown machine'}"


def until(expires_at: datetime) -> str:
    """Return the end of a lease, for people."""
    return f"{expires_at:%Y-%m-%d %H:%M:%S} UTC"


class _Stat(NamedTuple):
    """A process as /proc has it. started: in ticks since boot."""

    pid: str
    state: str
    started: str


def _runs(pid: int, started: str) -> bool | None:
    """Return whether the process that has this number is the one with this start time; None when /proc hides it."""
    stat = _stat(pid)
    if stat is None:
        return None if _exists(pid) else False
    return stat.started == started and stat.state not in ("Z", "X")  # a zombie does nothing any more


def _exists(pid: int) -> bool:
    """Return whether there is such a process, also where /proc hides those of other users (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, and not ours
        return True
    return True


def _stat(pid: int | str) -> _Stat | None:
    """Return what /proc says of a process; None when it says nothing, which alone does not prove that it is gone."""
    text = _text(PROC / str(pid) / "stat")
    if text is None:
        return None
    number, _, rest = text.partition(" ")
    fields = rest.rpartition(")")[2].split()  # behind the name, in which any character may be
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
