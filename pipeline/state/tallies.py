"""The number of rows of a run or job in each state, kept as a sum of changes. Edge: SQL."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    func,
    insert,
    select,
    update,
)

from pipeline.state.tables import batches, jobs, requests, runs, tallies
from pipeline.states import BatchState, RowState


def run_counts(conn: Connection, run_id: int) -> dict[str, int]:
    """Return the number of the run's rows in each state; states without rows are left out."""
    return _tallied(conn, tallies.c.run_id == run_id)


def job_counts(conn: Connection, job_id: int) -> dict[str, int]:
    """Return the number of the job's rows in each state; states without rows are left out."""
    return _tallied(conn, tallies.c.run_id.in_(select(runs.c.id).where(runs.c.job_id == job_id)))


def job_rows(conn: Connection, job_id: int) -> dict[str, int]:
    """Return the job's rows by state as `as_people_see` does."""
    return as_people_see(conn, job_counts(conn, job_id), batches.c.job_id == job_id)


def as_people_see(conn: Connection, counts: dict[str, int], which: ColumnElement[bool]) -> dict[str, int]:
    """Return counts of rows in which `planned` are in a batch that was not sent yet, and `in_flight` were sent.

    counts: rows by state, where a row is in_flight from its planning on; which: the batches that these rows may be in.
    """
    query = select(func.sum(batches.c.rows)).where(which, batches.c.state == BatchState.PLANNED)
    in_batches = counts.get(RowState.IN_FLIGHT, 0)
    planned = min(int(conn.scalar(query) or 0), in_batches)
    found = {**counts, BatchState.PLANNED.value: planned, RowState.IN_FLIGHT.value: in_batches - planned}
    return {state: rows for state, rows in found.items() if rows}


def rows_of_source(conn: Connection, job_id: int, variables: dict[str, Any]) -> int | None:
    """Return the number of the job's rows; None if the job was also run with other vars, that is, another source."""
    others = select(runs.c.vars).where(runs.c.job_id == job_id)
    if any(given != variables for given in conn.scalars(others)):
        return None
    return sum(job_counts(conn, job_id).values())


def note_gone(conn: Connection, job_id: int, gone: int, now: datetime) -> None:
    """Note how many rows of the job were not in its source when the source was last read completely."""
    conn.execute(update(jobs).where(jobs.c.id == job_id).values(gone=gone, gone_at=now))


def _tallied(conn: Connection, which: ColumnElement[bool]) -> dict[str, int]:
    number = func.sum(tallies.c.rows)
    query = select(tallies.c.state, number).where(which).group_by(tallies.c.state).having(number != 0)
    return {state: int(rows) for state, rows in conn.execute(query)}


def tally(conn: Connection, changes: Mapping[tuple[int, str], int]) -> None:
    """Note how many rows entered (positive) or left (negative) a state of a run in this transaction."""
    rows = [{"run_id": run_id, "state": state, "rows": n} for (run_id, state), n in changes.items() if n]
    if rows:
        conn.execute(insert(tallies), rows)


def moved(conn: Connection, run_id: int, before: str, after: str, rows: int) -> int:
    """Note that so many rows of a run moved from one state to another, and return their number."""
    changes = Counter({(run_id, before): -rows})
    changes[run_id, after] += rows
    tally(conn, changes)
    return rows


def leaving(conn: Connection, *which: ColumnElement[bool]) -> Counter[tuple[int, str]]:
    """Return the negative number of rows by run and state, for rows that will change, and lock these rows."""
    query = select(requests.c.run_id, requests.c.state).where(*which).with_for_update(key_share=True)
    leaving: Counter[tuple[int, str]] = Counter()
    leaving.subtract((run_id, state) for run_id, state in conn.execute(query).tuples())
    return leaving


def add_up(conn: Connection, run_id: int) -> None:
    """Replace the changes of a run by their sums. Call it when the run ends, so that only one driver does it."""
    terms = list(conn.scalars(select(tallies.c.id).where(tallies.c.run_id == run_id)))
    sums: Counter[tuple[int, str]] = Counter()
    for start in range(0, len(terms), _IDS_AT_ONCE):
        some = tallies.c.id.in_(terms[start : start + _IDS_AT_ONCE])
        for state, rows in conn.execute(select(tallies.c.state, tallies.c.rows).where(some)):
            sums[run_id, state] += rows
        conn.execute(tallies.delete().where(some))
    tally(conn, sums)


_IDS_AT_ONCE = 5_000


@contextmanager
def tallied_moves(conn: Connection, numbers: Sequence[int]) -> Iterator[None]:
    """Note how these rows change their states within the block. numbers: at most a chunk of rows."""
    these = requests.c.id.in_(numbers)
    changes = leaving(conn, these)
    yield
    changes.subtract(leaving(conn, these))
    tally(conn, changes)
