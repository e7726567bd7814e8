"""What a driver works with: the database, the spool, the API, its leases, a clock, and whom to tell."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from anthropic.types import ModelInfo

from pipeline.answer.retry_change import Answer
from pipeline.api import capabilities
from pipeline.api.client import Api
from pipeline.driver.listing import Listing
from pipeline.driver.settings import Settings
from pipeline.errors import ApiUnreachable, Busy, Interrupted, LostRace, NoAnswer, Stopped
from pipeline.events.batches import OtherAccount, TakenOver
from pipeline.events.event import Tell
from pipeline.events.runs import RunFinished, RunIncomplete
from pipeline.job.model import Job
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
    """One driver at work on one job. Others may be at work on it at the same time.

    lease: its sign of life. A batch is worked on by the driver that has claimed it, and a job is planned by the one
    that holds the lease on its planning: planning is whatever puts rows into batches, or drops batches not sent yet.
    """

    database: Database
    spool: Spool
    api: Api
    account_id: int
    job_id: int
    job_name: str
    sink: ResultsTable
    lease: Lease
    listing: Listing
    settings: Settings
    tell: Tell
    stop: Stop = field(default_factory=Stop)
    local_now: Callable[[], datetime] = local_now
    tries_account: bool = False  #: an explicit run may try one batch on an account that was refused
    ended: list[int] = field(default_factory=list)  #: runs that this driver has ended
    _planning: Lease | None = None
    _models: dict[str, ModelInfo | None] = field(default_factory=dict)

    def now(self) -> datetime:
        """The time by the API's clock: all drivers go by it, whatever their own clocks say."""
        return self.api.now()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A reading transaction."""
        with self.database.read() as conn:
            yield conn

    def tell_end(self, event: RunFinished | RunIncomplete) -> None:
        """Tell that this driver has just ended a run."""
        self.ended.append(event.run)
        self.tell(event)

    def answers(self, keys: Sequence[str]) -> dict[str, Answer]:
        """What these rows were answered, and what is wrong with that, by key; at most a chunk of them."""
        if not keys:
            return {}
        with self.database.read() as conn:
            return {key: Answer(*said) for key, said in self.sink.said(conn, keys).items()}

    def sink_now(self, conn: Connection) -> ResultsTable:
        """The results table as it is now, and stays until this transaction has ended.

        Another driver whose job file names more columns may have added them, and sent rows whose answers fill them: who
        collects these must not go by the columns that the table had when he began.
        """
        self.sink = self.sink.having(ResultColumns.from_stored(columns_of(conn, self.job_id)))
        return self.sink

    def output_limit(self, job: Job) -> Callable[[str], int | None]:
        """A function from a model to its most tokens of output, under the job's betas; None when nobody knows."""

        def limit(model: str) -> int | None:
            info = self._model(model)
            return None if info is None else capabilities.output_limit(info, job.request.betas)

        return limit

    def window(self, model: str) -> int:
        """Tokens that a prompt of this model has at most, by the API, or as far as is known without it."""
        info = self._model(model)
        known = None if info is None else info.max_input_tokens
        return context_window(model) if known is None else known

    def _model(self, name: str) -> ModelInfo | None:
        """What the Models API says of a model, asked once; None when it does not say."""
        if name not in self._models:
            try:
                self._models[name] = self.api.model(name)
            except Stopped:  # what is asked for is what it will be asked
                self._models[name] = None
        return self._models[name]

    def claims(self, *states: BatchState, at_once: int = 1, only: Condition | None = None) -> Iterator[Batch]:
        """Take the due batches in these states that no other living driver has, each of them once, one by one.

        at_once: how many are taken in one transaction; only: one more condition.
        """
        last = 0
        while True:
            self.check()
            with self.database.write() as conn:
                at = self.database.now(conn, self.local_now())
                me = self.lease.resource
                which = Which(self.job_id, states, due=self.now(), after=last, only=only)
                taken = claim(conn, which, driver=me, living_at=at, limit=at_once)
            if not taken:
                return
            for batch in taken:
                self.check()
                yield batch
            last = taken[-1].id

    def check(self) -> None:
        """Raises Interrupted when asked to stop, and Stopped when others have taken this driver for dead."""
        self.stop.check()
        if self.lease.gone:
            raise Stopped("this driver was suspended for so long that it was taken for dead; run the job again")

    @contextlib.contextmanager
    def moving(self, batch: Batch) -> Iterator[Connection]:
        """A writing transaction about a batch that we have claimed. Raises LostRace when another driver has it now."""
        with self.database.write() as conn:
            check_claim(conn, batch)
            yield conn

    @contextlib.contextmanager
    def lost_races(self, batch: Batch) -> Iterator[None]:
        """A step on one batch: when another driver has taken it over meanwhile, it is that driver's."""
        try:
            yield
        except LostRace:
            self.tell(TakenOver(batch=batch.id))

    @property
    def plans(self) -> bool:
        """Whether this driver is planning, in one of its threads."""
        return self._planning is not None

    @contextlib.contextmanager
    def planning(self) -> Iterator[None]:
        """Plan while the block runs. Raises Busy, which names the planner, when another living driver does."""
        if self._planning is not None:
            raise Busy(f"planning {self.job_name}: another thread of this driver is at it")
        seconds = self.settings.lease
        with leases.hold(
            self.database, f"planning {self.job_name}", seconds=seconds, now=self.local_now
        ) as self._planning:
            try:
                yield
            finally:
                self._planning = None

    @contextlib.contextmanager
    def planning_for(self, resource: str, token: int) -> Iterator[None]:
        """Plan a part for the driver that holds this lease and renews it."""
        self._planning = Lease(resource, token, self.settings.lease)
        try:
            yield
        finally:
            self._planning = None

    @property
    def planning_lease(self) -> Lease:
        """The lease that this driver plans under."""
        assert self._planning is not None
        return self._planning

    @contextlib.contextmanager
    def planning_transaction(self, run_id: int | None = None) -> Iterator[Connection]:
        """A writing transaction of a planner. Raises LostRace when the lease is somebody else's by now.

        run_id: the run that is planned, which must be open. Raises Stopped when it was ended meanwhile, when another
        driver has moved the job's spool (a batch is committed only where its body is), or the database was upgraded.
        """
        assert self._planning is not None
        with self.database.write() as conn:
            migrations.require_current(conn)
            self._planning.check(conn)
            if spool_id_of(conn, self.job_id) not in (None, self.spool.id):
                raise Stopped(
                    f"another driver has moved the spool of job {self.job_name} meanwhile; the same command with the "
                    "new --spool, or without one, continues there"
                )
            if run_id is not None:
                require_open(conn, run_id)
            yield conn


class Failures:
    """Batches of which the API gives no answer of use: the others are asked after all the same.

    Several in a row are not the fault of single batches: then it is the API that is away.
    """

    IN_A_ROW = 3

    def __init__(self) -> None:
        self._first: ApiUnreachable | None = None
        self._in_a_row = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Work on one batch. Raises NoAnswer, and ApiUnreachable when this one is the last of several in a row."""
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
        """Raise what went wrong first, once all batches have been tried."""
        if self._first is not None:
            raise self._first


def leave_alone(driver: Driver, batch: Batch, *, wait: float) -> None:
    """A batch that another account has sent: say so, and look at it again after `wait` seconds."""
    with driver.moving(batch) as conn:
        postpone(conn, batch, due_at=batch.due_at, wait=wait, reason=Reason.OTHER_ACCOUNT)
    driver.tell(OtherAccount(batch=batch.id))
