"""Which database does a call from Python work with, and which job in it? Edge: SQL."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.job.model import Job
from pipeline.state.database import Database, default_url
from pipeline.state.jobs import JobRecord, known_job


def url_of(database: str | None, *, emulator: bool) -> str:
    """Return the URL of the database. database: as the caller gives it; None: the default one of the folder."""
    return database or default_url(Path(), emulated=emulator)


def name_of(job: Job | str) -> str:
    """Return the name of a job."""
    return job if isinstance(job, str) else job.name


def existing_url(database: str | None, *, emulator: bool) -> str:
    """Return the URL of a database that exists. Raises InputError if it does not."""
    url = url_of(database, emulator=emulator)
    if not Database.exists(url):
        raise InputError(f"there is no database {Database.shown_url(url)}; run the job first, or name another database")
    return url


@contextlib.contextmanager
def known(job: Job | str, database: str | None, *, emulator: bool) -> Iterator[tuple[Database, JobRecord]]:
    """Open the database that knows a job; yield both. Raises InputError if there is none, or it does not know it."""
    with contextlib.closing(Database(existing_url(database, emulator=emulator))) as opened:
        yield opened, known_job(opened, name_of(job))
