"""The mark that all rows of a job's source were settled, so that an unchanged source is not compared again. Edge: SQL.

A mark is a row of `stretches` that covers no rows: its `first` and `last` are 0. It says that every row of one source
had succeeded with one recipe, and which plannings of the job there had been by then. It counts only while these
plannings are the only ones:

- Only a planning changes a row that has succeeded. Every other writer of `requests` changes rows that are pending, in
  flight or lost.
- Each planning begins with a transaction that adds a run, or opens one again and clears its `planned_at`; see
  `runs.join_run`. Both give another digest here, before the planning writes its first row.

So nothing has to clear a mark: if we die at any moment after a planning has begun, the mark has lost its meaning.
"""

import hashlib

from sqlalchemy import Connection, delete, insert, select

from pipeline.state.tables import runs, stretches

_NO_ROWS = 0  # rows have numbers from 1


def plannings(conn: Connection, job_id: int) -> bytes:
    """Return a digest, 32 bytes, of all plannings of the job that have begun."""
    query = select(runs.c.id, runs.c.planned_at).where(runs.c.job_id == job_id)
    found = hashlib.sha256()
    for run_id, planned_at in conn.execute(query.order_by(runs.c.id)):
        found.update(f"{run_id} {None if planned_at is None else planned_at.isoformat()}\n".encode())
    return found.digest()


def settled_rows(conn: Connection, job_id: int, source: bytes) -> int | None:
    """Return how many rows a source has, all of which succeeded and are unchanged since; None: this is not certain.

    source: a digest, 32 bytes, of the source's bytes and of the recipe.
    """
    here = (stretches.c.job_id == job_id, stretches.c.source == source, stretches.c.first == _NO_ROWS)
    marked = conn.execute(select(stretches.c.rows, stretches.c.digest).where(*here)).one_or_none()
    if marked is None or marked.digest != plannings(conn, job_id):
        return None
    return int(marked.rows)


def mark_settled(conn: Connection, job_id: int, source: bytes, rows: int) -> None:
    """Mark that all rows of a source have succeeded, and remove the job's earlier marks. source: as `settled_rows`.

    Call it under the lease on planning, after `mark_planned` of the run, in a transaction that checks the lease. No row
    may have been planned since it was looked at: the token of the lease tells whether others have held it meanwhile.
    """
    conn.execute(delete(stretches).where(stretches.c.job_id == job_id, stretches.c.first == _NO_ROWS))
    mark = {"source": source, "n": 0, "first": _NO_ROWS, "last": _NO_ROWS, "rows": rows}
    conn.execute(insert(stretches).values(job_id=job_id, digest=plannings(conn, job_id), **mark))
