"""How many rows a run or a job has in each state, kept as sums that move with the rows. Edge: SQL."""

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
    """The run's rows by state."""
    return _tallied(conn, tallies.c.run_id == run_id)


def job_counts(conn: Connection, job_id: int) -> dict[str, int]:
    """The job's rows by state."""
    return _tallied(conn, tallies.c.run_id.in_(select(runs.c.id).where(runs.c.job_id == job_id)))


def job_rows(conn: Connection, job_id: int) -> dict[str, int]:
    """The job's rows as people see them, see `as_people_see`."""
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
    """The job's rows, if all of them are of the source that these vars name; None when it was run with other vars."""
    others = select(runs.c.vars).where(runs.c.job_id == job_id)
    if any(given != variables for given in conn.scalars(others)):
        return None
    return sum(job_counts(conn, job_id).values())


def note_gone(conn: Connection, job_id: int, gone: int, now: datetime) -> None:
    """So many rows of the job were not in its source when it was read whole."""
    conn.execute(update(jobs).where(jobs.c.id == job_id).values(gone=gone, gone_at=now))


def _tallied(conn: Connection, which: ColumnElement[bool]) -> dict[str, int]:
    number = func.sum(tallies.c.rows)
    query = select(tallies.c.state, number).where(which).group_by(tallies.c.state).having(number != 0)
    return {state: int(rows) for state, rows in conn.execute(query)}


def tally(conn: Connection, changes: Mapping[tuple[int, str], int]) -> None:
    """Note how many rows came into a state of a run, or left it, in this transaction. changes: by run and state."""
    rows = [{"run_id": run_id, "state": state, "rows": n} for (run_id, state), n in changes.items() if n]
    if rows:
        conn.execute(insert(tallies), rows)


def moved(conn: Connection, run_id: int, before: str, after: str, rows: int) -> int:
    """So many rows of a run have moved from one state to another; how many."""
    changes = Counter({(run_id, before): -rows})
    changes[run_id, after] += rows
    tally(conn, changes)
    return rows


def leaving(conn: Connection, *which: ColumnElement[bool]) -> Counter[tuple[int, str]]:
    """Rows that are about to change, by run and state, each negative; they stay as they are until then."""
    query = select(requests.c.run_id, requests.c.state).where(*which).with_for_update(key_share=True)
    leaving: Counter[tuple[int, str]] = Counter()
    leaving.subtract((run_id, state) for run_id, state in conn.execute(query).tuples())
    return leaving


def add_up(conn: Connection, run_id: int) -> None:
    """Put the sums in the place of what they are the sums of. For a run that ends, so that one driver does it."""
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
    """Within the block these rows change their states; at most a chunk of them."""
    these = requests.c.id.in_(numbers)
    changes = leaving(conn, these)
    yield
    changes.subtract(leaving(conn, these))
    tally(conn, changes)
