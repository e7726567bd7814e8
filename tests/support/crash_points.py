"""Run a command that dies before its k-th change, for every k, and then the command that a user runs next.

A change is what outlives the process: a commit, a call that the API or a store acts on, a file that is made, renamed or
removed, the call of a tool. A death anywhere between two changes leaves the same behind, so one point there is enough.

A process of its own, so that it can fork: each death is os._exit in a child that has everything imported. Each point
has a job and a database of its own. It prints one JSON object: how many points were tried, and what went wrong.

    python -m tests.support.crash_points SCRIPT API DATABASE FOLDER FIRST EVERY [SPOOL]

SCRIPT: what dies, see SCRIPTS; API: the emulator's URL; DATABASE: `sqlite`, or the URL of a PostgreSQL server; FIRST:
the number of the first point, from 1 on; EVERY: 1 for each point from there on, 2 for every second one; SPOOL: an
address on object storage below which each point has its spool.
"""

import contextlib
import functools
import json
import os
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import httpx2
from anthropic.types import Message
from anthropic.types.messages import MessageBatch
from sqlalchemy import Connection, event, func, make_url, select
from sqlalchemy.engine import Engine

from pipeline.api.client import Api
from pipeline.driver.environment import Environment
from pipeline.driver.settings import Settings
from pipeline.errors import Stopped
from pipeline.events.batches import Planned
from pipeline.events.event import Event
from pipeline.job.model import Job
from pipeline.memory import collect_seldom
from pipeline.money.prices import prices_of
from pipeline.planning.selection import Selection
from pipeline.planning.trial import Trial
from pipeline.request.sdk_types import first_mismatch
from pipeline.runner.options import Options
from pipeline.runner.run import run
from pipeline.runner.sweep import sweep
from pipeline.runner.trial import run_trial
from pipeline.sink.read import ndjson
from pipeline.sink.table import ResultsTable
from pipeline.state.batches import known_nonces
from pipeline.state.database import Database
from pipeline.state.jobs import job_named
from pipeline.state.tables import batches, requests, runs, sendings
from pipeline.states import CLOSED_BATCHES, OUTCOMES
from pipeline.steps import cancel
from pipeline.storage import objects
from tests.support import talking
from tests.support.point_rows import GATED, MODEL, alike, faulty, gated, waiting
from tests.support.postgres import new_database
from tests.support.talking import live_loop

DEAD = 9
#: audit events of Python for changes of files; the first argument is a path
OF_FILES = {"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
#: the functions of pipeline.storage.objects that change something
OF_STORAGE: tuple[Callable[..., Any], ...] = (objects.put, objects.remove, objects.abandon_uploads)


@dataclass
class Point:
    """A job over a few rows with its own database and folder, in which a command dies at one place."""

    api: str
    database: str
    folder: Path
    texts: list[str]
    batch: int  #: the largest number of requests of a batch
    sections: dict[str, Any] = field(default_factory=dict)  #: sections of the job file that replace the common ones
    transport: Callable[[], httpx2.BaseTransport] = lambda: httpx2.HTTPTransport(verify=False)
    spool: str | None = None  #: an address; None: a folder
    has_tools: bool = False  #: whether its rows call tools
    before_tool: Callable[[], None] = lambda: None  #: called before each call of a tool

    def job(self) -> Job:
        """Return a job with a budget, a history table and batches to delete at the API."""
        rows = "".join(f"{i},{text}\n" for i, text in enumerate(self.texts))
        (self.folder / "rows.csv").write_text(f"id,text\n{rows}")
        return Job.model_validate(
            {
                "name": "crashing",
                "source": {"path": str(self.folder / "rows.csv"), "key": "id"},
                "request": {"model": MODEL, "max_tokens": 30, "prompt": "{{ text }}"},
                "limits": {"max_batch_requests": self.batch, "max_in_flight_requests": 4, "max_cost_usd": 1.0},
                "sink": {"table": "answers", "history": True},
                "privacy": {"delete_remote": True},
                "canary": False,
                **self.sections,
                **(talking.sections(self.folder, self.before_tool) if self.has_tools else {}),
            }
        )

    @contextlib.contextmanager
    def where(self) -> Iterator[Environment]:
        """Return the environment that its drivers work with."""
        with contextlib.closing(Database(self.database)) as database:
            yield Environment(
                database=database,
                connect=self._connect,
                settings=Settings(poll=0.02, grace=0.2, lease=30.0),
                spool=self.spool or (None if database.is_sqlite else str(self.folder / "spool")),
            )

    def bodies(self, job: str = "crashing") -> set[str]:
        """Return the nonces of the bodies of a job or trial in its spool."""
        if self.spool is None:
            return {body.stem for body in (self.folder / "spool" / job).glob("*.json")}
        names = [obj.url.rpartition("/")[2] for obj in objects.list_objects(f"{self.spool}/{job}")]
        return {name.removesuffix(".json") for name in names}

    def _connect(self, _: object) -> Api:
        http = httpx2.Client(transport=self.transport())
        return Api(anthropic.Anthropic(api_key="test", base_url=self.api, max_retries=0, http_client=http))


# -- commands that die -----------------------------------------------------------------------------------------------


def run_it(point: Point) -> None:
    """`run`"""
    with point.where() as where:
        run(point.job(), where)


def try_it(point: Point) -> None:
    """`trial --name t`"""
    with point.where() as where:
        run_trial(point.job(), Trial("t"), where)


def try_again(point: Point) -> None:
    """`trial --name t`, and once more as `run_again`."""
    _until_told(try_it, point)


def run_beside_sweeps(point: Point) -> None:
    """`run`, with two sweeps by another driver after each batch that it plans: the batches before are collected."""
    with point.where() as where:

        def sweep_twice(event: Event) -> None:
            if isinstance(event, Planned):
                for _ in range(2):
                    sweep(where)

        run(point.job(), replace(where, tell=sweep_twice))


def run_again(point: Point) -> None:
    """`run`, and once more as long as it says that it is to be run again: another point's batch may look like ours."""
    _until_told(run_it, point)


def retry_again(point: Point) -> None:
    """`retry`, and once more as `run_again`."""
    _until_told(retry, point)


def _until_told(command: Callable[[Point], None], point: Point) -> None:
    """Give a command again until the batches of other points at the API raise no doubt about ours."""
    for _ in range(MOST_SWEEPS):
        try:
            command(point)
        except Stopped:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"{point.folder.name}: stopped {MOST_SWEEPS} times")


def begin(point: Point) -> None:
    """`run --detach`"""
    with point.where() as where:
        run(point.job(), where, Options(detach=True))


def retry(point: Point) -> None:
    """`retry --status truncated --set request.max_tokens=1000`"""
    with point.where() as where:
        wanted = Selection(statuses=("truncated",), changes={"request.max_tokens": 1_000})
        run(point.job(), where, Options(retry=wanted))


def cancel_it(point: Point) -> None:
    """`cancel`"""
    with point.where() as where:
        with where.database.read() as conn:
            job = job_named(conn, "crashing")
        assert job is not None
        cancel.cancel(where, job)


def collect(point: Point) -> None:
    """`collect`, until nothing is left at the API."""
    with point.where() as where:
        for _ in range(MOST_SWEEPS):
            assert [problem for _, problem in sweep(where) if problem] == []
            with where.database.read() as conn:
                if not conn.scalars(LEFT).all():
                    return
            where.stop.wait(0.05)
        raise AssertionError(f"{point.folder.name}: a batch is left after {MOST_SWEEPS} sweeps")


LEFT = select(batches.c.id).where(batches.c.state.not_in(CLOSED_BATCHES) | batches.c.delete_remote)
MOST_SWEEPS = 200


# -- checks after the death ------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """The content of the database of a point at the end. history: empty if the job has none."""

    rows: Counter[str]
    answers: Counter[str]
    history: Counter[str]
    runs: Counter[tuple[str, str | None]]
    cost_usd: float
    settled_usd: float

    @classmethod
    def at(cls, point: Point, name: str = "crashing") -> "Seen":
        """Read the database and check what must hold wherever the command died. name: of a job or trial."""
        with point.where() as where, where.database.read() as conn:
            job = job_named(conn, name)
            assert job is not None
            sink = ResultsTable.of(job)
            _check_closed(conn)
            bodies = point.bodies(name)
            assert bodies <= known_nonces(conn, job.id), bodies
            _check_answers(conn, [json.loads(line) for line in ndjson(where.database, job)])
            history = [] if sink.history is None else conn.scalars(select(sink.history.c.status)).all()
            states = select(runs.c.state, runs.c.reason)
            return cls(
                rows=Counter(conn.scalars(select(requests.c.state))),
                answers=Counter(conn.scalars(select(sink.table.c.status))),
                history=Counter(history),
                runs=Counter((state, reason) for state, reason in conn.execute(states)),
                cost_usd=conn.scalar(select(func.sum(batches.c.cost_usd))) or 0.0,
                settled_usd=conn.scalar(select(func.sum(sendings.c.settled_usd))) or 0.0,
            )


def _check_closed(conn: Connection) -> None:
    """Assert that no batch is open and none is left at the API."""
    assert conn.scalars(LEFT).all() == []
    ends = set(conn.scalars(select(sendings.c.end)))
    assert ends <= {"accepted", "adopted", "rejected", "absent"}, ends


def _check_answers(conn: Connection, answers: list[dict[str, Any]]) -> None:
    """Assert that each row with an outcome has one answer with this status, and each row without has none."""
    rows = conn.execute(select(requests.c.key, requests.c.state).where(requests.c.state.in_(OUTCOMES)))
    outcomes = {json.loads(key)[0]: state for key, state in rows}
    assert {str(answer["id"]): answer["status"] for answer in answers} == {str(k): v for k, v in outcomes.items()}
    assert len(answers) == len(outcomes)


def _check_paid(seen: Seen) -> None:
    """Assert that all sendings are settled, and that their sum equals the cost of the answers."""
    assert abs(seen.settled_usd - seen.cost_usd) < 1e-9, (seen.settled_usd, seen.cost_usd)


def after_run(point: Point) -> None:
    """Assert that every row has the expected outcome."""
    seen = Seen.at(point)
    assert seen.rows == seen.answers == {"succeeded": 3, "truncated": 1, "invalid": 1}, seen
    assert seen.history == {"errored": 1}, seen
    assert seen.runs.keys() == {("finished", None)}, seen  # a second run, if the first one died just after its end
    _check_paid(seen)


def after_trial(point: Point) -> None:
    """Assert that every row of the trial has the expected outcome, and that the job itself has no row."""
    seen = Seen.at(point, "crashing:t")
    assert seen.rows == seen.answers == {"succeeded": 3, "truncated": 1, "invalid": 1}, seen
    assert seen.runs.keys() == {("finished", None)}, seen
    _check_paid(seen)
    with point.where() as where, where.database.read() as conn:
        job = job_named(conn, "crashing")
        assert job is not None
        assert not list(ndjson(where.database, job))
        assert not conn.scalar(select(func.count()).select_from(requests).where(requests.c.job_id == job.id))


def after_gated(point: Point) -> None:
    """Assert that every row has its answer, the cut one by a longer request, and that one row was sent first."""
    seen = Seen.at(point)
    assert seen.rows == seen.answers == {"succeeded": 10}, seen
    assert seen.history == {"truncated": 1}, seen
    assert seen.runs.keys() == {("finished", None)}, seen
    _check_paid(seen)


def after_alike(point: Point) -> None:
    """Assert that every row has its answer, and that equal rows have equal answers."""
    seen = Seen.at(point)
    assert seen.rows == seen.answers == {"succeeded": 9}, seen
    assert seen.runs.keys() == {("finished", None)}, seen
    _check_paid(seen)


def after_tools(point: Point) -> None:
    """Assert that each answer is that of a live loop, no round was paid twice, and each tool was called hardly more
    often than it was asked: once more at most.
    """
    seen = Seen.at(point)
    assert seen.rows == seen.answers == {"succeeded": 3}, seen
    assert seen.runs.keys() == {("finished", None)}, seen
    _check_paid(seen)
    with point.where() as where, where.database.read() as conn:
        job = job_named(conn, "crashing")
        assert job is not None
        answers = {str(each["id"]): each for each in map(json.loads, ndjson(where.database, job))}
        sent = conn.scalar(select(func.sum(batches.c.requests)).where(batches.c.state == "collected"))
    rounds = {key: answer["rounds"] for key, answer in answers.items()}
    assert sent == sum(answer["attempts"] for answer in answers.values()), (sent, answers)
    assert rounds["2"] == 2, rounds  # the one that pauses
    client = anthropic.Anthropic(api_key="test", base_url=point.api, max_retries=0)
    asked: Counter[str] = Counter()
    for i, text in enumerate(point.texts):
        if text.endswith("pauses"):
            continue
        said, answer = live_loop(client, text), answers[str(i)]
        asked += said.asked
        assert (answer["text"], answer["tool_calls"]) == (said.text, said.asked.total()), (answer, said)
    for tool in talking.TOOLS:
        file = point.folder / f"{tool}.calls"
        made = len(file.read_text().splitlines()) if file.exists() else 0
        assert asked[tool] <= made <= asked[tool] + 1, (tool, made, asked)


def after_retry(point: Point) -> None:
    """Assert that the row whose answer was cut off has been answered."""
    seen = Seen.at(point)
    assert seen.rows == seen.answers == {"succeeded": 4, "invalid": 1}, seen
    assert seen.history == {"errored": 1, "truncated": 1}, seen
    assert seen.runs.keys() == {("finished", None)}, seen
    _check_paid(seen)


def after_cancel(point: Point) -> None:
    """Assert that the run is canceled, no row is in flight, and the remaining rows were not sent."""
    seen = Seen.at(point)
    assert seen.rows.keys() <= {"succeeded", "canceled", "pending"}, seen
    assert seen.rows["pending"] == 2, seen
    assert seen.runs == {("incomplete", "canceled"): 1}, seen
    _check_paid(seen)


Step = Callable[[Point], None]


@dataclass(frozen=True)
class Script:
    """texts, batch: the rows, and how many make a batch; before: what has been done; dies: what is killed; then: what a
    user runs next; check: what must hold then; accepted: requests of one job that the API has accepted by then.
    """

    texts: Callable[[str], list[str]]
    batch: int
    before: tuple[Step, ...]
    dies: Step
    then: tuple[Step, ...]
    check: Step
    accepted: int
    sections: Mapping[str, Any] = field(default_factory=dict)
    has_tools: bool = False


SCRIPTS = {
    "run": Script(faulty, 4, (), run_it, (run_again, collect), after_run, accepted=5),
    "trial": Script(faulty, 4, (), try_it, (try_again, collect), after_trial, accepted=5),
    "retry": Script(faulty, 4, (run_it,), retry, (retry_again, collect), after_retry, accepted=6),
    "retry then run": Script(faulty, 4, (run_it,), retry, (run_again, retry_again, collect), after_retry, accepted=6),
    "gated": Script(gated, 9, (), run_it, (run_again, collect), after_gated, accepted=11, sections=GATED),
    "shared": Script(alike, 2, (), run_it, (run_again, collect), after_alike, accepted=6),
    "copied": Script(alike, 2, (), run_beside_sweeps, (run_again, collect), after_alike, accepted=6),
    "tools": Script(talking.talking, 2, (), run_it, (run_again, collect), after_tools, accepted=0, has_tools=True),
    "cancel": Script(waiting, 2, (begin,), cancel_it, (cancel_it, collect), after_cancel, accepted=4),
}


# -- how a process dies ----------------------------------------------------------------------------------------------


class Dying:
    """A counter that ends the process at its k-th call."""

    def __init__(self, k: int) -> None:
        self._left = k

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            os._exit(DEAD)


class DyingTransport(httpx2.HTTPTransport):
    """A transport that ends the process before a call that changes something at the API."""

    def __init__(self, dying: Dying) -> None:
        super().__init__(verify=False)
        self._dying = dying

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method != "GET" and not request.url.path.endswith("/count_tokens"):
            self._dying()
        return super().handle_request(request)


def die_at_commits(dying: Dying) -> None:
    """End the process before a commit that changes something."""

    @event.listens_for(Engine, "after_cursor_execute")
    def executed(conn: Connection, cursor: Any, statement: str, *_: object) -> None:
        if cursor.rowcount != 0 and not statement.startswith(("BEGIN", "PRAGMA", "SELECT", "SHOW")):
            conn.info["changes"] = True

    @event.listens_for(Engine, "commit")
    def committing(conn: Connection) -> None:
        if conn.info.pop("changes", False):
            dying()

    @event.listens_for(Engine, "rollback")
    def undone(conn: Connection) -> None:
        conn.info.pop("changes", None)


def die_at_files(dying: Dying, folder: Path) -> None:
    """End the process before a file of the folder is made, renamed or removed. SQLite's own files are not seen."""
    below = f"{folder}/"

    def changing(name: str, arguments: tuple[Any, ...]) -> None:
        makes = name == "open" and bool(arguments[2] & os.O_CREAT)
        if (makes or name in OF_FILES) and str(arguments[0]).startswith(below):
            dying()

    sys.addaudithook(changing)


def die_at_storage(dying: Dying) -> None:
    """End the process before a call that changes something in the store."""

    def dies(ask: Callable[..., Any]) -> Callable[..., Any]:
        def asking(*args: Any, **options: Any) -> Any:
            dying()
            return ask(*args, **options)

        return asking

    for ask in OF_STORAGE:
        setattr(objects, ask.__name__, dies(ask))


def die(script: Script, point: Point, k: int) -> None:
    """Run the command of the script until just before its k-th change."""
    dying = Dying(k)
    die_at_commits(dying)
    die_at_files(dying, point.folder)
    die_at_storage(dying)
    point.before_tool = dying
    point.transport = lambda: DyingTransport(dying)
    script.dies(point)


def follow(script: Script, point: Point) -> None:
    """Return the steps that follow the death."""
    for step in (*script.then, script.check):
        step(point)


def forked(do: Callable[[], int | None]) -> int:
    """Start a function in a forked process, whose exit code it returns; return the process id."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(do() or 0)
        except BaseException:  # noqa: BLE001  # the child must end here, whatever was raised
            sys.stderr.write(traceback.format_exc())
            os._exit(1)
    return pid


def in_a_child(do: Callable[[], int | None]) -> int:
    """Run a function in a forked process and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(forked(do), 0)[1])


# -- all points ------------------------------------------------------------------------------------------------------

AT_ONCE = 2  # points at the same time, beside those of another script; more only get in each other's way
ENOUGH = 10  # problems to report; more would not help
THROUGH = 5  # exit code if the command ended before it reached the point


class Template(NamedTuple):
    """A database with our tables that is copied quickly. server: the URL of PostgreSQL; None: a SQLite file."""

    server: str | None
    name: str

    @contextlib.contextmanager
    def copy(self, folder: Path) -> Iterator[str]:
        """Yield the URL of a copy, which is removed after the block or with the folder."""
        if self.server is None:
            shutil.copy(self.name, folder / "batches.db")
            yield f"sqlite:///{folder}/batches.db"
        else:
            with new_database(self.server, template=self.name) as url:
                yield url


@contextlib.contextmanager
def made(database: str, folder: Path) -> Iterator[Template]:
    """Return a template for all points. database: `sqlite`, or the URL of a server."""
    if database == "sqlite":
        Database(f"sqlite:///{folder}/template.db").close()
        yield Template(None, str(folder / "template.db"))
        return
    with new_database(database, template="template0") as url:
        Database(url).close()
        yield Template(database, str(make_url(url).database))


@contextlib.contextmanager
def points(script: Script, api: str, database: Template, folder: Path, spool: str | None) -> Iterator[Point]:
    """Yield a point with an empty database and a new folder; both are removed afterwards."""
    folder.mkdir()
    texts, sections = script.texts(folder.name), dict(script.sections)
    own = None if spool is None else f"{spool}/{folder.name}"
    with database.copy(folder) as url:
        yield Point(api, url, folder, texts, script.batch, sections, spool=own, has_tools=script.has_tools)
    shutil.rmtree(folder)


def try_point(script: Script, api: str, database: Template, folder: Path, k: int, spool: str | None) -> int:
    """Die at one point, and continue. Return DEAD if all checks passed, THROUGH if the point was not reached."""
    with points(script, api, database, folder, spool) as point:
        for step in script.before:
            assert in_a_child(lambda: step(point)) == 0, f"{folder.name}: {step.__doc__} failed"  # noqa: B023
        code = in_a_child(lambda: die(script, point, k))
        assert code in (0, DEAD), f"{folder.name}: it ended with {code}, not dead"
        assert in_a_child(lambda: follow(script, point)) == 0, f"{folder.name}: what a user runs next failed"
    return DEAD if code == DEAD else THROUGH


def try_all(
    script: str, api: str, database: Template, folder: Path, points: Iterator[int], spool: str | None = None
) -> dict[str, Any]:
    """Try the points of a script, several at a time, until no further one is reached; return what was seen.

    points: their numbers, from 1 on.
    """
    running: dict[int, int] = {}
    deaths, jobs, through = 0, 0, False
    problems: list[str] = []
    while running or not (through or len(problems) >= ENOUGH):
        if len(running) < AT_ONCE and not through and len(problems) < ENOUGH:
            jobs += 1
            k = next(points)
            own = folder / f"{script}_{k}_".replace(" ", "_")
            running[forked(functools.partial(try_point, SCRIPTS[script], api, database, own, k, spool))] = k
            continue
        pid, status = os.wait()
        k, code = running.pop(pid), os.waitstatus_to_exitcode(status)
        if code == THROUGH:
            through = True
        elif code == DEAD:
            deaths += 1
        else:
            problems.append(f"{script} before change {k}")
    return {"deaths": deaths, "jobs": jobs, "problems": problems}


def import_everything(folder: Path, api: str) -> None:
    """Import and create in advance what is otherwise made at first use, so that each child need not do it.

    No polars is used, and no thread is left: a child would wait for threads that it does not have.
    """
    prices_of(MODEL)
    question: Any = {"model": MODEL, "messages": [{"role": "user", "content": "?"}]}
    first_mismatch({**question, "max_tokens": 1}, beta=False)
    with anthropic.Anthropic(api_key="test", base_url=api) as client:  # pydantic builds the models of its answers
        client.messages.count_tokens(**question)
        list(client.messages.batches.list())
    Message.model_rebuild()
    MessageBatch.model_rebuild()
    httpx2.HTTPTransport(verify=False)
    Database(f"sqlite:///{folder}/first.db").close()
    collect_seldom()


def main() -> None:
    """Try every point and print what was seen."""
    script, api, database, folder, first, every, *spool = sys.argv[1:]
    import_everything(Path(folder), api)
    points = count(int(first), int(every))
    with made(database, Path(folder)) as template:
        sys.stdout.write(json.dumps(try_all(script, api, template, Path(folder), points, *spool)))


if __name__ == "__main__":
    main()
