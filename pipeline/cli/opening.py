"""How does a command open what it works with: the job, the state database, the API?"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import memory
from pipeline.cli.options import SharedOptions
from pipeline.cli.terminal import Teller, confirmed, say, stop_on_signals
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.driver.environment import Environment
    from pipeline.job.model import Job
    from pipeline.planning.quote import Quote
    from pipeline.state.database import Database
    from pipeline.state.jobs import JobRecord


# -- the job ---------------------------------------------------------------------------------------------------------


def default_folder(job: str) -> Path:
    """Return the folder of the default database: that of a job file, or the current one for the name of a job."""
    from pipeline.job.name import is_path

    return Path(job).parent if is_path(job) else Path()


def folder_and_name(job: str) -> tuple[Path, str]:
    """Return the folder of the default database and the name of the job, for commands that do not load the job.

    job: JOB of the command line, a job file or the name of a job, perhaps with a trial of it.
    """
    from pipeline.job.name import is_path, read_name, with_trial, without_trial

    file, trial = without_trial(job)
    name = read_name(Path(file)) if is_path(job) else file
    return default_folder(job), with_trial(name, trial)


def find_job_file(job: str, shared: SharedOptions) -> Path:
    """Return the job file that JOB names. The database knows the file of a job that is given by its name.

    Raises InputError for a trial: only commands that read no job file take one.
    """
    from pipeline.job.name import is_path
    from pipeline.state.jobs import job_file_of

    refuse_trial(job)
    if is_path(job):
        return Path(job)
    with open_known_job(job, shared) as (_, job_record):
        return job_file_of(job_record)


def refuse_trial(job: str, instead: str = "give `trial {job} --name {trial}` again to continue it") -> None:
    """Raise InputError if JOB names a trial, for commands that are for jobs.

    instead: what to do, with {job} and {trial} for both names.
    """
    from pipeline.job.name import without_trial

    of_job, trial = without_trial(job)
    if trial is not None:
        do = instead.format(job=of_job, trial=trial)
        raise InputError(f"{job}: this command is for jobs, and {trial} is a trial; {do}")


def load_job(path: Path, var: list[str] | None, *, last_vars: dict[str, Any] | None = None) -> "Job":
    """Return the job that a file declares. var: what --var gives; last_vars: replace the vars of the file, unless None.

    Raises InputError for a --var that is not NAME=VALUE, and JobError for a file that is not right.
    """
    from datetime import UTC, datetime

    from pipeline.job.load import load

    given = {}
    for pair in var or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--var {pair}: write NAME=VALUE")
        given[name] = value
    return load(path, variables=given, today=datetime.now(UTC).date(), before=last_vars)


def load_with_last_vars(
    database: "Database", job_record: "JobRecord", job: str, var: list[str] | None
) -> "tuple[Job, Path]":
    """Return a job of the database with the vars of its last run, and its file. job: JOB of the command line.

    For a trial it is the job of the trial, with the vars of the trial.
    """
    from pipeline.job.name import is_path, without_trial
    from pipeline.state.jobs import job_file_of
    from pipeline.state.runs import last_run

    with database.read() as conn:
        last = last_run(conn, job_record.id)
    path = Path(without_trial(job)[0]) if is_path(job) else job_file_of(job_record)
    return load_job(path, var, last_vars=None if last is None else last.vars), path


def say_vars(job: "Job", shared: SharedOptions) -> None:
    """Say the vars that a job is run with, if it has any."""
    if job.vars and not shared.as_json:
        say("vars     " + ", ".join(f"{name}={value}" for name, value in job.vars.items()))


# -- the database and the API ----------------------------------------------------------------------------------------


def database_url(folder: Path, shared: SharedOptions) -> str:
    """Return the URL of --database, or else that of the default database of this folder."""
    from pipeline.state.database import default_url

    return shared.database or default_url(folder, emulated=shared.emulator)


@contextlib.contextmanager
def open_database(folder: Path, shared: SharedOptions, *, must_exist: bool = False) -> "Iterator[Database]":
    """Open the database of --database, or else the default one of this folder, say which it is, and close it again.

    must_exist: raise InputError instead of making a new one.
    """
    from pipeline.state.database import Database

    url = database_url(folder, shared)
    if must_exist and not Database.exists(url):
        raise InputError(
            f"there is no database {Database.shown_url(url)}; run a job first, or name another one with --database"
        )
    with contextlib.closing(Database(url)) as database:
        say(f"database {database.shown}{' (new)' if database.new else ''}")
        yield database


def refuse_unknown_name(database: "Database", job: str | None) -> None:
    """Raise InputError if JOB is a name that the database does not know. A job file need not be known yet."""
    from pipeline.job.name import is_path
    from pipeline.state.jobs import known_job

    if job is not None and not is_path(job):
        known_job(database, job)


LOOK_FOR_DATABASE = 2.0  # seconds


def wait_for_database(folder: Path, shared: SharedOptions) -> bool:
    """Wait until the database that `open_database` opens exists, and say so. Return whether it did not exist yet.

    Raises Interrupted after a signal.
    """
    from pipeline.driver.driver import Stop
    from pipeline.state.database import Database

    url = database_url(folder, shared)
    if Database.exists(url):
        return False
    stop = Stop()
    with stop_on_signals(stop):
        say(f"waiting: there is no database {Database.shown_url(url)} yet; a `run` makes it, Ctrl-C ends the waiting")
        while not Database.exists(url):
            stop.wait(LOOK_FOR_DATABASE)
    return True


@contextlib.contextmanager
def open_known_job(job: str, shared: SharedOptions) -> "Iterator[tuple[Database, JobRecord]]":
    """Open the database that must know JOB; yield it, and the job as it knows it. Raises InputError if it does not."""
    from pipeline.state.jobs import known_job

    folder, name = folder_and_name(job)
    with open_database(folder, shared, must_exist=True) as database:
        yield database, known_job(database, name)


@contextlib.contextmanager
def open_environment(database: "Database", shared: SharedOptions, *, job: str | None) -> "Iterator[Environment]":
    """Open the API or an emulator, for a command that drives jobs: its signals stop the work, its progress is told.

    job: what commands call the job; None for all jobs of the database.
    """
    from pipeline.driver import environment
    from pipeline.driver.driver import Stop

    stop = Stop()
    with (
        Teller(as_json=shared.as_json, job=job) as teller,
        stop_on_signals(stop),
        environment.at(
            database,
            spool=shared.spool,
            emulated=shared.emulator,
            poll_seconds=shared.poll_seconds,
            tell=teller.tell,
            stop=stop,
        ) as opened,
    ):
        yield opened


def ask_after_quote(shared: SharedOptions, *, yes: bool) -> "Callable[[Quote], bool]":
    """Return a function that asks a person whether to send what a quote shows. A quote of nothing needs no answer."""
    return lambda quote: not quote.to_send or confirmed(yes=yes, ask=not shared.as_json)


@contextlib.contextmanager
def heavy_imports() -> Iterator[None]:
    """Run the imports of the block without the garbage collector, and seldom from then on."""
    gc.disable()
    try:
        yield
    finally:
        memory.collect_seldom()
        gc.enable()
