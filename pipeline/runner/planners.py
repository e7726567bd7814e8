"""Plan the files of a source in processes of this machine, while the driver submits and collects. Edge: processes.

A planner is started by its command line, never forked, so that threads, connections and locks of the driver do not come
along. It gets everything by a pipe, because others can read a command line. If a planner dies, what it has committed is
valid, and the driver plans the rest. If the driver dies, its pipes end, and the planners end with them.
"""

import contextlib
import logging
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.driver.environment import Environment
from pipeline.events.event import Event
from pipeline.planning.plan import Plan
from pipeline.planning.shards import Assignment, Planned, Shard
from pipeline.planning.worker import Failed, Message
from pipeline.runner.options import Options

logger = logging.getLogger("pipeline")
LOOK_SECONDS = 0.1  # between two calls of the driver's other work, while planners say nothing


def number_of_planners(plan: Plan, where: Environment, options: Options) -> int:
    """Return how many planners a run shall have; 0: the driver plans its rows itself.

    The driver plans itself if planners could not do the same: for a part of the source, for a frame of this process,
    and where files are uploaded, which only one process may do at a time.
    """
    source = plan.job.source
    others = where.reach is not None and options.share is None and bool(sys.executable)
    if not others or options.limit is not None or options.retry is not None or plan.builder.uploads:
        return 0
    if source.frame is not None:
        return 0
    wanted = options.processes or plan.job.limits.processes or 1
    return min(wanted - 1, len(plan.source.inputs))


class Planners:
    """Processes that plan for one run. Use it in a with block, at whose end they are ended."""

    def __init__(self, number: int, where: Environment, client: str) -> None:
        """Start so many processes, which import what they need while the driver does its own.

        where: what the driver works with. It tells the events of the planners. client: which client of the SDK the
        job's requests are sent with.
        """
        self._where, self._client = where, client
        self._processes = [_start() for _ in range(number)]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Planners":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # each of its transactions is whole, so this is safe at any moment
            process.wait()
        for thread in self._threads:  # each has reached the end of its pipe by now
            thread.join()
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):  # bytes that the planner has not read are of no use any more
                    pipe.close()

    def plan(self, shards: Sequence[Shard], meanwhile: Callable[[], None]) -> list[Planned]:
        """Have shards planned under the lease that they name, and return those that were planned to their end.

        meanwhile: is called again and again; it may raise. Raises the first PipelineError of a planner.
        """
        where, waiting = self._where, queue.SimpleQueue[Assignment]()
        assert where.reach is not None
        reach, url = where.reach(self._client), where.database.url.render_as_string(hide_password=False)
        for shard in shards:
            waiting.put(Assignment(shard, url, where.spool, where.settings, reach))
        said: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        for process in self._processes:
            self._threads.append(threading.Thread(target=_work, args=(process, waiting, said), name="planner"))
            self._threads[-1].start()
        planned, working = list[Planned](), len(self._processes)
        while working:
            try:
                message = said.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                meanwhile()
                continue
            if message is None:
                working -= 1
            elif isinstance(message, Planned):
                planned.append(message)
            else:
                _take(message, where)
            meanwhile()
        return planned


def _take(message: Message, where: Environment) -> None:
    """Tell an event of a planner, log what it has logged, or raise its error."""
    if isinstance(message, Event):
        where.tell(message)
    elif isinstance(message, logging.LogRecord):
        logging.getLogger(message.name).handle(message)
    elif isinstance(message, Failed):
        if message.error is not None:
            raise message.error
        logger.debug("a planner failed: %s", message.trace)


def _start() -> "subprocess.Popen[bytes]":
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


def _work(
    process: "subprocess.Popen[bytes]",
    waiting: "queue.SimpleQueue[Assignment]",
    said: "queue.SimpleQueue[Message | None]",
) -> None:
    """Give a planner one assignment after the other, and pass on what it says. None at its end."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        while True:
            pickle.dump(waiting.get_nowait(), process.stdin)
            process.stdin.flush()
            message: Message | None = None
            while not isinstance(message, Planned | Failed):
                message = pickle.load(process.stdout)  # our own process writes it
                said.put(message)
    except queue.Empty:
        pass
    except (OSError, EOFError, pickle.UnpicklingError) as exc:  # the planner has died
        said.put(Failed(None, f"it ended: {exc}"))
    finally:
        said.put(None)
