"""The World of tests: an emulator in this process, a SQLite or PostgreSQL database, and a clock that tests advance."""

import csv
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import orjson
import pytest
from sqlalchemy import Connection, select

from pipeline.api.client import Api
from pipeline.driver.driver import Driver, Stop
from pipeline.driver.environment import Environment
from pipeline.driver.settings import Settings
from pipeline.emulator import Clock, Emulator
from pipeline.errors import Interrupted
from pipeline.events import batches as batch_events
from pipeline.events import runs as run_events
from pipeline.events.event import Event
from pipeline.job.model import Job
from pipeline.memory import collect_seldom
from pipeline.planning.estimate import Money
from pipeline.planning.quote import Quote, Quoted
from pipeline.runner.options import Finished, Options
from pipeline.runner.run import run
from pipeline.runner.sweep import sweep
from pipeline.sink.read import ndjson
from pipeline.state import ends
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord, job_named
from pipeline.state.tables import batches, requests
from tests.support.shared_sql import share_compiled_sql

pytest_plugins = [
    "tests.support.fast_folder",
    "tests.support.object_storage",
    "tests.support.postgres",
    "tests.support.prefect_site",
]


def pytest_configure() -> None:
    share_compiled_sql()


def pytest_collection_finish() -> None:
    collect_seldom()  # all modules are imported now: without it, a fourteenth of the time is the collector's


class TurnedClock:
    """The clock of the pipeline. Waiting advances it and the emulator's clock instead of taking time."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._at = datetime.now(UTC)
        self.turned = timedelta()  #: how far it was advanced

    def __call__(self) -> datetime:
        return self._at

    def advance(self, seconds: float) -> None:
        self._at += timedelta(seconds=seconds)
        self.turned += timedelta(seconds=seconds)
        self._emulator.clock.advance(seconds)


class TurnedDatabase(Database):
    """A database whose server's clock is advanced with the others. On SQLite there is no such clock."""

    def __init__(self, url: str, clock: TurnedClock) -> None:
        self._clock = clock
        super().__init__(url)

    def now(self, conn: Connection, local: datetime) -> datetime:
        now = super().now(conn, local)
        return now if self.is_sqlite else now + self._clock.turned


@dataclass
class TurningStop(Stop):
    """A Stop whose waits advance the clock."""

    clock: TurnedClock | None = None
    waited: float = 0.0

    def wait(self, seconds: float) -> None:
        assert self.clock is not None
        self.check()
        self.clock.advance(max(0.01, seconds))
        self.waited += seconds


@dataclass
class World:
    """One emulator, one database, and jobs over CSV files in one folder."""

    folder: Path
    emulator: Emulator
    clock: TurnedClock
    database: Database
    spool: str | None = None
    key: str = "test"
    settings: Settings = field(default_factory=lambda: Settings(poll=30.0, grace=60.0))
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    on_event: Callable[[str, dict[str, Any]], None] | None = None

    def rows(self, rows: Sequence[Mapping[str, object]], name: str = "rows.csv") -> Path:
        """Write these rows to the source file."""
        path = self.folder / name
        with open(path, "w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else ["id", "text"])
            writer.writeheader()
            writer.writerows(rows)
        return path

    def job(self, **changes: Any) -> Job:
        """Return a job over rows.csv with columns id and text; `changes` replace sections or fields of sections."""
        sections: dict[str, Any] = {
            "name": "summaries",
            "source": {"path": str(self.folder / "rows.csv"), "key": "id"},
            "request": {"model": "claude-haiku-4-5", "max_tokens": 100, "prompt": "Summarize: {{ text }}"},
            "sink": {"table": "answers"},
            "canary": False,  # otherwise the first rows of larger tests would be sent as a canary
        }
        for name, change in changes.items():
            merges = isinstance(change, dict) and isinstance(sections.get(name), dict)
            sections[name] = {**sections[name], **change} if merges else change
        return Job.model_validate(sections)

    def client(self, through: httpx2.BaseTransport | None = None) -> anthropic.Anthropic:
        """Return a client of the API with our key. through: a transport for its calls; None: the emulator's own."""
        http = httpx2.Client(transport=through or self.emulator.transport())
        return anthropic.Anthropic(api_key=self.key, base_url="http://emulator", max_retries=0, http_client=http)

    def where(self, through: httpx2.BaseTransport | None = None) -> Environment:
        """Return the environment that a driver works with. through: as for `client`."""
        client = self.client(through)
        return Environment(
            database=self.database,
            connect=lambda _: Api(client, now=self.clock),
            settings=self.settings,
            spool=self.spool,
            tell=self._tell,
            stop=TurningStop(clock=self.clock),
            now=self.clock,
        )

    def run(self, job: Job, **options: Any) -> Finished:
        """Do what `batch-pipeline run` does, and return how it ended."""
        finished = run(job, self.where(), Options(**options))
        ends.note_told(self.database, finished.told, self.clock())
        return finished

    def run_beside(self, job: Job, moment: str) -> list[Finished]:
        """Run the job, and run it a second time during the first run, at the first event of this name. Return both."""
        beside: list[Finished] = []

        def begin(event: str, facts: dict[str, Any]) -> None:
            if event == moment:
                self.on_event = None
                beside.append(self.run(job))

        self.on_event = begin
        first = self.run(job)
        assert beside, f"no driver told {moment!r}"
        return [first, *beside]

    def dies_at(self, job: Job, moment: str, nth: int = 1, **options: Any) -> None:
        """Run the job, and interrupt its driver at the n-th event of this name."""
        where = self.where()
        self.stop_at(where, moment, nth)
        with pytest.raises(Interrupted):
            run(job, where, Options(**options))
        self.on_event = None

    def stop_at(self, where: Environment, moment: str, nth: int = 1) -> None:
        """Interrupt the driver of this environment at the n-th event of this name.

        If the caller's own thread tells the event, it goes no further: asked to stop, it would do so at its next look,
        and how much it has planned by then would depend on the speed of other threads.
        """
        own = threading.current_thread()

        def look(event: str, facts: dict[str, Any]) -> None:
            if event == moment and len(self.told(moment)) == nth:
                where.stop.event.set()
                if threading.current_thread() is own:
                    where.stop.check()

        self.on_event = look

    def sweep(self) -> list[tuple[str, str | None]]:
        """Do what `batch-pipeline collect` does, and return which runs ended."""
        swept = sweep(self.where())
        with self.database.read() as conn:
            untold = ends.untold(conn)
        ends.note_told(self.database, {end.run_id: end.ended_at for end in untold}, self.clock())
        return swept

    def known(self, job: str = "summaries") -> JobRecord:
        """Return the record of a job in the state database."""
        with self.database.read() as conn:
            row = job_named(conn, job)
        assert row is not None
        return row

    def driver(self, stack: ExitStack, *, skew: timedelta = timedelta()) -> Driver:
        """Return a driver of the job that works until the stack is closed. skew: by how much its own clock is wrong."""
        where = replace(self.where(), now=lambda: self.clock() + skew)
        return stack.enter_context(where.driving()).driver(self.known())

    def answers(self, job: str = "summaries") -> dict[str, dict[str, Any]]:
        """Return the rows of the results table by key."""
        with self.database.read() as conn:
            row = job_named(conn, job)
        assert row is not None
        found = [orjson.loads(line) for line in ndjson(self.database, row)]
        return {str(answer["id"]): answer for answer in found}

    def statuses(self, job: str = "summaries") -> dict[str, str]:
        """Return the status of each row in the results table."""
        return {key: answer["status"] for key, answer in self.answers(job).items()}

    def states(self) -> dict[str, str]:
        """Return the state of each row in the state database."""
        with self.database.read() as conn:
            found = conn.execute(select(requests.c.key, requests.c.state)).all()
        return {orjson.loads(key)[0]: state for key, state in found}

    def batch_states(self) -> list[str]:
        """Return the states of the batches in the order of their numbers."""
        with self.database.read() as conn:
            return list(conn.scalars(select(batches.c.state).order_by(batches.c.id)))

    def accepted(self) -> int:
        """Return how many requests the API has accepted so far."""
        return len(list(self.emulator.accepted()))

    def sent_twice(self) -> object:
        """Return the requests that the API accepted again while an earlier acceptance was running or had succeeded."""
        return self.emulator.audit()["accepted_twice"]

    def told(self, event: str) -> list[dict[str, Any]]:
        """Return the facts of all events of this name."""
        return [facts for name, facts in self.events if name == event]

    def with_settings(self, **changes: Any) -> None:
        """Change the settings of drivers, such as how long they wait."""
        self.settings = self.settings.model_copy(update=changes)

    def _tell(self, event: Event) -> None:
        facts = event.facts()
        self.events.append((event.name, facts))
        if self.on_event is not None:
            self.on_event(event.name, facts)


def event_classes() -> list[type[Event]]:
    """Return the class of each event, by name."""
    found = [of for module in (batch_events, run_events) for of in vars(module).values() if isinstance(of, type)]
    return [*(of for of in found if issubclass(of, Event) and hasattr(of, "name")), Quoted]


def event_of(name: str, facts: dict[str, Any]) -> Event:
    """Return an event that a world was told of as the object that it was."""
    return {of.name: of for of in event_classes()}[name](**facts)


def event_line(name: str, facts: dict[str, Any]) -> str:
    """Return the line of an event that a world was told of."""
    return event_of(name, facts).line()


def said_of(quote: Quote) -> Money:
    """Return the cost in a quote, in US dollars."""
    assert quote.estimate is not None
    assert quote.estimate.money is not None
    return quote.estimate.money


def texts(n: int) -> list[dict[str, object]]:
    """Return n rows with different texts."""
    return [{"id": f"r{i}", "text": f"Text number {i} is about the number {i}."} for i in range(n)]


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A world on SQLite and one on PostgreSQL: each test that uses it runs on both."""
    url, spool = f"sqlite:///{tmp_path}/batches.db", None
    if request.param == "PostgreSQL":
        url, spool = request.getfixturevalue("migrated_url"), str(tmp_path / "spool")
    with Emulator(tmp_path / "emulator", processing_seconds=50, clock=Clock()) as emulator:
        clock = TurnedClock(emulator)
        world = World(tmp_path, emulator, clock, TurnedDatabase(url, clock), spool)
        world.rows(texts(5))
        yield world
        world.database.close()


@pytest.fixture
def planned(world: World) -> World:
    """A world with one planned batch that is due."""
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=5)
    world.run(world.job(), detach=True)
    world.emulator.clear_faults()
    world.clock.advance(60)
    assert world.batch_states() == ["planned"]
    return world


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the PostgreSQL tests of modules with POSTGRESQL_IS_LONG as long."""
    for item in items:
        module = item.module if isinstance(item, pytest.Function) else None
        chosen = item.callspec.params.values() if hasattr(item, "callspec") else ()
        on_postgresql = any(isinstance(value, str) and value.lower() == "postgresql" for value in chosen)
        if getattr(module, "POSTGRESQL_IS_LONG", False) and on_postgresql:
            item.add_marker(pytest.mark.long)
