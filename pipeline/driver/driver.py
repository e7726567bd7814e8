"""Define a driver: its database, spool, API, leases and clock, its transactions and claims. Edge: SQL, HTTP, files."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from pipeline.answer.retry_change import Answer
from pipeline.driver.line import Line
from pipeline.driver.listing import Listing
from pipeline.driver.settings import Settings
from pipeline.driver.tool_groups import ToolRunner
from pipeline.errors import ApiUnreachable, Busy, Interrupted, LostRace, NoAnswer, Stopped
from pipeline.events.batches import OtherAccount, TakenOver
from pipeline.events.event import Tell
from pipeline.events.runs import RunFinished, RunIncomplete
from pipeline.money.prices import context_window
from pipeline.reasons import Reason
from pipeline.sink.columns import ResultColumns
from pipeline.sink.table import ResultsTable
from pipeline.spool.spool import Spool
from pipeline.state import leases, migrations
from pipeline.state.batches import Batch
from pipeline.state.claims import Condition, Which, check_claim, claim
from pipeline.state.database import Connection, Database
from pipeline.state.jobs import columns_of, spool_id_of
from pipeline.state.leases import Lease, local_now
from pipeline.state.moves import postpone
from pipeline.state.runs import require_open
from pipeline.states import BatchState

if TYPE_CHECKING:
    from anthropic.types import ModelInfo

    from pipeline.api.client import Api


@dataclass
class Stop:
    """The request that a driver stops. Steps check it between two transactions, and it ends any waiting at once."""

    event: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise Interrupted if the driver was asked to stop."""
        if self.event.is_set():
            raise Interrupted("interrupted")

    def wait(self, seconds: float) -> None:
        """Wait this long; 0 or less: do not wait. Raises Interrupted as soon as the driver is asked to stop."""
        if self.event.wait(max(0.0, seconds)):
            raise Interrupted("interrupted")


@dataclass
class Driver:
    """A driver that works on one job. Other drivers may work on the same job at the same time.

    lease: the driver's sign of life. Only the driver that has claimed a batch works on it. Only the driver that holds
    the lease on a job's planning plans the job: planning is everything that puts rows into batches or drops batches
    that are not sent yet.
    line: the way to the API, which is opened at the first need; see `connect`.
    """

    database: Database
    spool: Spool
    line: Line
    job_id: int
    job_name: str
    sink: ResultsTable
    lease: Lease
    settings: Settings
    tell: Tell
    stop: Stop = field(default_factory=Stop)
    local_now: Callable[[], datetime] = local_now
    tries_account: bool = False  #: whether it may try one batch on an account that the API refused
    runs_tools: bool = True  #: whether it calls the tools of the job
    tool_runner: ToolRunner | None = None  #: how other processes call tools for it; None: it calls them itself
    calls_left: bool = False  #: whether its last pass may have left calls of tools, because its time for them was over
    told_waiting: set[int] = field(default_factory=set)  #: runs of which it has told that rows wait for tools
    ended: list[int] = field(default_factory=list)  #: runs that this driver has ended
    plannings: int = 0  #: how often it has held the lease on planning
    _planning: Lease | None = None
    _models: "dict[str, ModelInfo | None]" = field(default_factory=dict)

    @property
    def api(self) -> "Api":
        """Return the client of the API."""
        return self.line.api

    @property
    def account_id(self) -> int:
        """Return the number of our account at the API."""
        return self.line.account_id

    @property
    def listing(self) -> Listing:
        """Return the API's listing of batches."""
        return self.line.listing

    def connect(self) -> None:
        """Connect to the API unless this was done before; call it before work on a batch or on rows, see `Line`.

        Raises as `Environment.api`.
        """
        self.line.open()

    def now(self) -> datetime:
        """Return the time by the API's clock. All drivers use it, because their own clocks may differ.

        A driver that had no need of the API yet returns its own time: it has nothing to do with a batch.
        """
        return self.line.now()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that only reads."""
        with self.database.read() as conn:
            yield conn

    def tell_end(self, event: RunFinished | RunIncomplete) -> None:
        """Report that this driver has just ended a run, and note the run in `ended`."""
        self.ended.append(event.run)
        self.tell(event)

    def answers(self, keys: Sequence[str]) -> dict[str, Answer]:
        """Return the stored answers of rows by key, with what is wrong with each. keys: at most those of one chunk."""
        if not keys:
            return {}
        with self.database.read() as conn:
            return {key: Answer(*stored) for key, stored in self.sink.answers(conn, keys).items()}

    def sink_now(self, conn: Connection) -> ResultsTable:
        """Return the results table with its present columns, which cannot change until this transaction has ended.

        Another driver whose job file names more columns may have added them, and sent rows whose answers fill them. A
        driver that collects such rows must not use the columns that the table had when the driver started.
        """
        self.sink = self.sink.with_columns(ResultColumns.from_stored(columns_of(conn, self.job_id)))
        return self.sink

    def window(self, model: str) -> int:
        """Return the model's context window in tokens: by the API, else as this program knows it."""
        info = self.model(model)
        known = None if info is None else info.max_input_tokens
        return context_window(model) if known is None else known

    def model(self, name: str) -> "ModelInfo | None":
        """Return the Models API's record of a model, which is asked for once; None if the API gives none."""
        if name not in self._models:
            try:
                self._models[name] = self.api.model(name)
            except Stopped:  # without a record, requests are sent as they are asked for
                self._models[name] = None
        return self._models[name]

    def claims(self, *states: BatchState, at_once: int = 1, only: Condition | None = None) -> Iterator[Batch]:
        """Claim the due batches in these states that no other living driver has claimed, and yield each of them once.

        at_once: how many are claimed in one transaction; only: a further condition; None: none. Raises as `check` does.
        """
        last = 0
        while True:
            self.check()
            with self.database.write() as conn:
                living_at = self.database.now(conn, self.local_now())
                resource = self.lease.resource
                which = Which(self.job_id, states, due=self.now(), after=last, only=only)
                claimed = claim(conn, which, driver=resource, living_at=living_at, limit=at_once)
            if not claimed:
                return
            self.connect()
            for batch in claimed:
                self.check()
                yield batch
            last = claimed[-1].id

    def check(self) -> None:
        """Raise Interrupted if asked to stop, and Stopped if another driver has presumed this one dead."""
        self.stop.check()
        if self.lease.gone:
            raise Stopped("this driver was suspended for so long that it was taken for dead; run the job again")

    @contextlib.contextmanager
    def moving(self, batch: Batch) -> Iterator[Connection]:
        """Open a writing transaction on a batch that we have claimed. Raises LostRace if another driver has it now."""
        with self.database.write() as conn:
            check_claim(conn, batch)
            yield conn

    @contextlib.contextmanager
    def lost_races(self, batch: Batch) -> Iterator[None]:
        """Ignore and report LostRace: another driver has claimed this batch and will finish the work."""
        try:
            yield
        except LostRace:
            self.tell(TakenOver(batch=batch.id))

    @property
    def plans(self) -> bool:
        """Return whether this driver is planning, in one of its threads."""
        return self._planning is not None

    @contextlib.contextmanager
    def planning(self) -> Iterator[None]:
        """Hold the lease on the job's planning while the block runs.

        Raises Busy, which names the planner, if another living driver or another thread of this one is planning.
        """
        if self._planning is not None:
            raise Busy(f"planning {self.job_name}: another thread of this driver is planning it")
        seconds = self.settings.lease
        with leases.hold(
            self.database, leases.planning_of(self.job_name), seconds=seconds, now=self.local_now
        ) as self._planning:
            self.plannings += 1
            try:
                yield
            finally:
                self._planning = None

    @contextlib.contextmanager
    def planning_for(self, resource: str, token: int) -> Iterator[None]:
        """Plan a shard under the lease of another driver, which holds the lease and renews it, while the block runs."""
        self._planning = Lease(resource, token, self.settings.lease)
        try:
            yield
        finally:
            self._planning = None

    @property
    def planning_lease(self) -> Lease:
        """Return the lease under which this driver plans; it must be planning."""
        assert self._planning is not None
        return self._planning

    @contextlib.contextmanager
    def planning_transaction(self, run_id: int | None = None) -> Iterator[Connection]:
        """Open a writing transaction for planning; this driver must hold the lease on it.

        run_id: the run that is planned; None: no run has to be open. Raises LostRace if another driver holds the lease
        by now. Raises Stopped if the run has ended, if the database was upgraded, or if another driver has moved the
        job's spool: a batch may only be committed if its body is in the job's spool.
        """
        assert self._planning is not None
        with self.database.write() as conn:
            migrations.require_current(conn)
            self._planning.check(conn)
            if spool_id_of(conn, self.job_id) not in (None, self.spool.id):
                raise Stopped(
                    f"another driver has moved the spool of job {self.job_name}; run the same command again with "
                    "the new --spool, or without one, to continue there"
                )
            if run_id is not None:
                require_open(conn, run_id)
            yield conn


class Failures:
    """Collects the failures of calls about single batches, so that the remaining batches are still worked on.

    IN_A_ROW failures one after the other mean that the API is unreachable, not that single batches fail.
    """

    IN_A_ROW = 3

    def __init__(self) -> None:
        self._first: ApiUnreachable | None = None
        self._in_a_row = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Work on one batch, and note ApiUnreachable instead of raising it.

        Raises NoAnswer at once, and ApiUnreachable at the last of IN_A_ROW failures one after the other.
        """
        try:
            yield
        except NoAnswer:
            raise
        except ApiUnreachable as exc:
            self._first = self._first or exc
            self._in_a_row += 1
            if self._in_a_row >= self.IN_A_ROW:
                raise
        else:
            self._in_a_row = 0

    def raise_first(self) -> None:
        """Raise the first noted failure, if there is one; call it when all batches have been tried."""
        if self._first is not None:
            raise self._first


def leave_alone(driver: Driver, batch: Batch, *, wait: float) -> None:
    """Postpone and report a batch that another account has sent. It is looked at again after `wait` seconds."""
    with driver.moving(batch) as conn:
        postpone(conn, batch, due_at=batch.due_at, wait=wait, reason=Reason.OTHER_ACCOUNT)
    driver.tell(OtherAccount(batch=batch.id))
