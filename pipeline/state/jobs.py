"""The jobs that the state database knows: by name, by file, and what each was last run with. Edge: SQL."""

from dataclasses import dataclass
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
from pipeline.state.batches import RESULTS_KEPT, TWIN_WATCH
from pipeline.state.conditions import inserted_id
from pipeline.state.database import Database
from pipeline.state.tables import batches, files, jobs, runs, sendings
from pipeline.states import OPEN_BATCHES, BatchState, RunState, SendingEnd


@dataclass(frozen=True)
class JobRecord:
    """A job as the database has it; the fields are those of the table. columns: see ResultColumns.from_stored."""

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


_JOB_COLUMNS = [jobs.c[name] for name in JobRecord.__dataclass_fields__]


def _job_of(row: Row[Any]) -> JobRecord:
    return JobRecord(**row._mapping)


def known_job(database: Database, name: str) -> JobRecord:
    """The job of this name. Raises InputError, which names those that the database knows."""
    with database.read() as conn:
        row = job_named(conn, name)
        known = ", ".join(each.name for each in all_jobs(conn)) or "none"
    if row is None:
        raise InputError(
            f"{database.shown} knows no job {name!r} (it knows: {known}); run it first, or name another database"
        )
    return row


def job_file_of(job: JobRecord) -> Path:
    """The job file of the job's last run. Raises InputError when it is gone."""
    if job.file is None or not Path(job.file).exists():
        raise InputError(f"job {job.name}: its job file {job.file} is gone; give the path of one")
    return Path(job.file)


def alone(conn: Connection) -> None:
    """Whoever else calls this waits until this transaction has ended. On SQLite every writer does."""
    if conn.dialect.name == "postgresql":
        conn.execute(select(func.pg_advisory_xact_lock(_ALONE)))


_ALONE = 0x6261746368  # any number that is ours


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
) -> int:
    """Note the job, or what is new of it; its number."""
    row = job_named(conn, name)
    values = {"file": file, "columns": columns, "spool": spool, "spool_id": spool_id}
    if row is not None:
        conn.execute(update(jobs).where(jobs.c.id == row.id).values(**values))
        return int(row.id)
    created = conn.execute(insert(jobs).values(name=name, results_table=results_table, created_at=now, **values))
    return inserted_id(created)


def spool_id_of(conn: Connection, job_id: int, *, to_change: bool = False) -> str | None:
    """The id of the job's spool, which stays so until this transaction has ended.

    to_change: unless it changes it itself: it waits until nobody commits a batch any more.
    """
    if conn.dialect.name == "postgresql":  # on SQLite there is one writer at a time
        lock = func.pg_advisory_xact_lock if to_change else func.pg_advisory_xact_lock_shared
        conn.execute(select(lock(_SPOOL, job_id)))
    return conn.scalar(select(jobs.c.spool_id).where(jobs.c.id == job_id))


_SPOOL = 0x73706F6C  # any number that is ours


def set_spool(conn: Connection, job_id: int, address: str, spool_id: str) -> None:
    """The job's spool is at this address from now on."""
    conn.execute(update(jobs).where(jobs.c.id == job_id).values(spool=address, spool_id=spool_id))


def columns_of(conn: Connection, job_id: int, *, to_change: bool = False) -> dict[str, Any]:
    """The columns of the job's results table, which stay so until this transaction has ended.

    to_change: unless it changes them itself: it waits until nobody writes answers any more.
    """
    if conn.dialect.name == "postgresql":  # on SQLite there is one writer at a time
        # not the job's row: many readers of a locked row keep a writer waiting for ever, here all wait their turn
        lock = func.pg_advisory_xact_lock if to_change else func.pg_advisory_xact_lock_shared
        conn.execute(select(lock(_COLUMNS, job_id)))
    columns: dict[str, Any] = conn.execute(select(jobs.c.columns).where(jobs.c.id == job_id)).scalar_one()
    return columns


def set_columns(conn: Connection, job_id: int, columns: dict[str, Any]) -> None:
    """The job's results table has these columns from now on."""
    conn.execute(update(jobs).where(jobs.c.id == job_id).values(columns=columns))


_COLUMNS = 0x636F6C73  # any number that is ours


def mark_swept(conn: Connection, job_id: int, now: datetime) -> None:
    """A driver has just done all that was due for the job."""
    conn.execute(update(jobs).where(jobs.c.id == job_id).values(swept_at=now))


def job_named(conn: Connection, name: str) -> JobRecord | None:
    """The job of this name, or None."""
    row = conn.execute(select(*_JOB_COLUMNS).where(jobs.c.name == name)).one_or_none()
    return None if row is None else _job_of(row)


def all_jobs(conn: Connection) -> list[JobRecord]:
    """All jobs, oldest first."""
    return [_job_of(row) for row in conn.execute(select(*_JOB_COLUMNS).order_by(jobs.c.id))]


def jobs_with_work(conn: Connection, *, now: datetime) -> set[int]:
    """Jobs that a sweep has something to do for: open runs or batches, lost ones, some to delete, twins to look for."""
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
