"""What do people see of a job's batches: how each stands, what it cost, and what went wrong? Edge: SQL."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Select,
    func,
    or_,
    select,
)

from pipeline.reasons import in_words
from pipeline.state.tables import batches, jobs, sendings
from pipeline.states import OPEN_BATCHES, BatchState, SendingEnd


class BatchFacts(NamedTuple):
    """A batch as people look at it; the fields are those of the table.

    counts: requests by the API's kind; outcomes: rows by ours. Both are None until the API, or we, have counted.
    """

    id: int
    run_id: int
    state: str
    nonce: str
    digest: str
    requests: int
    rows: int
    api_id: str | None
    counts: dict[str, int] | None
    outcomes: dict[str, int] | None
    cost_usd: float
    reason: str | None
    problem: str | None
    created_at: datetime
    ended_at: datetime | None
    collected_at: datetime | None

    @property
    def trouble(self) -> str | None:
        """Why it waits, or what went wrong with it, as one sentence; None when there is nothing to say."""
        return in_words(self.reason, self.problem)


class BatchProblem(NamedTuple):
    """A batch, and what is wrong with it."""

    batch: int
    problem: str | None


class Owner(NamedTuple):
    """The batch of ours that a batch at the API is. job: its name; batch: our number; state: of our batch."""

    job: str
    batch: int
    state: str


class BatchTime(NamedTuple):
    """When a batch was sent, and when it ended. rows: at least `requests`: rows with equal requests share one."""

    batch: int
    requests: int
    rows: int
    sent_at: datetime
    ended_at: datetime | None


class Sent(NamedTuple):
    """How many batches of a run were sent, and how many rows are in them."""

    batches: int
    rows: int


_COLUMNS = [batches.c[name] for name in BatchFacts._fields]


def _select_facts(conn: Connection, query: Select[Any]) -> list[BatchFacts]:
    return [BatchFacts(*row) for row in conn.execute(query)]


def batch_facts(conn: Connection, number: int) -> BatchFacts:
    """Return one batch of the database."""
    return BatchFacts(*conn.execute(select(*_COLUMNS).where(batches.c.id == number)).one())


def batches_of_job(conn: Connection, job_id: int) -> list[BatchFacts]:
    """Return all batches of the job, in the order they were planned."""
    return _select_facts(conn, select(*_COLUMNS).where(batches.c.job_id == job_id).order_by(batches.c.id))


def batch_times(conn: Connection, job_id: int, run_id: int | None = None) -> list[BatchTime]:
    """Return the times of the job's batches that the API has accepted, in the order they were planned.

    run_id: only batches of this run; None: of all.
    """
    query = (
        select(batches.c.id, batches.c.requests, batches.c.rows, func.min(sendings.c.started_at), batches.c.ended_at)
        .join(sendings, sendings.c.batch_id == batches.c.id)
        .where(batches.c.job_id == job_id, batches.c.api_id.is_not(None), sendings.c.api_id == batches.c.api_id)
        .group_by(batches.c.id, batches.c.requests, batches.c.rows, batches.c.ended_at)
        .order_by(batches.c.id)
    )
    return [
        BatchTime(*row) for row in conn.execute(query if run_id is None else query.where(batches.c.run_id == run_id))
    ]


def owners(conn: Connection, api_ids: Sequence[str]) -> dict[str, Owner]:
    """Return which of our batches these batches at the API are, by the API's id. Foreign ones are left out."""
    query = (
        select(sendings.c.api_id, jobs.c.name, batches.c.id, batches.c.state)
        .join(batches, batches.c.id == sendings.c.batch_id)
        .join(jobs, jobs.c.id == batches.c.job_id)
        .where(sendings.c.api_id.in_(api_ids))
    )
    return {api_id: Owner(*owner) for api_id, *owner in conn.execute(query)}


def newest_batches(conn: Connection, job_id: int, *, limit: int) -> list[BatchFacts]:
    """Return the job's newest batches, at most `limit`: those that are not collected or dropped come first."""
    is_open = batches.c.collected_at.is_(None) & (batches.c.state != BatchState.DROPPED)
    newest = select(*_COLUMNS).where(batches.c.job_id == job_id).order_by(is_open.desc(), batches.c.id.desc())
    return _select_facts(conn, newest.limit(limit))


def batches_in_trouble(conn: Connection, job_id: int) -> list[BatchFacts]:
    """Return the job's open and lost batches of which there is something to say, see `BatchFacts.trouble`."""
    has_trouble = or_(batches.c.reason.is_not(None), batches.c.problem.is_not(None))
    here = (batches.c.job_id == job_id, batches.c.state.in_((*OPEN_BATCHES, BatchState.LOST)), has_trouble)
    return _select_facts(conn, select(*_COLUMNS).where(*here))


def batch_states(conn: Connection, job_id: int) -> dict[str, int]:
    """Return how many batches of the job are in each state."""
    query = select(batches.c.state, func.count()).where(batches.c.job_id == job_id).group_by(batches.c.state)
    return dict(conn.execute(query).tuples().all())


def oldest_uncollected(conn: Connection, job_id: int) -> datetime | None:
    """Return when the oldest batch was created whose results are still at the API; None when there is none."""
    there = batches.c.state.in_((BatchState.IN_PROGRESS, BatchState.CANCELING, BatchState.ENDED))
    oldest: datetime | None = conn.scalar(
        select(func.min(batches.c.created_at)).where(batches.c.job_id == job_id, there)
    )
    return oldest


def twins(conn: Connection, job_id: int) -> list[BatchProblem]:
    """Return the job's batches that the API has accepted twice, so that both are paid."""
    query = (
        select(batches.c.id, sendings.c.problem)
        .join(batches, batches.c.id == sendings.c.batch_id)
        .where(batches.c.job_id == job_id, sendings.c.end == SendingEnd.TWIN)
    )
    return [BatchProblem(*row) for row in conn.execute(query)]


def sent_of_run(conn: Connection, run_id: int) -> Sent:
    """Return how much of the run is at the API, may be, or was."""
    sent = batches.c.api_id.is_not(None) | (batches.c.state == BatchState.SUBMITTING)
    here = (batches.c.run_id == run_id, batches.c.state != BatchState.DROPPED, sent)
    number, rows = conn.execute(select(func.count(), func.sum(batches.c.rows)).where(*here)).one()
    return Sent(number, int(rows or 0))
