"""Set up what a driver works with: state database, spool, and the API or the emulator. Edge: SQL, HTTP, files."""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.api.reach import Reach, reach_of
from pipeline.driver import spools
from pipeline.driver.driver import Driver, Stop
from pipeline.driver.line import Line
from pipeline.driver.settings import Settings
from pipeline.driver.tool_groups import ToolRunner
from pipeline.errors import ApiUnreachable, DatabaseError, InputError, NotFound
from pipeline.events.event import Tell, nothing
from pipeline.events.runs import EmulatorStarted, SpoolMoved, Warned
from pipeline.job.endpoint import DEFAULT, Endpoint
from pipeline.sink.table import ResultsTable
from pipeline.spool.spool import Spool
from pipeline.state import leases
from pipeline.state.accounts import find_or_add_account
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord
from pipeline.state.runs import last_run
from pipeline.storage import objects

if TYPE_CHECKING:
    from pipeline.api.client import Api

EMULATED_SECONDS = 1.0  # how long a batch takes in an emulator that is started for one command
EMULATED_GRACE = 2.0  # seconds; short, because the emulator lists a batch as soon as it has accepted it


@dataclass(frozen=True)
class Environment:
    """What a driver works with.

    connect: a function from an endpoint, as the job's section `api` names it, to the API. spool: the address
    that the command gives; None: that of the job, else one beside the database. now: the local clock. reach: how
    another process reaches the API as `connect` does; None: it cannot. api_now: the time by the API's clock, as another
    process has told it; None: the API is asked. account_id: the number of our account, as another process has told it.
    """

    database: Database
    connect: "Callable[[Endpoint], Api]"
    settings: Settings = field(default_factory=Settings)
    spool: str | None = None
    tell: Tell = nothing
    stop: Stop = field(default_factory=Stop)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    reach: Callable[[Endpoint], Reach] | None = None
    api_now: Callable[[], datetime] | None = None
    account_id: int | None = None
    runs_tools: bool = True  #: whether drivers call the tools of jobs
    tool_runner: ToolRunner | None = None  #: how other processes call tools for drivers; None: drivers call them
    warned: set[str] = field(default_factory=set)  #: warnings that were told; each is told once for all endpoints

    def look_at_spool(self, job: JobRecord | None) -> None:
        """Raise DatabaseError if the spool cannot be used, before a command asks or writes anything. Changes nothing.

        job: the job's record; None: the database does not know the job.
        """
        if job is None:
            spools.read_id(spools.address_of(self.database.folder, self.spool, None))
        else:
            spools.check(self.database, job, self.spool)

    def spool_of(self, job: JobRecord) -> Spool:
        """Open the spool of a job, and report a move of it. Raises DatabaseError if the spool cannot be used."""
        spool, moved = spools.open_for(self.database, job, self.spool)
        if moved is not None:
            self.tell(SpoolMoved(job=job.name, spool=moved))
        return spool

    def endpoint_of(self, job: JobRecord) -> Endpoint:
        """Return the endpoint of the API that the job's last run used; the default one if the job has no runs."""
        with self.database.read() as conn:
            last = last_run(conn, job.id)
        return DEFAULT if last is None else last.endpoint

    def by_endpoint(self, jobs: Iterable[JobRecord]) -> dict[Endpoint, list[JobRecord]]:
        """Group jobs by the endpoint of the API that each of them uses."""
        found: dict[Endpoint, list[JobRecord]] = {}
        for job in jobs:
            found.setdefault(self.endpoint_of(job), []).append(job)
        return found

    @contextlib.contextmanager
    def api(self, endpoint: Endpoint = DEFAULT) -> "Iterator[tuple[Api, int]]":
        """Connect to an endpoint of the API; yield the API and the number of our account there.

        Raises InputError if the address does not answer, at which point nothing was sent, and DatabaseError if the
        database belongs to the emulator and this is the API, or the other way round.
        """
        api = self.connect(endpoint)
        try:
            try:
                identity = api.identity()
            except ApiUnreachable as exc:
                raise InputError(f"{exc}; nothing was sent") from exc
            except NotFound as exc:
                setting = "ANTHROPIC_BASE_URL" if endpoint.base_url is None else "api.base_url"
                raise InputError(
                    f"{api.base_url} does not answer as the Messages API does ({exc}); check {setting}; "
                    "nothing was sent"
                ) from exc
            with self.database.write() as conn:
                account_id = find_or_add_account(conn, identity)
            if not identity.emulated:  # the emulator lists a batch as soon as it has accepted it
                self._warn(self.settings.warning())
            yield api, account_id
        finally:
            api.close()

    def _warn(self, warning: str | None) -> None:
        if warning is not None and warning not in self.warned:
            self.warned.add(warning)
            self.tell(Warned(warning=warning))

    @contextlib.contextmanager
    def driving(self, endpoint: Endpoint = DEFAULT, *, lazily: bool = False) -> Iterator["Session"]:
        """Start a driver: connect to the API and hold a sign of life while the block runs. Raises as `api` does.

        lazily: connect to the API only when it is first needed.
        """
        with contextlib.ExitStack() as stack:
            told = (self.api_now, self.account_id)
            line = Line(lambda: stack.enter_context(self.api(endpoint)), self.database, self.now, *told)
            if not lazily:
                line.open()
            with leases.sign_of_life(self.database, seconds=self.settings.lease, now=self.now) as lease:
                with self.database.write() as conn:
                    leases.bury(conn, self.database.now(conn, self.now()))
                where = self
                if endpoint.timeout is not None:
                    where = replace(self, settings=self.settings.model_copy(update={"timeout": endpoint.timeout}))
                yield Session(where=where, line=line, lease=lease)


@dataclass(frozen=True)
class Session:
    """A driver that is started, before it chooses a job."""

    where: Environment
    line: Line
    lease: leases.Lease

    def driver(self, job: JobRecord, sink: ResultsTable | None = None, *, tries_account: bool = False) -> Driver:
        """Return the driver for one job. sink: the results table; None: as the database describes it."""
        where = self.where
        return Driver(
            database=where.database,
            spool=where.spool_of(job),
            line=self.line,
            job_id=job.id,
            job_name=job.name,
            sink=sink or ResultsTable.of(job),
            lease=self.lease,
            settings=where.settings,
            tell=lambda event: where.tell(event.of_job(job.name)),
            stop=where.stop,
            local_now=where.now,
            tries_account=tries_account,
            runs_tools=where.runs_tools,
            tool_runner=where.tool_runner,
        )


@contextlib.contextmanager
def at(
    database: Database,
    *,
    spool: str | None = None,
    emulated: bool = False,
    poll_seconds: float | None = None,
    tell: Tell = nothing,
    stop: Stop | None = None,
) -> Iterator[Environment]:
    """Yield an environment with this database and the API of the environment variables, or an emulator.

    emulated: whether an emulator takes the place of the API: it is started at the first connection and runs until the
    block ends. Its data is beside the database or in the spool, so that after a run was killed the next one finds its
    batches again. Then `connect` raises InputError if another process uses that data.
    """
    settings = Settings.from_environment(poll_seconds=poll_seconds, grace=EMULATED_GRACE if emulated else None)
    with contextlib.ExitStack() as stack:

        @functools.cache
        def emulator() -> str:
            url = stack.enter_context(_emulator_beside(database, spool))
            tell(EmulatorStarted(url=url))
            return url

        def reach(endpoint: Endpoint) -> Reach:
            if emulated:  # it needs the default client and no headers, whatever the job names
                return Reach("default", endpoint.timeout or settings.timeout, emulator(), "emulated")
            return reach_of(endpoint, settings.timeout)

        def connect(endpoint: Endpoint) -> "Api":
            from pipeline.api.client import Api

            return Api.connect(reach(endpoint))

        yield Environment(
            database=database,
            connect=connect,
            settings=settings,
            spool=spool,
            tell=tell,
            stop=stop or Stop(),
            reach=reach,
        )


@contextlib.contextmanager
def reaching(endpoint: Endpoint = DEFAULT, *, emulated: bool = False) -> Iterator[Reach]:
    """Yield how to reach the API without a database. emulated: start an emulator, whose data is removed afterwards."""
    timeout = Settings.from_environment().timeout
    if not emulated:
        yield reach_of(endpoint, timeout)
        return
    from pipeline.emulator import start

    with tempfile.TemporaryDirectory() as folder, start(Path(folder)) as running:
        yield Reach("default", timeout, running.url, "emulated")


@contextlib.contextmanager
def asking(endpoint: Endpoint = DEFAULT, *, emulated: bool = False) -> "Iterator[Api]":
    """Yield the API for calls that need no database; the arguments are those of `reaching`."""
    from pipeline.api.client import Api

    with reaching(endpoint, emulated=emulated) as reached, contextlib.closing(Api.connect(reached)) as api:
        yield api


@contextlib.contextmanager
def _emulator_beside(database: Database, spool: str | None) -> Iterator[str]:
    from pipeline.emulator import EmulatorError, start

    if database.file is not None:
        data = database.file.with_name(database.file.name + ".emulator")
    elif spool is not None and objects.is_url(spool):
        raise DatabaseError(
            f"--emulator keeps its data beside a SQLite database or in a folder, not in {spool}; start one by "
            "`batch-pipeline emulator --data FOLDER` and name it by ANTHROPIC_BASE_URL"
        )
    elif spool is not None:
        data = Path(spool) / "emulator"
    else:
        raise DatabaseError(
            f"{database.shown} needs a spool, which also holds the emulator's data: give one by --spool"
        )
    try:
        running = start(data, processing_seconds=EMULATED_SECONDS)
    except EmulatorError as exc:
        raise InputError(str(exc)) from exc
    with running:
        yield running.url
