"""The drivers of a schedule: running commands, each with its own clock, and the database as they see it."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import anthropic._base_client
import httpx2
from sqlalchemy import Connection

from pipeline.api.client import Api
from pipeline.driver.environment import Environment
from pipeline.errors import PipelineError
from pipeline.events.batches import BatchLost
from pipeline.events.event import Event
from pipeline.events.runs import Waiting
from pipeline.planning.quote import Quoted
from pipeline.state.database import Database
from tests.proofs.simulation.constants import MACHINES, SETTINGS, START
from tests.proofs.simulation.replacements import Renewal, TurnedStop
from tests.proofs.simulation.tools import IN_A_CALL
from tests.proofs.simulation.turns import Gone, Task
from tests.proofs.simulation.wire import Line, Parcel

if TYPE_CHECKING:
    from tests.proofs.simulation.world import World


class Process:
    """One driver: a running command with its own clock. skew: how many seconds its clock is ahead.

    It runs on one of two machines that have the same host name, the same pid namespace and the same process numbers.
    """

    def __init__(
        self, world: "World", name: str, account: str, skew: float, command: Callable[[Environment], object]
    ) -> None:
        self.name, self.account, self.skew = name, account, skew
        self.machine = world.chance.choice(MACHINES)
        self.pid = 100 + sum(process.machine == self.machine for process in world.processes)
        self.state = "running"  #: running, stopped, dead or ended
        self.frozen = False  #: whether its monotonic clock stops while it is stopped, as on a machine that sleeps
        self.slept = 0.0
        self.was_stopped = False
        self.transactions = 0
        self.renewals: list[Renewal] = []
        self.parcels: list[Parcel] = []
        self.result: object = None
        self.error: PipelineError | None = None
        self.stop = TurnedStop(world)
        self._world = world
        self._where = Environment(
            database=world.database,
            connect=self._connect,
            settings=SETTINGS,
            spool=str(world.folder / "spool"),
            tell=self._tell,
            stop=self.stop,
            now=self.now,
        )
        self.tasks = [Task(world.turns, self, lambda: self._main(command))]

    def now(self) -> datetime:
        """Return the wall clock of its machine, which may be wrong and is sometimes set."""
        return self._world.at + timedelta(seconds=self.skew)

    def steady(self) -> datetime:
        """Return the time since its machine was started."""
        return datetime.fromtimestamp(0, UTC) + (self._world.at - START)

    def monotonic(self) -> float:
        return (self._world.at - START).total_seconds() - self.slept

    @property
    def holder(self) -> dict[str, Any]:
        """Return its holder in leases. Each process has a different start time."""
        started = str(1_000 + self.pid + 1_000 * MACHINES.index(self.machine))
        place = {"host": "worker", "boot": self.machine, "namespace": "pid:[4026531836]"}
        return {**place, "pid": self.pid, "started": started}

    @property
    def is_in_a_call(self) -> bool:
        """Return whether it runs, and one of its threads is in a call of a tool."""
        return self.state == "running" and any(task.at.startswith(IN_A_CALL) and not task.done for task in self.tasks)

    @property
    def ready(self) -> list[Task]:
        """Return its threads that can run."""
        if self.state != "running":
            return []
        return [task for task in self.tasks if not task.done and task.ready()]

    def _main(self, command: Callable[[Environment], object]) -> None:
        try:
            self.result = command(self._where)
        except PipelineError as exc:
            self.error = exc
        self.state = "ended"  # its other threads do not continue

    def _connect(self, _: object) -> Api:
        client = anthropic.Anthropic(
            api_key=self.account,
            base_url="http://emulator",
            max_retries=0,
            http_client=httpx2.Client(transport=Line(self._world)),
        )
        return Api(client, now=self.steady)

    def _tell(self, event: Event) -> None:
        if isinstance(event, BatchLost):
            self._world.lost_batches.add(event.batch)
        if not isinstance(event, Quoted | Waiting):
            self._world.say(f"    {self.name} tells {event.name} {event.facts()}")


class Watched(Database):
    """The database of the drivers, with a moment before and after each transaction that writes."""

    def __init__(self, shared: Database, world: "World") -> None:
        self.__dict__.update(vars(shared))
        self._world = world

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        self._world.turns.moment("a transaction")
        with self._counted(), super().write() as conn:
            yield conn
        self._world.turns.moment("a commit")

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        if self._world.turns.over:
            raise Gone
        with self._counted(), super().read() as conn:
            yield conn

    def now(self, conn: Connection, local: datetime) -> datetime:
        return local if self.is_sqlite else self._world.at

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        process = self._world.process
        if process is None:
            yield
            return
        process.transactions += 1
        try:
            yield
        finally:
            process.transactions -= 1
