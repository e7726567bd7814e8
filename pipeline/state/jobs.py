"""The jobs of the state database: their files, spools, results columns and open work. Edge: SQL."""

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    func,
    insert,
    or_,
    select,
    union,
    update,
)

from pipeline.errors import InputError
from pipeline.job.name import OF_TRIAL
from pipeline.state.batches import RESULTS_KEPT, TWIN_WATCH
from pipeline.state.conditions import inserted_id
from pipeline.state.database import Database
from pipeline.state.tables import batches, files, jobs, runs, sendings
from pipeline.states import OPEN_BATCHES, BatchState, RunState, SendingEnd


@dataclass(frozen=True)
class TrialRecord:
    """What a trial asks, and of which rows.

    name: without that of its job. changes: new values by field of the request. sample: the most rows. where: a SQL
    predicate over the source; None: all rows. gold_only: whether only rows with gold. vars, recipe: of its job.
    """

    name: str
    changes: dict[str, Any]
    sample: int
    where: str | None
    gold_only: bool
    vars: dict[str, Any]
    recipe: str


@dataclass(frozen=True)
class JobRecord:
    """A job, or a trial of a job, as the database has it; the fields are those of the table.

    columns: see ResultColumns.from_stored. trial_of, trial: None for a job.
    """

    id: int
    name: str
    file: str | None
    results_table: str
    columns: dict[str, Any]
    spool: str | None
    spool_id: str | None
    swept_at: datetime | None
    gone: int | None
    gone_at: datetime | None
    created_at: datetime
    trial_of: int | None = None
    trial: TrialRecord | None = None

    @property
    def job_name(self) -> str:
        """The name of the job itself, of which this may be a trial."""
        return self.name.partition(OF_TRIAL)[0]


_JOB_COLUMNS = [jobs.c[name] for name in JobRecord.__dataclass_fields__]


def _job_of(row: Row[Any]) -> JobRecord:
    return JobRecord(**{**row._mapping, "trial": None if row.trial is None else TrialRecord(**row.trial)})


MOST_NAMED = 20  # jobs and trials that a message names, the newest ones


def known_job(database: Database, name: str) -> JobRecord:
    """Return the job or trial with this name. Raises InputError, which names those that the database knows."""
    with database.read() as conn:
        job = job_named(conn, name)
        of_job, is_trial, _ = name.partition(OF_TRIAL)
        every = [each for each in all_jobs(conn) if each.trial is None or (is_trial and each.job_name == of_job)]
    if job is None:
        known = ", ".join(each.name for each in every[-MOST_NAMED:]) or "none"
        raise InputError(
            f"{database.shown} knows no job {name!r} (it knows: {known}); run it first, or name another database"
        )
    return job


def job_file_of(job: JobRecord) -> Path:
    """Return the path of the job file of the job's last run. Raises InputError if the file no longer exists."""
    if job.file is None or not Path(job.file).exists():
        raise InputError(f"job {job.name}: its job file {job.file} no longer exists; give the path of a job file")
    return Path(job.file)


def alone(conn: Connection) -> None:
    """Let other transactions that call this wait until this one has ended. On SQLite every writer waits anyway."""
    if conn.dialect.name == "postgresql":
        conn.execute(select(func.pg_advisory_xact_lock(_ALONE)))


_ALONE = 0x6261746368  # any number that no other program locks


def put_job(
    conn: Connection,
    *,
    name: str,
    file: str | None,
    results_table: str,
    columns: dict[str, Any],
    spool: str | None,
    spool_id: str,
    now: datetime,
    trial_of: int | None = None,
    trial: TrialRecord | None = None,
) -> int:
    """Add the job, or update it if the database knows its name, and return its number.

    spool None: the spool is beside the database. file None: the job was given from Python. trial_of, trial: the job of
    which this is a trial; None: it is a job.
    """
    job = job_named(conn, name)
    values = {"file": file, "columns": columns, "spool": spool, "spool_id": spool_id}
    if job is not None:
        conn.execute(update(jobs).where(jobs.c.id == job.id).values(**values))
        return int(job.id)
    of_trial = {"trial_of": trial_of, "trial": None if trial is None else asdict(trial)}
    new = {"name": name, "results_table": results_table, "created_at": now}
    created = conn.execute(insert(jobs).values(**new, **values, **of_trial))
    return inserted_id(created)


def spool_id_of(conn: Connection, job_id: int, *, to_change: bool = False) -> str | None:
    """Return the id of the job's spool, and keep others from changing it until this transaction has ended.

    to_change: this transaction will change it; wait until no other one is committing a batch.
    """
    if conn.dialect.name == "postgresql":  # on SQLite there is one writer at a time
        lock = func.pg_advisory_xact_lock if to_change else func.pg_advisory_xact_lock_shared
        conn.execute(select(lock(_SPOOL, job_id)))
    return conn.scalar(select(jobs.c.spool_id).where(jobs.c.id == job_id))


_SPOOL = 0x73706F6C  # any number that no other program locks


def set_spool(conn: Connection, job_id: int, address: str, spool_id: str) -> None:
    """Note the address and id of the job's spool."""
    conn.execute(update(jobs).where(jobs.c.id == job_id).values(spool=address, spool_id=spool_id))


def columns_of(conn: Connection, job_id: int, *, to_change: bool = False) -> dict[str, Any]:
    """Return the columns of the job's results table, and keep others from changing them until this transaction ends.

    to_change: this transaction will change them; wait until no other one is writing answers.
    """
    if conn.dialect.name == "postgresql":  # on SQLite there is one writer at a time
        # not a lock on the job's row: many readers of a row can keep a writer waiting for ever; here all take turns
        lock = func.pg_advisory_xact_lock if to_change else func.pg_advisory_xact_lock_shared
        conn.execute(select(lock(_COLUMNS, job_id)))
    columns: dict[str, Any] = conn.execute(select(jobs.c.columns).where(jobs.c.id == job_id)).scalar_one()
    return columns


def set_columns(conn: Connection, job_id: int, columns: dict[str, Any]) -> None:
    """Note the columns of the job's results table."""
    conn.execute(update(jobs).where(jobs.c.id == job_id).values(columns=columns))


_COLUMNS = 0x636F6C73  # any number that no other program locks


def mark_swept(conn: Connection, job_id: int, now: datetime) -> None:
    """Note that a driver has just done all work that was due for the job."""
    conn.execute(update(jobs).where(jobs.c.id == job_id).values(swept_at=now))


def job_named(conn: Connection, name: str) -> JobRecord | None:
    """Return the job with this name; None if there is none."""
    row = conn.execute(select(*_JOB_COLUMNS).where(jobs.c.name == name)).one_or_none()
    return None if row is None else _job_of(row)


def all_jobs(conn: Connection) -> list[JobRecord]:
    """Return all jobs and their trials, oldest first."""
    return [_job_of(row) for row in conn.execute(select(*_JOB_COLUMNS).order_by(jobs.c.id))]


def with_trials(conn: Connection, name: str | None) -> list[JobRecord]:
    """Return the job or trial with this name; for a job also its trials. None: all jobs and trials. Oldest first."""
    return [job for job in all_jobs(conn) if name in (None, job.name, job.job_name)]


def trials_of(conn: Connection, job_id: int) -> list[JobRecord]:
    """Return the trials of a job, oldest first."""
    return [job for job in all_jobs(conn) if job.trial_of == job_id]


def name_of(conn: Connection, job_id: int) -> str:
    """Return the name of a job or trial."""
    return str(conn.execute(select(jobs.c.name).where(jobs.c.id == job_id)).scalar_one())


def jobs_with_work(conn: Connection, *, now: datetime) -> set[int]:
    """Return the numbers of jobs that a sweep has work for.

    They have open runs or batches, lost batches whose results the API may still have, batches or files to delete at the
    API, or sendings presumed absent that may still appear there.
    """
    open_run = select(runs.c.job_id).where(runs.c.state == RunState.OPEN)
    kept = select(sendings.c.id).where(sendings.c.batch_id == batches.c.id, sendings.c.started_at > now - RESULTS_KEPT)
    batch = select(batches.c.job_id).where(
        or_(
            batches.c.state.in_(OPEN_BATCHES),
            batches.c.delete_remote,
            (batches.c.state == BatchState.LOST) & kept.exists(),
        )
    )
    twin = (
        select(batches.c.job_id)
        .join(sendings, sendings.c.batch_id == batches.c.id)
        .where(sendings.c.end == SendingEnd.ABSENT, sendings.c.ended_at > now - TWIN_WATCH)
    )
    file = select(files.c.job_id).where(files.c.delete_remote)
    return set(conn.scalars(union(open_run, batch, twin, file)))
