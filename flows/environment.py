"""Find where a flow works: the project's folder, state database, API key and scheduled day. Edge: SQL, HTTP, files."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import httpx
from prefect.blocks.system import Secret
from prefect.runtime import flow_run

from pipeline.api.client import Api
from pipeline.api.reach import reach_of
from pipeline.driver import environment
from pipeline.driver.driver import Stop
from pipeline.driver.environment import Environment
from pipeline.errors import DatabaseError, InputError, Stopped
from pipeline.events.event import Tell
from pipeline.job.name import is_path, read_name
from pipeline.state.database import Database, default_url
from pipeline.state.jobs import JobRecord, job_file_of, known_job

DATABASE = "BATCH_DATABASE_URL"
KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")


@dataclass(frozen=True)
class Blocks:
    """Names of the Secret blocks with values that the worker's environment lacks; never the values. None: no block."""

    api_key: str | None = None
    database_url: str | None = None


def job_file(job: str) -> Path:
    """Return the path of a job file. A relative path starts at PIPELINE_ROOT, else at the working directory."""
    return _root() / job


def named(job: str) -> tuple[Path | None, str]:
    """Return the file and the name of the job that a parameter gives by file or by name. By name, the file is None.

    Raises JobError if the file cannot be read or declares no name.
    """
    if not is_path(job, _root()):
        return None, job
    file = job_file(job)
    return file, read_name(file)


def _root() -> Path:
    return Path(os.environ.get("PIPELINE_ROOT") or ".")


def scheduled() -> datetime:
    """Return the time for which the flow was scheduled, in UTC; the present time outside of a flow."""
    return cast("datetime", flow_run.scheduled_start_time).astimezone(UTC)


def day(time_zone: str) -> date:
    """Return the day for which the flow was scheduled, so that a late flow takes the right partition; else today.

    Raises InputError for a time zone that does not exist.
    """
    try:
        return scheduled().astimezone(ZoneInfo(time_zone)).date()
    except (ZoneInfoNotFoundError, ValueError) as exc:
        raise InputError(f"time_zone {time_zone!r}: there is no such time zone; write one like Europe/Berlin") from exc


def secret(variables: tuple[str, ...], block: str | None) -> str | None:
    """Return the value of the first environment variable that is set, else that of the Secret block, else None.

    Raises InputError if the block is missing or holds no text, Stopped if Prefect's server does not answer.
    """
    for variable in variables:
        if os.environ.get(variable):
            return os.environ[variable]
    if block is None:
        return None
    instead = f"or set {variables[0]} in the worker's environment"
    try:
        held = cast("Secret[Any]", Secret.load(block)).get()
    except ValueError as exc:
        raise InputError(f"there is no Secret block {block!r}: create it in Prefect, {instead}") from exc
    except httpx.HTTPError as exc:
        raise Stopped(f"Secret block {block!r}: Prefect's server does not answer; try again, {instead}") from exc
    if not isinstance(held, str) or not held:
        raise InputError(f"Secret block {block!r} holds no text: put the value itself into it, {instead}")
    return held


def file_of(job: str, blocks: Blocks) -> Path:
    """Return the job file of the job that a parameter gives by file or by name. The state database knows it by name.

    Raises InputError if the database does not know the job, if it is a trial, or if the file is gone.
    """
    if is_path(job, _root()):
        return job_file(job)
    with database(blocks) as known:
        job_record = known_job(known, job)
        refuse_trial(job_record)
        return job_file_of(job_record)


def refuse_trial(job_record: JobRecord) -> None:
    """Raise InputError for a trial, whose rows are not those that its job file names."""
    if job_record.trial is not None:
        raise InputError(f"{job_record.name} is a trial; this flow is for jobs: `batch-pipeline trial` continues it")


@contextlib.contextmanager
def database(blocks: Blocks, *, beside: Path | None = None, emulated: bool = False) -> Iterator[Database]:
    """Open the state database that the environment or the block names, else the one beside a job file.

    The database is created if it does not exist.
    """
    with contextlib.closing(Database(database_url(blocks, beside=beside, emulated=emulated))) as opened:
        yield opened


def database_url(blocks: Blocks, *, beside: Path | None = None, emulated: bool = False) -> str:
    """Return the URL of the state database. Raises DatabaseError if nothing names a database.

    beside: a file in the folder of the database; used if neither the environment nor the block names a database.
    """
    url = secret((DATABASE,), blocks.database_url)
    if url is None and beside is None:
        raise DatabaseError(
            f"which state database? Set {DATABASE} in the worker's environment, or put its URL into a Secret block and "
            "give the block's name as database_url_block"
        )
    return url or default_url(cast("Path", beside).parent, emulated=emulated)


@contextlib.contextmanager
def driving_in(
    database: Database, blocks: Blocks, *, tell: Tell, emulated: bool = False, stop: Stop | None = None
) -> Iterator[Environment]:
    """Open the environment of a driver on this database, with the API and key of the environment, or of the block.

    stop: asks the driver to stop; None: nothing does.
    """
    held_by_sdk = emulated or any(os.environ.get(name) for name in KEYS)
    key = None if held_by_sdk else secret(KEYS, blocks.api_key)
    spool = os.environ.get("BATCH_SPOOL")
    with environment.at(database, spool=spool, emulated=emulated, tell=tell, stop=stop) as here:
        if key is not None:
            timeout = here.settings.timeout
            here = replace(here, connect=lambda endpoint: Api.connect(reach_of(endpoint, timeout, key)))
        yield here
