"""What commands open before they begin: the job, the state database, the API."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.terminal import Teller, confirmed, say, signals
from pipeline.errors import InputError

if TYPE_CHECKING:
    from datetime import date

    from pipeline.driver.environment import Environment
    from pipeline.job.model import Job
    from pipeline.planning.plan import Plan
    from pipeline.planning.quote import Quote
    from pipeline.planning.quoting import Known
    from pipeline.planning.sample import Counts
    from pipeline.sink.table import ResultsTable
    from pipeline.state.database import Database
    from pipeline.state.jobs import JobRecord


PATIENCE_SECONDS = 10.0  # with an API that is only asked which models it has


def quoted(plan: "Plan", path: Path, database: str | None, *, emulated: bool) -> "tuple[Quote, list[str]]":
    """What `run` would say before it sends anything, and warnings; makes no database."""
    from pipeline.sink.table import ResultsTable
    from pipeline.state.database import Database, default_url
    from pipeline.state.jobs import job_named

    url = database or default_url(path.parent, emulated=emulated)
    if not Database.exists(url):
        return _quote_of(plan, None, None, emulated=emulated)
    with contextlib.closing(Database(url)) as opened:
        with opened.read() as conn:
            row = job_named(conn, plan.job.name)
        if row is None:
            return _quote_of(plan, None, None, emulated=emulated)
        return _quote_of(plan, opened, (row, ResultsTable.of(row)), emulated=emulated)


def _quote_of(
    plan: "Plan", database: "Database | None", job: "tuple[JobRecord, ResultsTable] | None", *, emulated: bool
) -> "tuple[Quote, list[str]]":
    """job: as the database has it; None: there is none, so what the API counts is not stored either."""
    from datetime import UTC, datetime

    from pipeline.driver.settings import Settings
    from pipeline.planning import quoting
    from pipeline.planning.known_rows import KnownRows

    known, lookup = quoting.Known(), KnownRows(None, None)
    if database is not None and job is not None:
        with database.read() as conn:
            known = quoting.known(conn, *job, plan)
        lookup = KnownRows(database, job[0].id, job[1])
    quote = plan.quote(lookup, known.unsent)
    warnings = quoting.require_rows(plan, quote)
    counts, problem = _counted(plan, quote, known, emulated=emulated)
    if database is not None and job is not None and known.counts is None:
        with database.write() as conn:
            quoting.store_counts(conn, job[0].id, plan, counts, datetime.now(UTC))
    quoting.complete(plan, quote, known, counts, canary=True, queue=Settings.from_environment().max_in_flight)
    if problem is not None:
        warnings.append(f"tokens were not counted by the API: {problem}")
    return quote, warnings


def _counted(plan: "Plan", quote: "Quote", known: "Known", *, emulated: bool) -> "tuple[Counts, str | None]":
    """Tokens of the sample, and why the API was not asked for them."""
    from pipeline.driver import environment
    from pipeline.planning import quoting

    if known.counts is not None or not quote.samples:
        return quoting.counted(plan, quote, known, None)
    try:
        with environment.asking(plan.job.api.client, emulated=emulated) as api:
            return quoting.counted(plan, quote, known, api)
    except InputError as exc:
        return quoting.counted(plan, quote, known, None)[0], str(exc)


def _today() -> "date":
    from datetime import UTC, datetime

    return datetime.now(UTC).date()


def load_job(path: Path, var: list[str] | None, *, before: dict[str, Any] | None = None) -> "Job":
    """The job of this file. var: as given by --var; before: the vars of an earlier run, instead of the file's."""
    from pipeline.job.load import load

    given = {}
    for pair in var or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--var {pair}: write NAME=VALUE")
        given[name] = value
    return load(path, variables=given, today=_today(), before=before)


def load_as_last(database: "Database", row: "JobRecord", job: str, var: list[str] | None) -> "tuple[Job, Path]":
    """The job with the vars of its last run, and its file. row: as the database has it; job: as it was named."""
    from pipeline.job.load import is_path
    from pipeline.state.jobs import job_file_of
    from pipeline.state.runs import last_run

    with database.read() as conn:
        last = last_run(conn, row.id)
    path = Path(job) if is_path(job) else job_file_of(row)
    return load_job(path, var, before=None if last is None else last.vars), path


def job_file(job: str, database: str | None, *, emulated: bool) -> Path:
    """The job file that JOB names, by the database if it is a name."""
    from pipeline.job.load import is_path
    from pipeline.state.jobs import job_file_of

    if is_path(job):
        return Path(job)
    with known_job(job, database, emulated=emulated) as (_, row):
        return job_file_of(row)


def job_and_folder(job: str) -> tuple[Path, str]:
    """Where the default database is, and the name of the job; for commands that do not need the job file itself."""
    from pipeline.job.load import is_path, name_in

    return (Path(job).parent, name_in(Path(job))) if is_path(job) else (Path(), job)


def job_as_far_as_known(
    stack: contextlib.ExitStack, job: str, database: str | None, var: list[str] | None, *, emulated: bool
) -> "tuple[Database | None, JobRecord | None, Job]":
    """The database and the job in it, None where there is none yet, and the job with the vars of its last run."""
    from pipeline.job.load import is_path
    from pipeline.state.database import Database, default_url
    from pipeline.state.jobs import job_named, known_job

    folder, name = job_and_folder(job)
    if is_path(job) and not Database.exists(database or default_url(folder, emulated=emulated)):
        return None, None, load_job(Path(job), var)
    opened = stack.enter_context(
        contextlib.closing(open_driver_of(folder, database, emulated=emulated, must_exist=True))
    )
    with opened.read() as conn:
        row = job_named(conn, name)
    if row is None and is_path(job):
        return opened, None, load_job(Path(job), var)
    row = known_job(opened, name)
    return opened, row, load_as_last(opened, row, job, var)[0]


@contextlib.contextmanager
def known_job(job: str, database: str | None, *, emulated: bool) -> "Iterator[tuple[Database, JobRecord]]":
    from pipeline.state.jobs import known_job

    folder, name = job_and_folder(job)
    with contextlib.closing(open_driver_of(folder, database, emulated=emulated, must_exist=True)) as opened:
        yield opened, known_job(opened, name)


def open_driver_of(folder: Path, database: str | None, *, emulated: bool, must_exist: bool = False) -> "Database":
    from pipeline.state.database import Database, default_url

    url = database or default_url(folder, emulated=emulated)
    if must_exist and not Database.exists(url):
        raise InputError(f"there is no database {url}; run a job first, or name another one by --database")
    opened = Database(url)
    say(f"database {opened.shown}{' (new)' if opened.new else ''}")
    return opened


@contextlib.contextmanager
def environment_of(
    opened: "Database", spool: str | None, *, emulated: bool, poll_seconds: float | None, as_json: bool, job: str | None
) -> "Iterator[Environment]":
    """API (or emulator), settings and signal handlers for a command that drives a job. job: what commands call it."""
    from pipeline.driver import environment
    from pipeline.driver.driver import Stop

    stop = Stop()
    with (
        Teller(as_json=as_json, job=job) as teller,
        signals(stop),
        environment.at(
            opened, spool=spool, emulated=emulated, poll_seconds=poll_seconds, tell=teller.tell, stop=stop
        ) as here,
    ):
        yield here


@contextlib.contextmanager
def many_objects_that_stay() -> Iterator[None]:
    """Imports without the garbage collector, which would look through all the new objects again and again.

    They stay, so it need not look at them later either; and rows come and go by the thousand without cycles.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(50_000)
        gc.enable()


def confirm_or_stop(*, yes: bool, ask: bool) -> "Callable[[Quote], bool]":
    return lambda quote: not quote.to_send or confirmed(yes=yes, ask=ask)
