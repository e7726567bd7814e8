"""Start processes that plan for a driver, also before the driver knows all that they need. Edge: processes.

A planner is started by its command line, never forked, so that threads, connections and locks of the driver do not come
along. This module imports little, so that a process can start, and import what it needs, while the driver still imports
what it needs itself.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.job.model import Job

LARGE_BYTES = 20_000_000  # of a source for which a second process saves more time than its start costs

PlannerProcess = subprocess.Popen[bytes]


def how_many(job: Job, asked: int | None, source_bytes: int) -> int:
    """Return how many processes shall work on a run, its driver included.

    asked: what the command asks for; None: what the job says, or else 2 for a large source on two cores or more.
    source_bytes: the size of the source's files; 0: it is not known.
    """
    wanted = asked or job.limits.processes
    if wanted is not None:
        return wanted
    return 2 if source_bytes > LARGE_BYTES and _cores() > 1 else 1


def size_of_local_file(job: Job) -> int:
    """Return the bytes of a source that is one local file, without reading it; 0 for any other source."""
    paths = job.source.path or ()
    with contextlib.suppress(OSError, ValueError):  # what is wrong with the path is told when the source is read
        if len(paths) == 1 and (path := Path(paths[0])).is_file():
            return path.stat().st_size
    return 0


class PlannerProcesses:
    """Processes that plan for one run. Use it in a with block, at whose end they are ended."""

    def __init__(self, number: int = 0) -> None:
        """Start so many processes, which import what they need."""
        self._running = [_start() for _ in range(number)]

    def __enter__(self) -> "PlannerProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.close_pipes()

    def at_least(self, number: int) -> Sequence[PlannerProcess]:
        """Return so many processes. Those that do not run yet are started."""
        self._running += [_start() for _ in range(number - len(self._running))]
        return self._running[:number]

    def end(self) -> None:
        """End the processes. Each of their transactions is whole, so this is safe at any moment."""
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()

    def close_pipes(self) -> None:
        """Close the pipes of the processes, when they have ended and no thread reads what they have said."""
        for process in self._running:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):  # bytes that the planner has not read are of no use any more
                    pipe.close()


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start() -> PlannerProcess:
    """Start a planner, in a session of its own, so that Ctrl-C in a terminal reaches the driver only."""
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pipeline.planning.worker"],  # -P: not the current folder's `pipeline`
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    )
