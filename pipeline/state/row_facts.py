"""What is known of a job's rows, one by one or page by page, for those who show or prove it? Edge: SQL."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, func, or_, select

from pipeline.state.tables import batches, requests, runs
from pipeline.state.tallies import job_rows
from pipeline.states import FAILURES, RowState, RunState

KEYS_AT_ONCE = 500  # keys that one query asks for: databases take some ten thousand parameters


class TracedRow(NamedTuple):
    """One row, and where its request is; the fields are those of the table."""

    key: str
    state: str
    run_id: int
    attempts: int
    outcome: str | None
    error_type: str | None
    batch_id: int | None
    n: int | None
    body_id: int | None
    body_n: int | None
    sent_hash: bytes | None
    outcome_sent_hash: bytes | None
    id: int
    round: int


class ProvedRow(NamedTuple):
    """A row with its state and that of its batch; None where it is in no batch."""

    key: str
    state: str
    outcome: str | None
    batch_id: int | None
    batch_state: str | None


def traced_row(conn: Connection, job_id: int, keys: Sequence[str]) -> TracedRow | None:
    """Return the job's row that has one of these keys (JSON); None when there is none."""
    columns = [requests.c[name] for name in TracedRow._fields]
    found = conn.execute(select(*columns).where(requests.c.job_id == job_id, requests.c.key.in_(keys))).first()
    return None if found is None else TracedRow(*found)


def under_way_again(conn: Connection, job_id: int) -> dict[tuple[str, str | None], int]:
    """Return how many failed rows are being sent again, by their outcome and error_type.

    Such a row is in a batch, or pending in an open run. The results table still has its earlier answer.
    """
    there = job_rows(conn, job_id)
    if not there.get(RowState.PENDING) and not there.get(RowState.IN_FLIGHT):
        return {}
    waits = (requests.c.state == RowState.PENDING) & (runs.c.state == RunState.OPEN)
    query = (
        select(requests.c.outcome, requests.c.error_type, func.count())
        .join(runs, runs.c.id == requests.c.run_id)
        .where(requests.c.job_id == job_id, requests.c.outcome.in_(FAILURES))
        .where(or_(requests.c.state == RowState.IN_FLIGHT, waits))
        .group_by(requests.c.outcome, requests.c.error_type)
    )
    return {(outcome, error_type): rows for outcome, error_type, rows in conn.execute(query).tuples()}


def proved_rows(conn: Connection, job_id: int, *, after: str | None, limit: int) -> list[ProvedRow]:
    """Return the job's rows in the order of their keys, at most `limit`, from behind the key `after` on."""
    query = (
        select(requests.c.key, requests.c.state, requests.c.outcome, requests.c.batch_id, batches.c.state)
        .outerjoin(batches, batches.c.id == requests.c.batch_id)
        .where(requests.c.job_id == job_id)
        .order_by(requests.c.key)  # not by number: an index has the keys of each job together
        .limit(limit)
    )
    page = query if after is None else query.where(requests.c.key > after)
    return list(map(ProvedRow._make, conn.execute(page)))


def requests_by_outcome(conn: Connection, batch: int) -> dict[str, int]:
    """Return the number of requests of a batch by the outcome of their rows, which are not being sent again."""
    here = (requests.c.batch_id == batch, requests.c.state == requests.c.outcome)
    query = select(requests.c.state, func.count(requests.c.n.distinct())).where(*here).group_by(requests.c.state)
    return dict(conn.execute(query).tuples().all())


def answered_hashes(conn: Connection, job_id: int, keys: Sequence[str]) -> dict[str, bytes]:
    """Return the row_hash of the source values that each of these rows was last answered for, by key (JSON)."""
    found: dict[str, bytes] = {}
    for start in range(0, len(keys), KEYS_AT_ONCE):
        some = keys[start : start + KEYS_AT_ONCE]
        query = select(requests.c.key, requests.c.outcome_hash).where(
            requests.c.job_id == job_id, requests.c.key.in_(some), requests.c.outcome_hash.is_not(None)
        )
        found |= dict(conn.execute(query).tuples().all())
    return found
