"""Run random schedules of several drivers over one small job, each from a seed, and check rules after every step.

A schedule starts drivers (`run`, `collect`, `retry`, `cancel`), lets each run for a few moments, suspends it in the
middle of a create call or a download, kills or wakes it, loses responses, lets batches expire, changes the source, and
advances the clock. At the end all faults are cleared, and the job must be finished: see `World.check` and `Finale`.

The code is that of the pipeline, except for time, random numbers and threads. The threads of the drivers take turns,
one at a time, from one moment to the next. Moments are before and after each transaction that writes, and around each
call. random.Random(seed) decides which thread runs and what happens in between, and makes nonces and ids, so that a
seed replays exactly.

    python -m tests.proofs.simulation --seed 17 -v         one schedule, step by step
    python -m tests.proofs.simulation --seconds 600        as many schedules as fit, from a random seed on
"""

import argparse
import contextlib
import csv
import itertools
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import anthropic
import anthropic._base_client
import httpx2
import orjson
import pytest
from sqlalchemy import Connection, Row, column, delete, inspect, select, table
from sqlalchemy import text as sql

from pipeline import prefetch
from pipeline.answer.outcome import Outcome
from pipeline.api import client as api
from pipeline.api.client import Api
from pipeline.driver import listing
from pipeline.driver.driver import Stop
from pipeline.driver.environment import Environment
from pipeline.driver.settings import Settings
from pipeline.emulator import Clock, Emulator, ids
from pipeline.emulator.http import router
from pipeline.errors import LostRace, PipelineError
from pipeline.events.batches import BatchLost
from pipeline.events.event import Event
from pipeline.events.runs import Waiting
from pipeline.job.model import Job
from pipeline.money.prices import LISTED
from pipeline.planning.quote import Quoted
from pipeline.planning.selection import Selection
from pipeline.request import packing
from pipeline.runner import submitter
from pipeline.runner.options import Options
from pipeline.runner.run import run
from pipeline.runner.sweep import sweep
from pipeline.spool import local
from pipeline.state import holders, leases, settled
from pipeline.state.database import Database
from pipeline.state.jobs import job_named
from pipeline.state.tables import batches, metadata, requests, runs, sendings, stretches, tallies
from pipeline.state.tables import leases as lease_table
from pipeline.states import (
    CLOSED_BATCHES,
    OPEN_BATCHES,
    OUTCOMES,
    BatchState,
    RowState,
    RunReason,
    RunState,
    SendingEnd,
)
from pipeline.steps import submit
from pipeline.steps.cancel import cancel

START = datetime(2026, 11, 20, 8, 30, tzinfo=UTC)
ACCOUNTS = ("test", "test@other-team")
CREDIT = "Your credit balance is too low to access the API."  #: comes as an invalid request
ACCOUNT_ERRORS = ("authentication_error", "permission_error", "billing_error")
MACHINES = ("boot of one machine", "boot of another")
SETTINGS = Settings(timeout=600.0, grace=300.0, lease=120.0)
ON_THE_WIRE = 60.0  # the longest time in seconds that a body needs to reach the API
LAG = (
    100.0  # seconds until a batch shows in the listing; plus ON_THE_WIRE and all clock errors, less than the grace time
)
PATIENCE = 80  # how often the clock is advanced for waiting drivers, after all faults are cleared


class Violation(Exception):
    """A rule that must always hold is violated."""


class Gone(BaseException):
    """Raised in the threads of dead drivers to end them after the schedule is over."""


# -- turns -----------------------------------------------------------------------------------------------------------


class Task:
    """One thread of a simulated process. It runs only while it has its turn."""

    def __init__(self, turns: "Turns", process: "Process", work: Callable[[], object]) -> None:
        self.process, self.done = process, False
        self.at = "its start"  #: the moment at which it has stopped
        self.error: BaseException | None = None
        self.ready: Callable[[], bool] = lambda: True
        self.turn = threading.Semaphore(0)
        self._turns, self._work = turns, work
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.turn.acquire()
        try:
            if not self._turns.over:
                self._work()
        except Gone:
            pass
        except BaseException as exc:  # noqa: BLE001  # raised again in the schedule
            self.error = exc
        finally:
            self.done = True
            self._turns.back.release()


class Turns:
    """The scheduler of threads, which lets one thread run at a time."""

    def __init__(self, chance: random.Random) -> None:
        self.current: Task | None = None
        self.over = False
        self.back = threading.Semaphore(0)
        self._left, self._chance = 0, chance

    def give(self, task: Task, moments: int) -> int:
        """Let a thread run for so many moments, or until it waits; return how many moments are left."""
        self.current, self._left = task, moments
        task.turn.release()
        self.back.acquire()
        self.current = None
        return self._left

    def moment(self, what: str) -> None:
        """Mark a moment in the running thread at which another driver may run, or this driver may die."""
        if self.over:
            raise Gone
        task = self.current
        if task is None:  # called by the schedule itself
            return
        self._left -= 1
        if self._left <= 0 or (len(task.process.tasks) > 1 and self._chance.random() < 0.2):
            self._pause(task, what)

    def until(self, ready: Callable[[], bool], what: str) -> None:
        """Let the running thread wait."""
        if self.over:
            raise Gone
        task = self.current
        assert task is not None
        while not ready():
            task.ready = ready
            self._pause(task, what)
        task.ready = lambda: True

    def _pause(self, task: Task, what: str) -> None:
        task.at = what
        self.back.release()
        task.turn.acquire()
        if self.over:
            raise Gone

    def end(self, tasks: Iterable[Task]) -> None:
        """End the threads that are left."""
        self.over = True
        for task in tasks:
            if not task.done:
                self.give(task, 0)
            task.thread.join()


class TurnThread:
    """Replaces threading.Thread: a thread of the pipeline that takes turns with the others."""

    def __init__(self, world: "World", target: Callable[[], object], name: str) -> None:
        self._world, self._target, self._name = world, target, name
        self._task: Task | None = None

    def start(self) -> None:
        process = self._world.process
        assert process is not None
        self._task = Task(self._world.turns, process, self._target)
        process.tasks.append(self._task)

    def is_alive(self) -> bool:
        assert self._task is not None
        return not self._task.done

    def join(self, timeout: float | None = None) -> None:
        process, task = self._world.process, self._task
        if self._world.turns.over:
            return
        assert process is not None
        assert task is not None
        looks = timeout is not None and timeout < 1  # a short timeout is a check, which takes no simulated time
        self._world.wait(
            lambda: task.done or (looks and process.stop.event.is_set()), timeout, f"the {self._name} thread"
        )


class TurnSemaphore:
    """Replaces threading.Semaphore for threads that take turns."""

    def __init__(self, world: "World", value: int) -> None:
        self._world, self._value = world, value

    def acquire(self) -> None:
        self._world.wait(lambda: self._value > 0, None, "a semaphore")
        self._value -= 1

    def release(self) -> None:
        self._value += 1


class Renewal:
    """Replaces the thread that renews a lease: it renews when the clock is advanced."""

    def __init__(self, world: "World", renew: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._world, self._renew, self._arguments = world, renew, arguments
        self.renewed_at = world.at
        self.lease: leases.Lease = arguments[1]
        assert world.process is not None
        self.process = world.process

    def start(self) -> None:
        self.process.renewals.append(self)

    def join(self) -> None:
        self.process.renewals.remove(self)

    def go(self) -> None:
        """Renew the lease once, if it is time."""
        database, lease, seconds, _, now = self._arguments
        if lease.gone or (self._world.at - self.renewed_at).total_seconds() < seconds / 3:
            return
        rounds = iter((False, True))
        once = SimpleNamespace(wait=lambda _: next(rounds))
        with self._world.acting_as(self.process):
            self._renew(database, lease, seconds, once, now)
        if not lease.gone:  # a renewal that came too late changed nothing, so the driver was silent until now
            self.renewed_at = self._world.at


class AtOnce:
    """Replaces ThreadPoolExecutor for work ahead: it does the work at once in the running thread."""

    def __init__(self, *_: object, **__: object) -> None:
        """Accept and ignore the arguments of ThreadPoolExecutor."""

    def shutdown(self, **_: object) -> None:
        """Do nothing, because all work is already done."""

    def submit(self, work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments))
        except Exception as exc:  # noqa: BLE001  # as the executor does
            done.set_exception(exc)
        return done


class TurnedStop(Stop):
    """A Stop whose waits end when the clock has been advanced far enough."""

    def __init__(self, world: "World") -> None:
        super().__init__()
        self._world = world

    def wait(self, seconds: float) -> None:
        self._world.wait(self.event.is_set, seconds, "waiting")
        self.check()


class StillClock(Clock):
    """The emulator's clock, which only the schedule advances."""

    def __init__(self, world: "World") -> None:
        super().__init__()
        self._world = world

    def now_us(self) -> int:
        return round(self._world.at.timestamp() * 1e6)


# -- drivers ---------------------------------------------------------------------------------------------------------


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


@dataclass
class Parcel:
    """A body on its way to the API. It arrives or is lost, whatever happens to its driver."""

    request: httpx2.Request
    sent_at: datetime
    due_at: datetime
    answer_after: float  #: seconds
    arrived_at: datetime | None = None
    lost: bool = False
    response: httpx2.Response | None = None
    error: httpx2.HTTPError | None = None


class Line(httpx2.BaseTransport):
    """The transport to the emulator, with a moment before each call and before its response; a body may be delayed."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._api = world.emulator.transport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        world = self._world
        what = f"{request.method} {request.url.path}"
        process = world.process
        assert process is not None
        if process.transactions:
            world.violated(f"{process.name} calls {what} in the middle of a transaction")
        world.turns.moment(what)
        if request.method == "DELETE":
            world.books.read_results()
        if request.method == "POST" and request.url.path == router.CREATE_PATH:
            response = self._posted(process, request)
        else:
            response = self._api.handle_request(request)
        world.turns.moment(f"the answer to {what}")
        if not request.url.path.endswith("/results"):
            return response
        stream = response.stream
        assert isinstance(stream, httpx2.SyncByteStream)
        return httpx2.Response(
            response.status_code, headers=response.headers, stream=_Slow(world, stream), request=request
        )

    def _posted(self, process: Process, request: httpx2.Request) -> httpx2.Response:
        world, chance = self._world, self._world.chance
        assert isinstance(request.stream, httpx2.SyncByteStream)
        body = b"".join(request.stream)  # the last chunk is handed out here, or held back
        sent = httpx2.Request(
            request.method, request.url, headers=request.headers, content=body, extensions=request.extensions
        )
        takes = chance.choice((0.0, 0.0, 0.0, chance.uniform(0, ON_THE_WIRE)))
        after = chance.choice((0.0, 0.0, 0.0, 0.0, chance.uniform(0, 60), chance.uniform(550, 700)))
        parcel = Parcel(sent, world.at, world.at + timedelta(seconds=takes), after)
        process.parcels.append(parcel)
        if takes:
            world.wait(lambda: parcel.arrived_at is not None or parcel.lost, SETTINGS.timeout, "a body on the wire")
        else:
            world.deliver(parcel)
        left = (parcel.sent_at - world.at).total_seconds() + SETTINGS.timeout
        if parcel.arrived_at is not None and after:
            world.wait(lambda: False, min(left, after), "an answer")
            left -= after
        if parcel.arrived_at is None or left < 0:
            raise httpx2.ReadTimeout("The read operation timed out", request=request)
        if parcel.error is not None:
            raise parcel.error
        assert parcel.response is not None
        return parcel.response


class _Slow(httpx2.SyncByteStream):
    """The stream of a download, with moments between its chunks."""

    def __init__(self, world: "World", stream: httpx2.SyncByteStream) -> None:
        self._world, self._stream = world, stream

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            half = len(chunk) // 2
            yield chunk[:half]
            self._world.turns.moment("the middle of a download")
            yield chunk[half:]

    def close(self) -> None:
        self._stream.close()


# -- records of the API ----------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """One request that the API accepted for a row. recipe, text: those of job and row; run: the run that sent it."""

    api_id: str
    custom_id: str
    sha: str
    recipe: str
    text: str
    run: int
    is_retry: bool


@dataclass(frozen=True)
class Accepted:
    """One batch of the pipeline that the API accepted."""

    api_id: str
    nonce: str
    requests: int
    account: str


class Books:
    """The requests that the API has accepted and answered, recorded independently of the state database."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.batches: dict[str, Accepted] = {}
        self.rows: defaultdict[str, list[Sent]] = defaultdict(list)  #: by key, in the order of acceptance
        self.requests: dict[tuple[str, str], Sent] = {}
        self._results: dict[str, dict[str, dict[str, Any]]] = {}
        self._seen = 0

    def look(self) -> None:
        """Record newly accepted requests, and check whether each was due."""
        everything = self._world.emulator._store.all()
        new, self._seen = everything[self._seen :], len(everything)
        for batch in new:
            lines = [line.split(" ") for line in self._file(batch.id, "accepted").read_text().splitlines()]
            nonce = lines[0][1].partition("-")[0]
            if nonce != "other":
                self.batches[batch.id] = Accepted(batch.id, nonce, batch.requests, batch.workspace)
                self._enter(batch.id, nonce)

    def _enter(self, api_id: str, nonce: str) -> None:
        with self._world.shared.read() as conn:
            query = select(requests.c.key, requests.c.n).join(batches, batches.c.id == requests.c.batch_id)
            rows = conn.execute(query.where(batches.c.nonce == nonce).order_by(requests.c.key)).all()
            of_batch = select(runs.c.id, runs.c.retry).join(batches, batches.c.run_id == runs.c.id)
            run = conn.execute(of_batch.where(batches.c.nonce == nonce)).one()
        keys = defaultdict(list)
        for row in rows:
            keys[f"{nonce}-{row.n}"].append(orjson.loads(row.key)[0])
        for line in self._file(api_id, "requests").read_bytes().splitlines():
            sha, custom_id, params = line.split(b" ", 2)
            recipe, _, text = orjson.loads(params)["messages"][-1]["content"].partition(" | ")
            sent = Sent(api_id, custom_id.decode(), sha.decode(), recipe, text, run.id, run.retry is not None)
            self.requests[api_id, sent.custom_id] = sent
            if not keys[sent.custom_id]:
                self._world.violated(f"{api_id} has a request that no row names: {sent}")
            for key in keys[sent.custom_id]:
                self._world.judge(key, self.rows[key], sent)
                self.rows[key].append(sent)

    def join(self, seen: "Seen") -> None:
        """Record rows that have joined a request after the API had accepted it."""
        for row in seen.rows:
            batch = None if row.batch_id is None else seen.batches[row.batch_id]
            sent = None if batch is None else self.requests.get((batch.api_id, f"{batch.nonce}-{row.n}"))
            if sent is not None and sent not in self.rows[key := orjson.loads(row.key)[0]]:
                self.rows[key].append(sent)

    def _file(self, api_id: str, name: str) -> Path:
        return self._world.emulator._store.path(api_id, name)

    def read_results(self) -> None:
        """Read the results of newly ended batches, before they can be deleted."""
        for api_id in self.batches:
            self.results(api_id)

    def results(self, api_id: str) -> dict[str, dict[str, Any]] | None:
        """Return a batch's results by custom_id, without faults of the delivery; None while it runs."""
        if api_id not in self._results:
            if self._world.emulator._store.get(api_id).status != "ended":
                return None
            lines = [orjson.loads(line) for line in self._file(api_id, "results").read_bytes().split(b"\n")]
            self._results[api_id] = {line["custom_id"]: line["result"] for line in lines}
        return self._results[api_id]

    def result(self, sent: Sent) -> dict[str, Any] | None:
        """Return the result of one request; None while its batch runs."""
        found = self.results(sent.api_id)
        return None if found is None else found[sent.custom_id]

    def is_there(self, api_id: str) -> bool:
        """Return whether the API has, or will have, the batch's results."""
        batch = self._world.emulator._store.get(api_id)
        return batch.deleted_us is None and batch.archived_us is None

    def cost(self, api_id: str) -> float:
        """Return the cost of all answers of a batch, in US dollars."""
        return sum(LISTED.cost(_used(result)) or 0.0 for result in (self.results(api_id) or {}).values())


def _used(result: Mapping[str, Any]) -> Outcome:
    if result["type"] != "succeeded":
        return Outcome("failed")
    message = result["message"]
    usage = message["usage"]
    return Outcome(
        "answered", model=message["model"], input_tokens=usage["input_tokens"], output_tokens=usage["output_tokens"]
    )


def status_of(result: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the row's status that follows from a result, and the type of its error."""
    if result["type"] == "succeeded":
        stop = result["message"]["stop_reason"]
        if stop in ("end_turn", "stop_sequence"):
            return RowState.SUCCEEDED, None
        return (RowState.REFUSED, "refusal") if stop == "refusal" else (RowState.TRUNCATED, stop)
    if result["type"] == "errored":
        error = result["error"]["error"]
        return RowState.ERRORED, "billing_error" if error["message"] == CREDIT else error["type"]
    if result["type"] in ("canceled", "expired"):
        return result["type"], result["type"]
    return RowState.ERRORED, "unknown_result"


# -- the world -------------------------------------------------------------------------------------------------------


@dataclass
class Ways:
    """The properties of the job and the API of one schedule."""

    rows: int
    batch_requests: int
    processing_seconds: float
    budget_usd: float | None
    in_flight: int
    attempts: int
    dedupe: bool
    history: bool
    delete_remote: bool
    accounts: int
    canary: bool = False
    alike: bool = False  #: most rows have the text of another row, so that they share requests
    retries: bool = False  #: many answers are cut off, and a person retries such rows again and again
    recipe: int = 0

    @classmethod
    def draw(cls, chance: random.Random) -> "Ways":
        """Return random properties."""
        drawn = cls(
            rows=chance.randint(2, 6),
            batch_requests=chance.randint(1, 3),
            processing_seconds=chance.choice((50, 50, 50, 400, 3_000, 90_000)),
            budget_usd=chance.choice((None, None, None, chance.uniform(0.0003, 0.003))),
            in_flight=chance.choice((200_000, 200_000, chance.randint(1, 4))),
            attempts=chance.randint(1, 3),
            dedupe=chance.random() < 0.7,
            history=chance.random() < 0.5,
            delete_remote=chance.random() < 0.3,
            accounts=chance.choice((1, 1, 1, 1, 2)),
        )
        if chance.random() < 0.2:
            drawn.rows, drawn.canary = chance.randint(10, 12), True
            # with smaller batches one after the other, the schedule would take weeks
            drawn.batch_requests, drawn.in_flight = 3, 200_000
        elif chance.random() < 0.3:
            drawn.retries, drawn.processing_seconds = True, 50
        if chance.random() < 0.4:
            drawn.alike, drawn.rows, drawn.batch_requests = True, drawn.rows + 4, min(2, drawn.batch_requests)
        if drawn.processing_seconds > 3_000:  # one batch after the other would take weeks
            drawn.in_flight = 200_000
        return drawn


def _of_the_same_attempts(earlier: Sequence[Sent], now: Sent) -> Iterator[Sent]:
    """Return the sendings of a row that count as attempts together with the current one, newest first.

    They have the same recipe and text. A retry starts at 0: earlier sendings do not count, and when a retry sends the
    row for the first time, no sending counts.
    """
    later = now
    for sent in reversed(earlier):
        begins = later.is_retry and sent.run != later.run
        if begins or (sent.recipe, sent.text) != (now.recipe, now.text):
            return
        yield sent
        later = sent


class Seen(NamedTuple):
    """The content of the state database and the results table at one moment."""

    rows: Sequence[Row[Any]]
    batches: Mapping[int, Row[Any]]
    sendings: Sequence[Row[Any]]
    runs: Mapping[int, Row[Any]]
    answers: Mapping[str, Row[Any]]
    replaced: set[str]  #: custom_ids in the history table
    tallies: Counter[tuple[int, str]]  #: the stored sums of rows by run and state


_ROWS = select(
    *(
        requests.c[name]
        for name in ("key", "run_id", "state", "batch_id", "n", "attempts", "outcome", "error_type", "row_hash")
    ),
    requests.c.outcome_hash,
).order_by(requests.c.id)
_BATCHES = select(
    *(batches.c[name] for name in ("id", "run_id", "state", "nonce", "api_id", "requests", "rows", "outcomes", "gate")),
    *(batches.c[name] for name in ("cost_usd", "created_at", "problem", "delete_remote")),
).order_by(batches.c.id)
_SENDINGS = select(
    *(sendings.c[name] for name in ("id", "batch_id", "end", "api_id", "started_at", "ended_at", "reserved_usd")),
    sendings.c.settled_usd,
).order_by(sendings.c.id)
_RUNS = select(*(runs.c[name] for name in ("id", "state", "reason", "job", "recipe", "gate", "retry")))
_ANSWERS = select(
    *map(column, ("id", "note", "text", "status", "error_type", "attempts", "custom_id", "batch_id"))
).select_from(table("answers"))


class World:
    """One emulator, one database, one source, and the drivers that work on them."""

    def __init__(self, seed: int, folder: Path, shared: Database, say: Callable[[str], None]) -> None:
        self.chance = random.Random(seed)
        self.folder, self.shared = folder, shared
        self.at = START
        self.ways = Ways.draw(self.chance)
        self.turns = Turns(self.chance)
        self.database = Watched(shared, self)
        self.emulator = Emulator(
            folder / "emulator", processing_seconds=self.ways.processing_seconds, clock=StillClock(self)
        )
        self.books = Books(self)
        self.processes: list[Process] = []
        self.source: dict[str, tuple[str, str]] = {}  #: text and note of each row, by key
        self.texts: defaultdict[str, list[str]] = defaultdict(list)  #: all texts that a key ever had
        self.started: defaultdict[str, int] = defaultdict(int)  #: numbers of started commands, by name
        self.lost_batches: set[int] = set()  #: batches that were given up, though they may have been found again
        self.marked: dict[bytes, dict[int, tuple[object, ...]]] = {}  # succeeded rows by the mark that covers them
        self.let_go: set[int] = set()  #: batches that were sent when their run had no gate
        self.hidden: set[str] = set()  #: batches at the API that no driver could find in the listing in time
        self.hides = False
        self.too_large = False
        self.odd = False  #: whether parts of result lines may have been damaged
        self.cached = False  #: whether creates may be answered from a cache
        self._say, self._violation = say, ""
        self._acting: Process | None = None
        self._numbers = itertools.count(1)
        self._numbers_of_others = itertools.count(1)
        self.others = False  #: whether another program has sent batches
        for _ in range(self.ways.rows):
            self.put(f"r{len(self.source)}")
        self.write_source()

    # the running process

    @property
    def process(self) -> Process | None:
        """Return the process whose code is running."""
        return self.turns.current.process if self.turns.current is not None else self._acting

    @contextlib.contextmanager
    def acting_as(self, process: Process) -> Iterator[None]:
        """Run the block as if the schedule's own thread belonged to this process."""
        self._acting = process
        try:
            yield
        finally:
            self._acting = None

    def say(self, what: str) -> None:
        """Print a line if the schedule is shown step by step."""
        self._say(f"{(self.at - START).total_seconds():>10,.1f} s  {what}")

    def violated(self, what: str) -> None:
        """Note a violation; the schedule raises it as soon as it runs again."""
        self._violation = self._violation or what

    def raise_violation(self) -> None:
        """Raise Violation for a noted violation, and for a driver that ended with an unexpected exception."""
        for process in self.processes:
            for task in process.tasks:
                if task.error is not None:
                    raise Violation(f"{process.name} breaks:\n{''.join(traceback.format_exception(task.error))}")
            if isinstance(process.error, LostRace):
                raise Violation(f"{process.name} lets a lost race out: {process.error}")
        if self._violation:
            raise Violation(self._violation)

    # time

    def wait(self, ready: Callable[[], bool], seconds: float | None, what: str) -> None:
        """Let the running thread wait for a condition, for at most so many seconds."""
        until = None if seconds is None else self.at + timedelta(seconds=seconds)
        self.turns.until(lambda: ready() or (until is not None and self.at >= until), what)

    def monotonic(self) -> float:
        """Return time.monotonic() of the running process."""
        assert self.process is not None
        return self.process.monotonic()

    def turn(self, seconds: float) -> None:
        """Advance the clock. Bodies on their way arrive in that time, and living drivers renew their leases."""
        until = self.at + timedelta(seconds=seconds)
        while until - self.at > timedelta(hours=25):  # in steps, so that results are read before the API removes them
            self._turn_to(self.at + timedelta(hours=25))
            self.emulator.do_due_work()
            self.books.read_results()
        self._turn_to(until)

    def _turn_to(self, until: datetime) -> None:
        waiting = [p for process in self.processes for p in process.parcels if p.arrived_at is None and not p.lost]
        for parcel in sorted(waiting, key=lambda parcel: parcel.due_at):
            if parcel.due_at <= until:
                self.at = max(self.at, parcel.due_at)
                self.deliver(parcel)
        slept = (until - self.at).total_seconds()
        self.at = until
        for process in self.processes:
            if process.state == "stopped" and process.frozen:
                process.slept += slept
            if process.state == "running":
                for renewal in list(process.renewals):
                    renewal.go()

    # the API

    def deliver(self, parcel: Parcel) -> None:
        """Let a body reach the API."""
        parcel.arrived_at = self.at
        try:
            parcel.response = self.emulator.transport().handle_request(parcel.request)
        except httpx2.HTTPError as exc:
            parcel.error = exc
        before = set(self.books.batches)
        self.books.look()
        for api_id in self.books.batches.keys() - before:
            self.say(f"    the API accepts {api_id} with {self.books.batches[api_id].requests} requests")
            if self.hides:
                self.hidden.add(api_id)

    def console(self, method: str, path: str, body: object = None) -> None:
        """Call the API as another person or program does; the call may fail."""
        headers = {"x-api-key": ACCOUNTS[0], "anthropic-version": "2023-06-01", "content-type": "application/json"}
        with (
            contextlib.suppress(httpx2.HTTPError),
            httpx2.Client(transport=self.emulator.transport(), base_url="http://emulator") as client,
        ):
            client.request(method, path, headers=headers, content=orjson.dumps(body) if body else None)

    def other_program(self, number: int) -> None:
        """Send a batch of so many requests as another program in the workspace."""
        self.others = True
        params = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello."}]}
        theirs = [{"custom_id": f"other-{next(self._numbers_of_others)}", "params": params} for _ in range(number)]
        self.console("POST", router.CREATE_PATH, {"requests": theirs})
        self.books.look()

    # the source and the job

    def put(self, key: str, text: str | None = None, note: str | None = None) -> None:
        """Set a row of the source. text None: a text that no row had before, or often that of another row."""
        number = next(self._numbers)
        if text is None and self.ways.alike and self.source and self.chance.random() < 0.7:
            text = self.source[self.chance.choice(sorted(self.source))][0]
        text = f"Text {number} is about {number}." if text is None else text
        self.source[key] = (text, f"note {number}" if note is None else note)
        if text not in self.texts[key]:
            self.texts[key].append(text)

    def write_source(self) -> None:
        """Write the current source to its file."""
        with open(self.folder / "rows.csv", "w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["id", "text", "note"])
            writer.writerows([key, *values] for key, values in self.source.items())

    def job(self) -> Job:
        """Return the current job."""
        ways = self.ways
        limits: dict[str, Any] = {"max_batch_requests": ways.batch_requests, "max_in_flight_requests": ways.in_flight}
        if ways.budget_usd is not None:
            limits["max_cost_usd"] = ways.budget_usd
        return Job.model_validate(
            {
                "name": "simulated",
                "source": {"path": str(self.folder / "rows.csv"), "key": "id", "keep": ["note"]},
                "request": {
                    "model": "claude-haiku-4-5",
                    "max_tokens": 100,
                    "prompt": f"Recipe {ways.recipe} | {{{{ text }}}}",
                    "dedupe": ways.dedupe,
                },
                "limits": limits,
                "retry": {"max_attempts": ways.attempts},
                "privacy": {"delete_remote": ways.delete_remote},
                "sink": {"table": "answers", "history": ways.history},
                # one row is sent first, and the others are sent however it ends
                "canary": {"rows": 1, "max_failed": 1.0} if ways.canary else False,
            }
        )

    # what must always hold

    def judge(self, key: str, earlier: Sequence[Sent], now: Sent) -> None:
        """Check that an accepted row was due: no earlier sending of it has succeeded or may still succeed."""
        for before in earlier:
            if self.books.result(before) is None and not self._may_be_paid_twice(before, now):
                self.violated(f"{key} is accepted in {now.api_id} while it runs in {before.api_id}")
        if not earlier or self._may_be_paid_twice(earlier[-1], now) or earlier[-1].text != now.text:
            return
        result = self.books.result(earlier[-1])
        if result is None:  # which is already a violation
            return
        status, error_type = status_of(result)
        if (
            self.odd and status == RowState.SUCCEEDED
        ):  # its line may have been damaged, so that it did not succeed for the driver
            return
        alike = list(_of_the_same_attempts(earlier, now))
        if status == RowState.SUCCEEDED and (earlier[-1].sha == now.sha or not self.started["run --refresh"]):
            self.violated(f"{key} is accepted in {now.api_id}, though it succeeded in {earlier[-1].api_id}")
        if status == RowState.CANCELED and not self.started["retry --status canceled"]:
            self.violated(f"{key} is accepted in {now.api_id}, though it was canceled in {earlier[-1].api_id}")
        if error_type in ACCOUNT_ERRORS or not alike or status == RowState.CANCELED:
            return
        counted = [sent for sent in alike if status_of(self.books.result(sent) or {})[1] not in ACCOUNT_ERRORS]
        if error_type not in self.job().retry.errors or len(counted) >= self.ways.attempts:
            self.violated(f"{key} is accepted in {now.api_id} after {len(counted)} attempts, the last one {error_type}")

    def _may_be_paid_twice(self, before: Sent, now: Sent) -> bool:
        """Return whether an earlier sending could not be known, or a person or the source asked for another one."""
        if before.api_id in self.hidden:
            return True
        nonce = self.books.batches[before.api_id].nonce
        with self.shared.read() as conn:
            row = conn.execute(select(batches.c.id, batches.c.state).where(batches.c.nonce == nonce)).one()
        was_lost = row.id in self.lost_batches or row.state == BatchState.LOST
        return was_lost and (now.text != before.text or self.started["retry --status lost"] > 0)

    def look(self) -> Seen:
        """Read the state database and the results table."""
        with self.shared.read() as conn:
            rows = conn.execute(_ROWS).all()
            known_batches = {row.id: row for row in conn.execute(_BATCHES)}
            known_sendings = conn.execute(_SENDINGS).all()
            known_runs = {row.id: row for row in conn.execute(_RUNS)}
            made = bool(rows) or inspect(conn).has_table("answers")
            answers = {row.id: row for row in conn.execute(_ANSWERS)} if made else {}
            replaced: Any = select(column("custom_id")).select_from(table("answers_history"))
            history = set(conn.scalars(replaced)) if made and self.ways.history else set()
            tallied: Counter[tuple[int, str]] = Counter()
            for term in conn.execute(select(tallies)):
                tallied[term.run_id, term.state] += term.rows
        return Seen(rows, known_batches, known_sendings, known_runs, answers, history, tallied)

    def check(self) -> Seen:
        """Raise Violation if a rule does not hold that must hold after each step."""
        self.raise_violation()
        seen = self.look()
        self.books.join(seen)
        self.lost_batches |= {batch.id for batch in seen.batches.values() if batch.state == BatchState.LOST}
        for row in seen.rows:
            self._check_row(seen, row)
        counted = Counter((row.run_id, row.state) for row in seen.rows)
        if any(seen.tallies[of] != counted[of] for of in seen.tallies.keys() | counted.keys()):
            self.violated(f"rows by run and state are kept as {seen.tallies}, and there are {counted}")
        for batch in seen.batches.values():
            self._check_batch(seen, batch)
        self._check_sendings(seen)
        for answer in seen.answers.values():
            self._check_answer(seen, answer)
        for each in seen.runs.values():
            self._check_budget(seen, each)
            self._check_gate(seen, each)
        self._check_signs()
        self._check_marks()
        self.raise_violation()
        return seen

    def _check_marks(self) -> None:
        """Check that no row that has succeeded changes while a mark says that its source is settled."""
        columns = [requests.c[name] for name in ("id", "state", "key", "row_hash", "keep", "outcome_hash")]
        with self.shared.read() as conn:
            succeeded = {row.id: tuple(row) for row in conn.execute(select(*columns)) if row.state == "succeeded"}
            for mark in conn.execute(select(stretches).where(stretches.c.first == 0)):
                if settled.settled_rows(conn, mark.job_id, mark.source) is None:
                    continue
                before = self.marked.setdefault(mark.digest, succeeded)
                if len(before) < mark.rows or any(succeeded.get(row) != was for row, was in before.items()):
                    self.violated(f"a source of {mark.rows} rows is marked as settled, and a row has changed since")

    def _check_signs(self) -> None:
        """Check that no living driver lost its sign of life, unless it was silent for days."""
        with self.shared.read() as conn:
            known = set(conn.scalars(select(lease_table.c.resource)))
        living = [process for process in self.processes if process.state in ("running", "stopped")]
        for renewal in itertools.chain.from_iterable(process.renewals for process in living):
            silent = self.at - renewal.renewed_at
            # because clocks may be wrong by an hour in both directions
            days = leases.FORGOTTEN_AFTER - timedelta(hours=3)
            if renewal.lease.resource not in known and silent < days:
                self.violated(f"{renewal.process.name} lives, and its {renewal.lease.resource} is gone")

    def _check_row(self, seen: Seen, row: Row[Any]) -> None:
        key = orjson.loads(row.key)[0]
        answer = seen.answers.get(key)
        if row.state == RowState.IN_FLIGHT:
            batch = seen.batches[row.batch_id]
            if batch.state not in OPEN_BATCHES or not 0 <= row.n < batch.requests:
                self.violated(f"{key} is in flight as request {row.n} of batch {batch.id}, which is {batch.state}")
        if row.state in OUTCOMES and row.state != row.outcome:
            self.violated(f"{key} is {row.state}, and its outcome {row.outcome}")
        self._check_attempts(seen, key, row)
        if (answer and answer.status) != row.outcome:
            self.violated(f"{key} has the outcome {row.outcome}, and in the results table {answer}")
        sent = len(self.books.rows[key]) + self.too_large  # a sending that was refused for its size counts, too
        if row.state != RowState.INVALID and row.attempts > sent:
            self.violated(f"{key} counts {row.attempts} attempts of {sent} sendings")

    def _check_attempts(self, seen: Seen, key: str, row: Row[Any]) -> None:
        """Check that a row in a retry keeps its attempts until it is answered, and gets them back if it is not."""
        answer, run = seen.answers.get(key), seen.runs[row.run_id]
        if run.retry is None:
            return
        if row.state == RowState.PENDING and not _is_unfinished(run):
            self.violated(f"{key} waits for run {run.id}, a retry that is {run.state}: {run.reason}")
        found_again = row.state == RowState.IN_FLIGHT and row.batch_id in self.lost_batches
        if answer is None or (abs(row.attempts) != answer.attempts and not found_again):
            self.violated(f"{key} counts {row.attempts} attempts in a retry, and its answer is {answer}")

    def _check_batch(self, seen: Seen, batch: Row[Any]) -> None:
        held = (RowState.IN_FLIGHT, RowState.LOST)  # the rows of a batch that is given up are lost first
        flying = sum(row.batch_id == batch.id and row.state in held for row in seen.rows)
        whole = batch.state in OPEN_BATCHES and batch.state != BatchState.ENDED and batch.id not in self.lost_batches
        if flying != batch.rows and whole:
            self.violated(f"batch {batch.id} is {batch.state} with {flying} of its {batch.rows} rows")
        if batch.api_id is not None:
            there = self.books.batches.get(batch.api_id)
            if there is None or (there.nonce, there.requests) != (batch.nonce, batch.requests):
                self.violated(f"batch {batch.id} with nonce {batch.nonce} is taken for {batch.api_id}: {there}")
        if batch.state != BatchState.COLLECTED or batch.id in self.lost_batches:
            return
        if sum((batch.outcomes or {}).values()) != batch.rows:
            self.violated(f"batch {batch.id} of {batch.rows} rows has the outcomes {batch.outcomes}")
        if abs(batch.cost_usd - self.books.cost(batch.api_id)) > 1e-9 and not self.odd:
            self.violated(f"batch {batch.id} costs {batch.cost_usd}, and at the API {self.books.cost(batch.api_id)}")

    def _check_sendings(self, seen: Seen) -> None:
        owned = {sending.api_id for sending in seen.sendings}
        last = {sending.batch_id: sending for sending in seen.sendings}
        numbers = {batch.nonce: batch for batch in seen.batches.values()}
        open_ends = [s.batch_id for s in seen.sendings if s.end in (None, SendingEnd.UNKNOWN) and s.api_id is None]
        if len(open_ends) != len(set(open_ends)):
            self.violated(f"a batch has two sendings of unknown end: {open_ends}")
        for accepted in self.books.batches.values():
            batch = numbers.get(accepted.nonce)
            if accepted.api_id in owned or accepted.api_id in self.hidden:
                continue
            if batch is None or batch.state not in (BatchState.SUBMITTING, BatchState.LOST):
                self.violated(
                    f"nobody knows of {accepted.api_id}: its batch is {batch}, {batch and last.get(batch.id)}"
                )

    def _check_answer(self, seen: Seen, answer: Row[Any]) -> None:
        if answer.batch_id is None or answer.status == RowState.LOST:
            return
        sent = self.books.requests.get((answer.batch_id, answer.custom_id))
        result = None if sent is None else self.books.result(sent)
        if result is None:
            self.violated(f"the answer {answer} is to nothing that the API has ended")
            return
        odd = self.odd and answer.error_type == "odd_result" and result["type"] == "succeeded"
        if (answer.status, answer.error_type) != status_of(result) and not odd:
            self.violated(f"the answer {answer} is not what the API says: {result}")
        if result["type"] == "succeeded" and not odd:
            text = "".join(block["text"] for block in result["message"]["content"])
            if answer.text != text:
                self.violated(f"the answer {answer} has not the API's text {text!r}")

    def _check_gate(self, seen: Seen, each: Row[Any]) -> None:
        """Check that nothing else of a run is sent before its canary has ended.

        An exception: a driver that found only a few rows may have sent them before another driver found more.
        """
        for batch in seen.batches.values():
            if batch.run_id != each.id:
                continue
            if batch.state in (BatchState.PLANNED, BatchState.DROPPED):
                self.let_go.discard(batch.id)
            elif each.gate in (None, batch.gate):
                self.let_go.add(batch.id)
            elif batch.id not in self.let_go:
                self.violated(f"batch {batch.id} is {batch.state}, while run {each.id} waits for its {each.gate}")

    def _check_budget(self, seen: Seen, each: Row[Any]) -> None:
        limit = each.job["limits"]["max_cost_usd"]
        of_run = {batch.id for batch in seen.batches.values() if batch.run_id == each.id}
        if limit is None or of_run & self.lost_batches or self.hidden:
            return
        paid = sum(
            self.books.cost(batch.api_id)
            for batch in self.books.batches.values()
            for mine in seen.batches.values()
            if mine.nonce == batch.nonce and mine.id in of_run
        )
        taken = sum(
            (sending.reserved_usd if sending.settled_usd is None else sending.settled_usd) or 0.0
            for sending in seen.sendings
            if sending.batch_id in of_run and sending.end not in (SendingEnd.REJECTED, SendingEnd.ABSENT)
        )
        if max(paid, taken) > limit + 1e-9:
            self.violated(f"run {each.id} has paid {paid} and reserved {taken}, and its limit is {limit}")


# -- schedules -------------------------------------------------------------------------------------------------------

Fault = dict[str, Any]
#: damage to a part of a line: the answer is unparsable, and its cost may not be readable
ODD_LINES = ("surrogate", "huge_number", "usage_text")

#: faults of the API; those without `times` last until they are cleared
FAULTS: tuple[Fault, ...] = (
    {"on": "create", "do": "drop_after", "times": 1},
    {"on": "create", "do": "drop_after", "times": 3},
    {"on": "create", "do": "drop_before", "times": 1},
    {"on": "create", "do": "status", "status": 500, "accept": True, "times": 1},
    {"on": "create", "do": "status", "status": 502, "accept": True, "page": "html", "times": 2},
    {"on": "create", "do": "status", "status": 504, "accept": True, "error_type": "timeout_error", "times": 1},
    {"on": "create", "do": "status", "status": 409, "accept": True, "error_type": "conflict_error", "times": 1},
    {"on": "create", "do": "status", "status": 408, "times": 1},
    {"on": "create", "do": "status", "status": 500, "times": 2},
    {"on": "create", "do": "status", "status": 429, "error_type": "rate_limit_error", "retry_after": 40, "times": 2},
    {"on": "create", "do": "status", "status": 429, "error_type": "rate_limit_error"},
    {"on": "create", "do": "status", "status": 429, "page": "html", "accept": True, "times": 1},
    {"on": "create", "do": "status", "status": 529, "error_type": "overloaded_error", "should_retry": True, "times": 2},
    {"on": "create", "do": "status", "status": 413, "page": "html", "times": 1},
    {"on": "create", "do": "status", "status": 413, "times": 3},
    {"on": "create", "do": "status", "status": 400, "error_type": "invalid_request_error", "times": 1},
    {"on": "create", "do": "status", "status": 402, "error_type": "billing_error"},
    {"on": "create", "do": "status", "status": 403, "error_type": "permission_error", "times": 1},
    {"on": "create", "do": "status", "status": 429, "error_code": "enforced_spend_limit_reached", "times": 2},
    {"on": "list", "do": "lag", "seconds": LAG},
    {"on": "list", "do": "lag", "seconds": LAG},
    {"on": "list", "do": "status", "status": 500, "after": 1, "times": 4},
    {"on": "list", "do": "status", "status": 500, "list_page": 2},
    {"on": "list", "do": "status", "status": 500, "list_page": 3, "times": 3},
    {"on": "list", "do": "drop_before", "times": 3},
    {"on": "retrieve", "do": "status", "status": 404, "times": 1},
    {"on": "retrieve", "do": "status", "status": 404},
    {"on": "retrieve", "do": "status", "status": 500, "times": 3},
    {"on": "retrieve", "do": "drop_after", "times": 1},
    {"on": "retrieve", "do": "results_url", "host": "http://elsewhere.example"},
    {"on": "results", "do": "truncate", "keep": 0.5, "times": 1},
    {"on": "results", "do": "truncate", "keep": 0.5, "cut_at": "mid_line", "times": 2},
    {"on": "results", "do": "truncate", "end": "cut", "times": 1},
    {"on": "results", "do": "truncate", "end": "reset", "times": 2},
    {"on": "results", "do": "missing_lines", "times": 1},
    {"on": "results", "do": "missing_lines"},
    {"on": "results", "do": "duplicate_lines", "share": 0.6},
    {"on": "results", "do": "conflicting_lines", "share": 0.6},
    {"on": "results", "do": "unknown_lines", "count": 2},
    {"on": "results", "do": "status", "status": 404, "times": 2},
    {"on": "results", "do": "status", "status": 500, "times": 1},
    {"on": "results", "do": "drop_before", "times": 1},
    {"on": "cancel", "do": "status", "status": 500, "times": 1},
    {"on": "cancel", "do": "drop_after", "times": 1},
    {"on": "delete", "do": "status", "status": 500, "times": 2},
    {"on": "delete", "do": "drop_after", "times": 1},
    {"on": "count_tokens", "do": "status", "status": 500},
    # wrong data: foreign pages, counts, orders, dates, lines
    {"on": "create", "do": "foreign_page", "kind": "html", "accept": True, "times": 2},
    {"on": "create", "do": "foreign_page", "kind": "empty", "times": 1},
    {"on": "create", "do": "foreign_page", "kind": "json", "accept": True, "times": 1},
    {"on": "create", "do": "foreign_page", "kind": "cut", "times": 1},
    {"on": "create", "do": "foreign_page", "kind": "null", "times": 2},
    {"on": "create", "do": "repeat_answer", "accept": True, "times": 1},
    {"on": "create", "do": "repeat_answer", "times": 2},
    {"on": "list", "do": "foreign_page", "kind": "html", "times": 2},
    {"on": "list", "do": "foreign_page", "kind": "json", "times": 1},
    {"on": "list", "do": "foreign_page", "kind": "empty", "list_page": 2, "times": 2},
    {"on": "list", "do": "foreign_page", "kind": "cut", "times": 3},
    {"on": "list", "do": "disorder", "order": "oldest_first"},
    {"on": "list", "do": "disorder", "order": "shuffled"},
    {"on": "list", "do": "counts", "add": 1},
    {"on": "list", "do": "counts", "add": -1, "times": 3},
    {"on": "retrieve", "do": "counts", "add": 2},
    {"on": "retrieve", "do": "foreign_page", "kind": "html", "times": 2},
    {"on": "retrieve", "do": "foreign_page", "kind": "json", "times": 1},
    {"on": "retrieve", "do": "status", "status": 404, "page": "html", "times": 3},
    {"on": "results", "do": "foreign_page", "kind": "html", "times": 3},
    {"on": "results", "do": "foreign_page", "kind": "empty", "times": 2},
    {"on": "results", "do": "foreign_page", "kind": "json", "times": 2},
    {"on": "results", "do": "foreign_page", "kind": "cut", "times": 2},
    {"on": "results", "do": "first_line", "times": 4},
    {"on": "results", "do": "first_line", "text": "<html>", "times": 4},
    {"on": "results", "do": "damaged_lines", "damage": "cut", "every": 2, "times": 1},
    {"on": "results", "do": "damaged_lines", "damage": "cut", "share": 0.5},
    {"on": "results", "do": "damaged_lines", "damage": "binary", "every": 2, "times": 2},
    {"on": "results", "do": "damaged_lines", "damage": "surrogate", "every": 2, "times": 2},
    {"on": "results", "do": "damaged_lines", "damage": "huge_number", "every": 2, "times": 1},
    {"on": "results", "do": "damaged_lines", "damage": "usage_text", "every": 2, "times": 1},
    {"on": "results", "do": "status", "status": 404, "page": "html", "times": 2},
    {"on": "cancel", "do": "never_ends", "times": 1},
    {"on": "cancel", "do": "foreign_page", "kind": "html", "times": 2},
    {"on": "delete", "do": "foreign_page", "kind": "empty", "times": 1},
    {"on": "count_tokens", "do": "foreign_page", "kind": "html"},
    {"on": "any", "do": "date", "seconds": 4_000, "times": 1},
    {"on": "any", "do": "date", "seconds": -4_000, "times": 1},
    {"on": "any", "do": "date", "text": "", "times": 1},
    {"on": "item", "do": "error", "error_type": "invalid_request_error", "message": CREDIT, "every": 2, "times": 1},
    {"on": "item", "do": "error", "error_type": "overloaded_error", "share": 0.5, "times": 1, "per": "params"},
    {"on": "item", "do": "error", "error_type": "api_error", "times": 2},
    {"on": "item", "do": "error", "error_type": "invalid_request_error", "share": 0.5},
    {"on": "item", "do": "error", "error_type": "billing_error", "every": 2, "times": 1},
    {"on": "item", "do": "error", "error_type": "authentication_error", "times": 2},
    {"on": "item", "do": "expire", "every": 2, "times": 2},
    {"on": "item", "do": "cancel", "share": 0.5, "times": 1},
    {"on": "item", "do": "refuse", "share": 0.5},
    {"on": "item", "do": "max_tokens", "share": 0.5, "times": 2},
    {"on": "item", "do": "context_window", "times": 1},
    {"on": "item", "do": "result_type", "result_type": "postponed", "times": 1},
)
#: commands, with the weight of each
COMMANDS = {
    "run": 6.0,
    "run --detach": 5.0,
    "run --limit 2": 0.7,
    "run --refresh": 0.4,
    "collect": 5.0,
    "cancel": 0.7,
    "cancel --abandon": 0.2,
    "retry": 1.0,
    "retry --set": 1.0,
    "retry --status canceled": 0.5,
    "retry --status lost": 0.4,
}
RETRIES = {
    "retry": Selection(),
    "retry --set": Selection(changes={"request.max_tokens": 200}),
    "retry --status canceled": Selection(statuses=("canceled",)),
    "retry --status lost": Selection(statuses=("lost",)),
}
#: the weights in schedules with many retries, and the actions of such schedules
OFTEN_RETRIED = {"retry": 3.0, "retry --set": 6.0, "cancel": 1.5}
CUT_OFF: Fault = {"on": "item", "do": "max_tokens", "share": 0.7, "per": "params"}
SECONDS = (1, 5, 11, 31, 61, 61, 125, 250, 400, 700, 1_300, 4_000, 25_000, 100_000)
MOMENTS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 2_000, 2_000)


def command(world: World, name: str) -> Callable[[Environment], object]:
    """What a started process does."""
    if name == "collect":
        return sweep
    if name.startswith("cancel"):
        return lambda where: _cancel(where, abandon=name.endswith("--abandon"))
    job = world.job()
    options = {
        "run": Options(),
        "run --detach": Options(detach=True),
        "run --limit 2": Options(limit=2),
        "run --refresh": Options(refresh=True),
        **{name: Options(retry=retry, detach="--status" in name) for name, retry in RETRIES.items()},
    }[name]
    return lambda where: run(job, where, options)


def _cancel(where: Environment, *, abandon: bool) -> None:
    with where.database.read() as conn:
        job = job_named(conn, "simulated")
    if job is None:
        return
    cancel(where, job, abandon=abandon)


class Schedule:
    """The actions in a world, one after the other, and the end of the schedule."""

    def __init__(self, world: World) -> None:
        self._world = world
        chance = world.chance
        always: dict[Callable[[], bool], float] = {self.start: 14, self.go_on: 34, self.turn: 14}
        sometimes: dict[Callable[[], bool], float] = {
            self.break_something: 12,
            self.mend: 4,
            self.stop: 5,
            self.wake: 4,
            self.kill: 5,
            self.interrupt: 1,
            self.step_clock: 1,
            self.change_source: 7,
            self.change_recipe: 1,
            self.cancel_at_the_api: 2,
            self.delete_at_the_api: 1,
            self.other_program: 2,
            self.lose_a_body: 1,
        }
        rarely: dict[Callable[[], bool], float] = {self.hide_from_listing: 3, self.turn_far: 1}
        chosen = {action: weight for action, weight in sometimes.items() if chance.random() < 0.6}
        chosen |= {action: weight for action, weight in rarely.items() if chance.random() < 0.08}
        if world.ways.retries:
            chosen[self.kill_a_retry] = 12.0
        self._actions = always | chosen
        self._faults = chance.sample(FAULTS, chance.randint(1, 6))
        self._commands = COMMANDS | (OFTEN_RETRIED if world.ways.retries else {})

    def play(self) -> None:
        """Run the schedule. Raises Violation."""
        world, chance = self._world, self._world.chance
        world.say(f"{world.ways}")
        self._cut_off()
        self._begin("run" if chance.random() < 0.6 else "run --detach")
        for _ in range(chance.randint(10, 25)):
            while not chance.choices(list(self._actions), list(self._actions.values()))[0]():
                """Choose again: this action is not possible now."""
            world.check()
        Finale(self, world).play()

    # drivers

    def start(self) -> bool:
        """Start another driver, and let it run for a while."""
        if len(self._living()) >= 4:
            return False
        self._begin(self._world.chance.choices(list(self._commands), list(self._commands.values()))[0])
        return True

    def _begin(self, name: str) -> None:
        chance = self._world.chance
        account = ACCOUNTS[0] if chance.random() < 0.7 else ACCOUNTS[self._world.ways.accounts - 1]
        skew = chance.choice((0.0, 0.0, chance.uniform(-120, 120), chance.choice((-3600.0, 3600.0))))
        self.go(self.begin(name, account, skew), chance.choice(MOMENTS))

    def begin(self, name: str, account: str = ACCOUNTS[0], skew: float = 0.0) -> Process:
        """Return a new driver that has not run yet."""
        world = self._world
        world.started[name] += 1
        world.started["retry"] += name.startswith("retry ")
        title = f"driver {len(world.processes) + 1} ({name})"
        world.say(f"{title} starts, {skew:+.0f} s ahead, as {account}")
        process = Process(world, title, account, skew, command(world, name))
        world.processes.append(process)
        return process

    def go_on(self) -> bool:
        """Let one driver run for a while."""
        ready = [process for process in self._world.processes if process.ready]
        if not ready:
            return False
        self.go(self._world.chance.choice(ready), self._world.chance.choice(MOMENTS))
        return True

    def go(self, process: Process, moments: int) -> None:
        """Let a driver run for so many moments, or until it waits. Raises Violation if it does neither in 2,000."""
        world, given = self._world, moments
        while moments > 0 and (ready := process.ready):
            moments = world.turns.give(world.chance.choice(ready), moments)
        at = ", ".join(task.at for task in process.tasks if not task.done)
        said = f"{process.state}: {process.error or process.result}" if process.state == "ended" else f"at {at}"
        world.say(f"  {process.name} goes on, {said}")
        if moments <= 0 and given == max(MOMENTS):
            world.violated(f"{process.name} does not come to rest")

    def _living(self) -> list[Process]:
        return [process for process in self._world.processes if process.state in ("running", "stopped")]

    def _choose(self, *states: str) -> Process | None:
        among = [process for process in self._world.processes if process.state in states]
        return self._world.chance.choice(among) if among else None

    def stop(self) -> bool:
        """Suspend a driver at its current moment."""
        process = self._choose("running")
        if process is None:
            return False
        process.state, process.frozen = "stopped", self._world.chance.random() < 0.3
        self._world.say(f"{process.name} is stopped{' with its machine' if process.frozen else ''}")
        return True

    def wake(self) -> bool:
        """Let a suspended driver continue."""
        process = self._choose("stopped")
        if process is None:
            return False
        self.wake_up(process)
        return True

    def wake_up(self, process: Process) -> None:
        """Wake its threads in a random order."""
        process.state = "running"
        self._world.say(f"{process.name} wakes up")
        if self._world.chance.random() < 0.5:
            for renewal in list(process.renewals):
                renewal.go()

    def kill(self) -> bool:
        """Kill a driver. Only drivers on the same machine can see that."""
        process = self._choose("running", "stopped")
        if process is None:
            return False
        self._kill(process)
        return True

    def kill_a_retry(self) -> bool:
        """Kill a retry that has marked rows and has not put them into a batch."""
        world = self._world
        failed = [answer for answer in world.look().answers.values() if answer.status == RowState.TRUNCATED]
        if len(self._living()) >= 4 or not failed or self._waits_for_retry():
            return False
        process = self.begin("retry --set")
        for _ in range(100):
            if not process.ready or self._waits_for_retry():
                break
            self.go(process, 1)
        if process.state == "running":
            self._kill(process)
        return True

    def _waits_for_retry(self) -> bool:
        """Return whether a row waits for a retry."""
        seen = self._world.look()
        return any(row.state == RowState.PENDING and seen.runs[row.run_id].retry for row in seen.rows)

    def _kill(self, process: Process) -> None:
        process.state = "dead"
        for parcel in process.parcels:
            parcel.lost = parcel.arrived_at is None and self._world.chance.random() < 0.5
        self._world.say(f"{process.name} is dead")

    def interrupt(self) -> bool:
        """Interrupt a driver by Ctrl-C."""
        process = self._choose("running")
        if process is None:
            return False
        process.stop.event.set()
        self._world.say(f"{process.name} is asked to stop")
        return True

    def step_clock(self) -> bool:
        """Set a driver's clock right or wrong."""
        process = self._choose("running", "stopped")
        if process is None:
            return False
        chance = self._world.chance
        step = chance.choice(
            (chance.uniform(-60, 60), chance.uniform(-4_000, 4_000), chance.uniform(-100_000, 100_000))
        )
        process.skew += step
        self._world.say(f"the clock of {process.name} is put by {step:+.0f} s")
        return True

    # time and the API

    def turn(self) -> bool:
        """Advance the clock by a random time."""
        self.turn_by(self._world.chance.choice(SECONDS))
        return True

    def turn_far(self) -> bool:
        """Advance the clock by weeks."""
        self.turn_by(86_400.0 * self._world.chance.choice((2, 14, 30)))
        return True

    def turn_by(self, seconds: float) -> None:
        """Advance the clock by so much."""
        self._world.turn(seconds)
        self._world.say(f"{seconds:,.0f} s have passed")

    def break_something(self) -> bool:
        """Add a random fault to the API."""
        fault = self._world.chance.choice(self._faults)
        if fault["do"] == "repeat_answer" and self._world.others:
            return False  # an answer with a young foreign batch could not be told apart from one of ours
        self._world.emulator.add_fault(**fault)
        self._world.too_large |= fault.get("status") == 413
        self._world.odd |= fault.get("damage") in ODD_LINES
        self._world.cached |= fault["do"] == "repeat_answer"
        self._world.say(f"at the API: {fault}")
        return True

    def hide_from_listing(self) -> bool:
        """Let batches show in the listing later than the grace time."""
        world = self._world
        seconds = world.chance.choice((1_000, 5_000))
        world.hides = True
        world.hidden |= self._unowned()
        world.emulator.add_fault(on="list", do="lag", seconds=seconds)
        world.say(f"at the API: batches show in the listing after {seconds} s")
        return True

    def _unowned(self) -> set[str]:
        """Return batches at the API that the state database does not have yet."""
        owned = {sending.api_id for sending in self._world.look().sendings}
        return {api_id for api_id in self._world.books.batches if api_id not in owned}

    def mend(self) -> bool:
        """Clear all faults."""
        self._world.emulator.clear_faults()
        self._cut_off()
        self._world.hides = False
        self._world.say("at the API: all is well")
        return True

    def _cut_off(self) -> None:
        """Let many answers be cut off, in a schedule with many retries; that is not a fault of the API."""
        if self._world.ways.retries:
            self._world.emulator.add_fault(**CUT_OFF)

    def _batch_at_the_api(self, *states: str) -> str | None:
        store = self._world.emulator._store
        among = [
            api_id
            for api_id, accepted in self._world.books.batches.items()
            if store.get(api_id).status in states
            and self._world.books.is_there(api_id)
            and accepted.account == "default"
        ]
        return self._world.chance.choice(among) if among else None

    def cancel_at_the_api(self) -> bool:
        """Cancel a batch as a person does in the console."""
        api_id = self._batch_at_the_api("in_progress")
        if api_id is None:
            return False
        self._world.console("POST", f"{router.CREATE_PATH}/{api_id}/cancel")
        self._world.say(f"somebody cancels {api_id}")
        return True

    def delete_at_the_api(self) -> bool:
        """Delete a batch as a person does in the console. A batch whose id no driver knows is then gone for good."""
        api_id = self._batch_at_the_api("ended")
        if api_id is None:
            return False
        self._world.hidden |= {api_id} & self._unowned()
        self._world.books.read_results()
        self._world.console("DELETE", f"{router.CREATE_PATH}/{api_id}")
        self._world.say(f"somebody deletes {api_id}")
        return True

    def other_program(self) -> bool:
        """Send a batch as another program, often of the same size as ours."""
        if self._world.cached:
            return False
        number = self._world.chance.randint(1, 3)
        self._world.other_program(number)
        self._world.say(f"another program sends a batch of {number}")
        return True

    # source, job, spool

    def change_source(self) -> bool:
        """Change rows of the source, change them back, make them equal, add and remove some."""
        world, chance = self._world, self._world.chance
        for _ in range(chance.randint(1, 3)):
            key = chance.choice(sorted(world.texts))
            text, note = world.source.get(key, (None, None))
            kind = chance.choice(("changed", "changed", "changed back", "empty", "equal", "noted", "removed", "new"))
            if kind == "removed" or (kind == "noted" and text is None):
                world.source.pop(key, None)
            elif kind == "changed back":
                world.put(key, chance.choice(world.texts[key]), note)
            elif kind == "equal":
                world.put(key, chance.choice(world.texts[chance.choice(sorted(world.texts))]), note)
            elif kind == "noted":
                world.put(key, text)
            else:
                world.put(f"r{len(world.texts)}" if kind == "new" else key, "" if kind == "empty" else None, note)
            world.say(f"source: {key} {kind}")
        world.write_source()
        return True

    def change_recipe(self) -> bool:
        """Change the prompt of the job."""
        self._world.ways.recipe += 1
        self._world.say(f"the job has recipe {self._world.ways.recipe}")
        return True

    def lose_a_body(self) -> bool:
        """Remove a body from the spool."""
        bodies = sorted((self._world.folder / "spool").glob("*/*.json"))
        if not bodies:
            return False
        body = self._world.chance.choice(bodies)
        body.unlink()
        self._world.say(f"{body.name} is gone")
        return True


def _is_unfinished(run: Row[Any]) -> bool:
    """Return whether the same command continues the run."""
    return bool(run.state == RunState.OPEN or run.reason == RunReason.BUDGET)


class Finale:
    """The end of a schedule: faults are cleared, all drivers end, and the job is finished."""

    def __init__(self, schedule: Schedule, world: World) -> None:
        self._schedule, self._world = schedule, world

    def play(self) -> None:
        """Finish the job. Raises Violation if it does not end as it must."""
        world = self._world
        world.say("-- everything is put right --")
        self._schedule.mend()
        world.ways.budget_usd = None
        world.emulator._core.processing_seconds = 50
        late = []
        for process in world.processes:
            if process.state == "stopped" and world.chance.random() < 0.6:
                self._schedule.wake_up(process)
            elif process.state == "stopped":
                late.append(process)
        self._settle()
        self._run_to_the_end()
        for process in late:
            self._schedule.wake_up(process)
        if late:
            self._settle()
            self._run_to_the_end()
        self._check_end()

    def _settle(self) -> None:
        """Let all living drivers run until they have ended."""
        world = self._world
        step, turns = 1.0, 0
        while any(process.state == "running" for process in world.processes):
            ready = [process for process in world.processes if process.ready]
            for process in ready:
                self._schedule.go(process, max(MOMENTS))
                world.check()
            if ready:
                continue
            turns += 1
            if turns > PATIENCE:
                names = [process.name for process in world.processes if process.state == "running"]
                raise Violation(f"these drivers do not end: {', '.join(names)}")
            if turns % 8 == 0:  # as a scheduler does; it also continues work that waits for another account's batches
                for account in ACCOUNTS[: world.ways.accounts]:
                    self._schedule.begin("collect", account)
            self._schedule.turn_by(step)
            step = min(1.6 * step, 4 * 3_600.0)

    def _run_to_the_end(self) -> None:
        """Run the job, and sweep for lost batches, until nothing is left to do."""
        world = self._world
        for turn in range(10):
            for account in ACCOUNTS[: world.ways.accounts]:
                for name in self._unfinished_retries():
                    self._schedule.begin(name, account)
                    self._settle()
                last = self._schedule.begin("run", account)
                self._settle()
                self._schedule.begin("collect", account)
                self._settle()
            if last.error is None and self._is_done(world.check()):
                return
            self._schedule.turn_by(4_000.0 * 1.5**turn)
        raise Violation(f"the job does not come to its end: {last.error or last.result}")

    def _unfinished_retries(self) -> list[str]:
        """Start the commands of retries that died, because no other command continues them."""
        unfinished = [run.retry for run in self._world.look().runs.values() if run.retry and _is_unfinished(run)]
        return [name for name, retry in RETRIES.items() if retry.facts() in unfinished]

    def _is_done(self, seen: Seen) -> bool:
        waiting = any(row.state not in OUTCOMES for row in seen.rows)
        open_now = any(each.state == RunState.OPEN for each in seen.runs.values())
        findable = any(self._is_findable(batch) for batch in seen.batches.values())
        doomed = any(batch.delete_remote for batch in seen.batches.values())
        missed = any(s.end == SendingEnd.ABSENT and self._is_twin(seen, s) for s in seen.sendings)
        return not (waiting or open_now or findable or doomed or missed or self._unclosed(seen))

    def _unclosed(self, seen: Seen) -> bool:
        return any(batch.state not in CLOSED_BATCHES for batch in seen.batches.values())

    def _is_findable(self, batch: Row[Any]) -> bool:
        """Return whether a batch was given up although the API still has its results."""
        is_old = batch.created_at < self._world.at - timedelta(days=28)
        there = batch.api_id is not None and self._world.books.is_there(batch.api_id)
        return batch.state == BatchState.LOST and there and not is_old

    def _is_twin(self, seen: Seen, sending: Row[Any]) -> bool:
        """Return whether a sending that was presumed absent was accepted and could be reported."""
        owned = {each.api_id for each in seen.sendings}
        nonce = seen.batches[sending.batch_id].nonce
        unowned = [b.api_id for b in self._world.books.batches.values() if b.nonce == nonce and b.api_id not in owned]
        recent = sending.ended_at > self._world.at - timedelta(hours=24)
        return recent and any(self._world.books.is_there(api_id) for api_id in unowned)

    def _check_end(self) -> None:
        """Check that every row of the source has an outcome for its current content."""
        world = self._world
        seen = world.check()
        rows = {orjson.loads(row.key)[0]: row for row in seen.rows}
        for key, (text, note) in world.source.items():
            row, answer = rows.get(key), seen.answers.get(key)
            if row is None or answer is None:
                raise Violation(f"{key} of the source has no outcome: {row}, {answer}")
            if answer.note != note:
                raise Violation(f"{key} has the note {note!r}, and in the results table {answer.note!r}")
            self._check_content(key, text, row, answer)
        if self._bodies():
            self._schedule.begin("run")  # its planning removes the leftovers of the last run
            self._settle()
        if self._bodies():
            raise Violation(f"bodies are left in the spool that nothing needs: {self._bodies()}")
        if world.ways.history:
            self._check_history(seen)
        if world.ways.delete_remote:
            left = [
                b.id
                for b in seen.batches.values()
                if b.state == BatchState.COLLECTED and world.books.is_there(b.api_id)
            ]
            if left:
                raise Violation(f"these batches are not deleted at the API: {left}")

    def _bodies(self) -> list[Path]:
        return list((self._world.folder / "spool").glob("*/*.json"))

    def _check_content(self, key: str, text: str, row: Row[Any], answer: Row[Any]) -> None:
        world = self._world
        if answer.status == RowState.INVALID:
            if text and not world.too_large:
                raise Violation(f"{key} is taken for invalid: {answer}")
            return
        sent = world.books.requests.get((answer.batch_id, answer.custom_id))
        if sent is not None and sent.text != text:
            raise Violation(f"{key} is {text!r}, and its answer is to {sent.text!r}")
        retryable = answer.error_type in world.job().retry.errors and row.attempts < world.ways.attempts
        if answer.error_type in ACCOUNT_ERRORS or retryable:
            raise Violation(f"{key} is not sent again: {answer}")

    def _check_history(self, seen: Seen) -> None:
        """Check that every answer that was paid for is stored."""
        world = self._world
        kept = seen.replaced | {answer.custom_id for answer in seen.answers.values()}
        collected = {b.api_id for b in seen.batches.values() if b.state == BatchState.COLLECTED}
        for (api_id, custom_id), sent in world.books.requests.items():
            result = world.books.result(sent)
            if api_id in collected and result and result["type"] == "succeeded" and custom_id not in kept:
                raise Violation(f"the answer to {sent} was paid for, and is nowhere")


# -- running them ----------------------------------------------------------------------------------------------------


class Shelf:
    """A folder and a database that many schedules use one after the other, so that tables are created only once."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        """url: a database on a PostgreSQL server; None: a SQLite file."""
        self.folder = folder
        self.database = Database(url or f"sqlite:///{folder}/batches.db")

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    def clear(self) -> None:
        """Remove the data of the last schedule."""
        for name in ("emulator", "spool"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        with self.database.write() as conn:
            for each in reversed(metadata.sorted_tables):
                conn.execute(delete(each))
            for name in ("answers", "answers_history"):
                conn.execute(sql(f"DROP TABLE IF EXISTS {name}"))


@contextlib.contextmanager
def turned(world: World, seed: int) -> Iterator[None]:
    """Let the pipeline use this world's time, random numbers and threads instead of the machine's."""
    nonces = random.Random(f"nonces {seed}")
    began = time.time()
    chance = SimpleNamespace(
        token_bytes=nonces.randbytes, token_hex=lambda n: nonces.randbytes(n).hex(), choice=nonces.choice
    )
    clock = SimpleNamespace(
        monotonic=world.monotonic,
        time=lambda: began + (world.at - START).total_seconds(),
        time_ns=time.time_ns,
        sleep=lambda seconds: world.wait(lambda: False, seconds, "the SDK, to try again"),
    )
    threads = SimpleNamespace(
        Thread=lambda target, daemon, name: TurnThread(world, target, name),
        Semaphore=lambda value: TurnSemaphore(world, value),
    )
    renewals = SimpleNamespace(
        Thread=lambda target, args, daemon, name: Renewal(world, target, args), Event=threading.Event
    )

    def holder() -> dict[str, Any]:
        assert world.process is not None
        return world.process.holder

    def runs(pid: int, started: str) -> bool:
        """Return whether a process of the running machine has this id; both machines have the same ids."""
        assert world.process is not None
        here = (process for process in world.processes if process.machine == world.process.machine)
        return any(
            (process.pid, process.holder["started"]) == (pid, started) and process.state in ("running", "stopped")
            for process in here
        )

    with pytest.MonkeyPatch.context() as patch:
        for module in (holders, leases):
            patch.setattr(module, "holder", holder)
        patch.setattr(holders, "_runs", runs)
        for module in (packing, leases, local, ids, router):
            patch.setattr(module, "secrets", chance)
        for module in (leases, submit, local, anthropic._base_client):
            patch.setattr(module, "time", clock)
        for module in (submitter, submit):
            patch.setattr(module, "threading", threads)
        patch.setattr(prefetch, "ThreadPoolExecutor", AtOnce)
        patch.setattr(local, "FORGOTTEN_SECONDS", float("inf"))  # the files have the time of the machine
        patch.setattr(leases, "threading", renewals)
        patch.setattr(submit, "random", nonces)
        patch.setattr(api, "PAGE", 3)  # so that a few batches are a listing of several pages
        patch.setattr(listing, "LEAST", 2)  # and are asked after by it
        yield


def simulate(seed: int, shelf: Shelf, say: Callable[[str], None] = lambda what: None) -> None:
    """Run one schedule. Raises Violation."""
    shelf.clear()
    world = World(seed, shelf.folder, shelf.database, say)
    with turned(world, seed), world.emulator:
        try:
            Schedule(world).play()
        finally:
            world.turns.end(task for process in world.processes for task in process.tasks)


@contextlib.contextmanager
def a_shelf(*, postgresql: bool = False) -> Iterator[Shelf]:
    """Yield a shelf, in memory if the machine has such a folder; for PostgreSQL with a new server."""
    in_memory = Path("/dev/shm")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="simulation-", dir=in_memory if in_memory.is_dir() else None)
        )
        url = None
        if postgresql:
            from tests.support.postgres import own_server, url_of

            url = url_of(stack.enter_context(own_server()))
        yield stack.enter_context(contextlib.closing(Shelf(Path(folder), url)))


def replay(seed: int) -> str:
    """Return the command that shows a schedule step by step."""
    return f"python -m tests.proofs.simulation --seed {seed} -v"


def main() -> int:
    """Run the schedules that the command line asks for; return 1 if a rule was violated."""
    asked = _arguments()
    if asked.processes > 1:
        return _in_processes(asked)
    seeds = itertools.count(asked.first, asked.step) if asked.seed is None else iter((asked.seed,))
    until = time.monotonic() + asked.seconds if asked.seconds else float("inf")
    done = failed = 0
    with a_shelf(postgresql=asked.postgresql) as shelf:
        for seed in itertools.islice(seeds, asked.schedules):
            if time.monotonic() > until:
                break
            try:
                simulate(seed, shelf, _write if asked.verbose else lambda what: None)
            except Violation as exc:
                failed += 1
                _write(f"seed {seed}: {exc}\n  {replay(seed)}")
            done += 1
    _write(f"{done} schedules from seed {asked.first if asked.seed is None else asked.seed} on, {failed} failed")
    return min(failed, 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Random schedules of several drivers over one job.")
    parser.add_argument("--seed", type=int, help="only this schedule")
    parser.add_argument("-v", "--verbose", action="store_true", help="print each step")
    parser.add_argument("--first", type=int, default=secrets.randbelow(10**9), help="the first seed")
    parser.add_argument("--step", type=int, default=1, help="from one seed to the next")
    parser.add_argument("--schedules", type=int, help="at most so many")
    parser.add_argument("--seconds", type=float, help="as many as fit")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--postgresql", action="store_true", help="on a server of its own, instead of SQLite")
    return parser.parse_args()


def _in_processes(asked: argparse.Namespace) -> int:
    """Divide the seeds among several processes and return the worst of their exit codes."""
    shared = ["--step", str(asked.processes)]
    shared += ["--postgresql"] if asked.postgresql else []
    shared += ["--seconds", str(asked.seconds)] if asked.seconds else []
    shared += ["--schedules", str(-(-asked.schedules // asked.processes))] if asked.schedules else []
    command = [sys.executable, "-m", "tests.proofs.simulation", *shared]
    children = [subprocess.Popen([*command, "--first", str(asked.first + i)]) for i in range(asked.processes)]
    return max(child.wait() for child in children)


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
