"""The files that jobs have uploaded through the Files API. Edge: SQL."""

from typing import Any

from sqlalchemy import (
    Connection,
    insert,
    select,
    update,
)

from pipeline.state.conditions import WAITING
from pipeline.state.tables import batches, files, requests, runs
from pipeline.states import OPEN_BATCHES, RunState


def uploaded_file(conn: Connection, job_id: int, account_id: int, sha256: str) -> str | None:
    """Return the API's id of the file with this content that the job has uploaded for this account; None without any.

    Files that are to be deleted at the API are left out. sha256: of the content, in hex.
    """
    here = (files.c.job_id == job_id, files.c.account_id == account_id, files.c.sha256 == sha256)
    query = select(files.c.file_id).where(*here, ~files.c.delete_remote).order_by(files.c.id.desc()).limit(1)
    return conn.scalar(query)


def add_file(conn: Connection, **values: Any) -> None:
    """Note a file that was uploaded. values: the columns of the table `files`."""
    conn.execute(insert(files).values(delete_remote=False, **values))


def forget_file(conn: Connection, file_id: str) -> None:
    """Remove the note of a file that the API no longer has."""
    conn.execute(files.delete().where(files.c.file_id == file_id))


def has_files(conn: Connection, job_id: int) -> bool:
    """Return whether the job has uploaded files that may still be at the API."""
    return conn.scalar(select(files.c.id).where(files.c.job_id == job_id).limit(1)) is not None


def mark_files_done(conn: Connection, job_id: int) -> None:
    """Mark the job's files as to be deleted at the API, unless the job has open runs, open batches or pending rows."""
    open_batch = select(batches.c.id).where(batches.c.job_id == job_id, batches.c.state.in_(OPEN_BATCHES))
    waiting = select(requests.c.id).where(requests.c.job_id == job_id, WAITING)
    open_run = select(runs.c.id).where(runs.c.job_id == job_id, runs.c.state == RunState.OPEN)
    done = ~open_batch.exists() & ~waiting.exists() & ~open_run.exists()
    conn.execute(update(files).where(files.c.job_id == job_id, done).values(delete_remote=True))


def files_to_delete(conn: Connection, job_id: int, account_id: int) -> list[str]:
    """Return the ids of the job's files that are to be deleted at the API."""
    here = (files.c.job_id == job_id, files.c.account_id == account_id, files.c.delete_remote)
    return list(conn.scalars(select(files.c.file_id).where(*here)))
