"""`show`: what is known about one row?"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.opening import database_url, folder_and_name, load_job, load_with_last_vars, open_database
from pipeline.cli.options import EVERYWHERE, JobArgument, LastVarOption, SharedOptions, takes
from pipeline.cli.terminal import is_utf8, put, put_json, say_next

if TYPE_CHECKING:
    from pipeline.job.model import Job
    from pipeline.state.database import Database
    from pipeline.state.jobs import JobRecord


@takes(*EVERYWHERE)
def show(
    job: JobArgument,
    key: Annotated[
        str, typer.Option("--key", help="Key of the row. Separate the values of several key columns by commas.")
    ],
    var: LastVarOption = None,
    *,
    shared: SharedOptions,
) -> None:
    """Show all that is known about one row: source values, request, attempts, answers."""
    from pipeline.report.show import lines
    from pipeline.runner import show as runner

    with _open_if_known(job, var, shared) as (database, job_record, loaded):
        shown = runner.show(loaded, key, database, job_record, shared.spool)
    if shared.as_json:
        put_json({"event": "show", "job": loaded.name, **shown.facts()})
    else:
        for line in lines(shown, ascii_only=not is_utf8()):
            put(line)
        sys.stdout.flush()
    status = "succeeded" if shown.answer is None else str(shown.answer["status"])
    failed = status not in ("succeeded", "invalid")
    say_next(*(["retry", job, "--status", status, "--key", shown.key] if failed else ["status", job]))


@contextlib.contextmanager
def _open_if_known(
    job: str, var: list[str] | None, shared: SharedOptions
) -> "Iterator[tuple[Database | None, JobRecord | None, Job]]":
    """Open the database if there is one; yield it, the job as it knows it, and the job as declared.

    The first two are None where there is no database, or where it does not know the job yet: a job file is enough. A
    job that the database knows has the vars of its last run.
    """
    from pipeline.job.name import is_path
    from pipeline.state.database import Database
    from pipeline.state.jobs import job_named, known_job

    folder, name = folder_and_name(job)
    if is_path(job) and not Database.exists(database_url(folder, shared)):
        yield None, None, load_job(Path(job), var)
        return
    with open_database(folder, shared, must_exist=True) as database:
        with database.read() as conn:
            job_record = job_named(conn, name)
        if job_record is None and is_path(job):
            yield database, None, load_job(Path(job), var)
        else:
            job_record = known_job(database, name)
            loaded, _ = load_with_last_vars(database, job_record, job, var)
            yield database, job_record, _asked(loaded, job_record)


def _asked(job: "Job", job_record: "JobRecord") -> "Job":
    """Return the job that is asked: for a trial, with what it asks otherwise."""
    from pipeline.planning.trial import Trial

    return job if job_record.trial is None else Trial.of(job_record.trial).asked(job)
