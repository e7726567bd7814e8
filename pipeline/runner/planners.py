"""Plan the files of a source in processes of this machine, while the driver submits and collects. Edge: processes.

A planner gets everything by a pipe, because others can read a command line. If it dies, what it has committed is valid,
and the driver plans the rest. If the driver dies, its pipes end, and the planners end with them.
"""

import logging
import pickle
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from pipeline.api.clock import RESOLUTION, steady
from pipeline.driver.environment import Environment
from pipeline.events.event import Event
from pipeline.events.runs import Warned
from pipeline.job.endpoint import Endpoint
from pipeline.planning.messages import ApiSide, Assignment, Done, Failed, Message
from pipeline.planning.plan import Plan
from pipeline.planning.quote_source import QuotedSource, ToQuote
from pipeline.planning.shards import Planned, Shard
from pipeline.runner.options import Options
from pipeline.runner.processes import PlannerProcess, PlannerProcesses, how_many

logger = logging.getLogger("pipeline")
LOOK_SECONDS = 0.1  # between two calls of the driver's other work, while planners say nothing

#: How assignments have ended, in their order; None: a planner has ended its work.
Said = queue.SimpleQueue[Done | Failed | None]


def number_of_planners(plan: Plan, where: Environment, options: Options) -> int:
    """Return how many planners a run shall have; 0: the driver plans its rows itself.

    The driver plans itself if planners could not do the same: for a part of the source, for a frame of this process,
    and where files are uploaded, which only one process may do at a time.
    """
    source = plan.job.source
    others = where.reach is not None and options.share is None and bool(sys.executable)
    whole = options.limit is None and options.retry is None and not options.dry_run
    if not others or not whole or plan.builder.uploads or source.frame is not None:
        return 0
    wanted = how_many(plan.job, options.processes, sum(each.size for each in plan.source.inputs))
    return min(wanted - 1, len(plan.source.inputs))


class Planners:
    """Processes that plan for one run. Use it in a with block, at whose end they are ended."""

    def __init__(self, number: int, pool: PlannerProcesses, where: Environment, endpoint: Endpoint) -> None:
        """Let so many processes of the pool plan. They import what they need while the driver does its own.

        where: what the driver works with. It tells the events of the planners. endpoint: the endpoint of the API that
        the job uses.
        """
        self._where, self._endpoint = where, endpoint
        self._pool, self._processes = pool, pool.at_least(number)
        self._threads: list[threading.Thread] = []
        self._quoting: Said | None = None

    def __enter__(self) -> "Planners":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End the processes, which gives their memory back. A second call does nothing."""
        self._pool.end()
        for thread in self._threads:  # each has reached the end of its pipe by now
            thread.join()
        self._pool.close_pipes()

    def begin_to_quote(self, task: ToQuote) -> None:
        """Have a planner do pass one; see `quoted`."""
        self._quoting = self._assign([task], self._processes[:1])

    def quoted(self) -> QuotedSource | None:
        """Wait for pass one. None: it was not begun, or its planner failed in a way that the driver may not.

        Raises the PipelineError that pass one raised, and Interrupted if the driver is asked to stop.
        """
        said, self._quoting = self._quoting, None
        done = [] if said is None else list(self._done(said, 1, self._where.stop.check))
        return done[0] if done and isinstance(done[0], QuotedSource) else None

    def plan(
        self,
        shards: Sequence[Shard],
        api_now: datetime,
        account_id: int,
        *,
        planned: Callable[[], None],
        meanwhile: Callable[[], None],
    ) -> list[Planned]:
        """Have shards planned under the lease that they name, and return those that were planned to their end.

        api_now: the API's time now. account_id: the number of our account there. planned: is called by another thread
        as soon as a batch is planned. meanwhile: is called again and again; it may raise. Raises the first
        PipelineError of a planner.
        """
        assert self._where.reach is not None
        # a little behind, so that what is due by a planner's time is due by the driver's, too
        api = ApiSide(self._where.reach(self._endpoint), api_now - steady() - RESOLUTION, account_id)
        said = self._assign(shards, self._processes, api, planned)
        return [done for done in self._done(said, len(self._processes), meanwhile) if isinstance(done, Planned)]

    def _assign(
        self,
        tasks: Sequence[ToQuote | Shard],
        processes: Sequence[PlannerProcess],
        api: ApiSide | None = None,
        told: Callable[[], None] = lambda: None,
    ) -> Said:
        """Give tasks to these processes, one after the other, and return where they will say how each has ended.

        told: is called by another thread after each event that a process has told.
        """
        where, waiting, said = self._where, queue.SimpleQueue[Assignment](), Said()
        url = where.database.url.render_as_string(hide_password=False)
        for task in tasks:
            waiting.put(Assignment(task, url, where.spool, where.settings, api))

        def tell(message: Event | logging.LogRecord) -> None:
            if isinstance(message, Event):
                where.tell(message)
                told()
            else:
                logging.getLogger(message.name).handle(message)

        for process in processes:
            self._threads.append(threading.Thread(target=_work, args=(process, waiting, tell, said), name="planner"))
            self._threads[-1].start()
        return said

    def _done(self, said: Said, working: int, meanwhile: Callable[[], None]) -> Iterator[Done]:
        """Yield what is done, until no process works any more. working: how many do. meanwhile: as for `plan`."""
        while working:
            try:
                message = said.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                meanwhile()
                continue
            if message is None:
                working -= 1
            elif isinstance(message, Failed):
                self._take_failure(message)
            else:
                yield message
            meanwhile()

    def _take_failure(self, failed: Failed) -> None:
        """Raise the error of a planner, or tell that the driver has to do its work."""
        if failed.error is not None:
            raise failed.error
        *_, last = failed.trace.strip().splitlines()
        self._where.tell(
            Warned(warning=f"a process that planned for this one has ended ({last}); this one does its work")
        )
        logger.debug("a planner failed: %s", failed.trace)


def _work(
    process: PlannerProcess,
    waiting: "queue.SimpleQueue[Assignment]",
    tell: Callable[[Event | logging.LogRecord], None],
    said: Said,
) -> None:
    """Give a planner one assignment after the other, tell what it tells, and say how each ended; None at the end."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        while True:
            pickle.dump(waiting.get_nowait(), process.stdin)
            process.stdin.flush()
            while True:
                message: Message = pickle.load(process.stdout)  # our own process writes it
                if isinstance(message, Done | Failed):
                    said.put(message)
                    break
                tell(message)
    except queue.Empty:
        pass
    except Exception as exc:  # noqa: BLE001  # the planner has died: its last message is cut, or there is none
        said.put(Failed(None, f"{type(exc).__name__}: {exc}"))
    finally:
        said.put(None)
