"""Files that were uploaded through the Files API. Edge: SQL."""

from typing import Any

from sqlalchemy import (
    Connection,
    insert,
    select,
    text,
    update,
)

from pipeline.state.tables import batches, files, requests, runs
from pipeline.states import OPEN_BATCHES, RunState


def uploaded_file(conn: Connection, job_id: int, account_id: int, sha256: str) -> str | None:
    """The API's id of the file with this content that the job has put up for this account.

    None when there is none, or it is to be removed.
    """
    here = (files.c.job_id == job_id, files.c.account_id == account_id, files.c.sha256 == sha256)
    query = select(files.c.file_id).where(*here, ~files.c.delete_remote).order_by(files.c.id.desc()).limit(1)
    return conn.scalar(query)


def add_file(conn: Connection, **values: Any) -> None:
    """Note a file that was put up."""
    conn.execute(insert(files).values(delete_remote=False, **values))


def forget_file(conn: Connection, file_id: str) -> None:
    """It is not at the API any more."""
    conn.execute(files.delete().where(files.c.file_id == file_id))


def has_files(conn: Connection, job_id: int) -> bool:
    """Whether the job has put up files that may be at the API still."""
    return conn.scalar(select(files.c.id).where(files.c.job_id == job_id).limit(1)) is not None


def mark_files_done(conn: Connection, job_id: int) -> None:
    """The job's files are to be removed at the API, if nothing of it waits or is at the API any more."""
    open_batch = select(batches.c.id).where(batches.c.job_id == job_id, batches.c.state.in_(OPEN_BATCHES))
    waiting = select(requests.c.id).where(requests.c.job_id == job_id, requests.c.state == text("'pending'"))
    open_run = select(runs.c.id).where(runs.c.job_id == job_id, runs.c.state == RunState.OPEN)
    done = ~open_batch.exists() & ~waiting.exists() & ~open_run.exists()
    conn.execute(update(files).where(files.c.job_id == job_id, done).values(delete_remote=True))


def files_to_delete(conn: Connection, job_id: int, account_id: int) -> list[str]:
    """The ids of the job's files that are to be removed at the API."""
    here = (files.c.job_id == job_id, files.c.account_id == account_id, files.c.delete_remote)
    return list(conn.scalars(select(files.c.file_id).where(*here)))
