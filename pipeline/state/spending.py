"""The requests in flight, and the money reserved and spent, of a run or of a month. Edge: SQL."""

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    case,
    func,
    literal,
    select,
    update,
)

from pipeline.reasons import Reason
from pipeline.state.batches import Batch
from pipeline.state.conditions import MAY_HAVE_ARRIVED, WAITING
from pipeline.state.tables import accounts, batches, requests, runs, sendings
from pipeline.states import AT_THE_API, BatchState, SendingEnd


class Spending(NamedTuple):
    """US dollars. settled: the cost of settled sendings; reserved: the worst case of the others."""

    settled: float
    reserved: float


def lock_accounts(conn: Connection) -> None:
    """Lock all accounts, so that no other driver commits an intent until this transaction has ended."""
    conn.execute(select(accounts.c.id).order_by(accounts.c.id).with_for_update(key_share=True)).all()


def in_flight(conn: Connection) -> dict[int, int]:
    """Return the number of requests that are or may be at the API, by job."""
    there = batches.c.state.in_([BatchState.SUBMITTING, *AT_THE_API])
    query = select(batches.c.job_id, func.sum(batches.c.requests)).where(there).group_by(batches.c.job_id)
    return {job: int(number) for job, number in conn.execute(query)}


def jobs_held_back(conn: Connection, *, since: datetime) -> set[int]:
    """Return the jobs with a batch that waits for room at the API and that a driver has tried to send after `since`."""
    waits = (batches.c.state == BatchState.PLANNED, batches.c.reason == Reason.NO_ROOM, batches.c.due_at > since)
    return set(conn.scalars(select(batches.c.job_id).where(*waits)))


def reservation(batch: Batch, tokens_per_byte: float) -> float | None:
    """Return the worst-case cost of a batch in US dollars; None if its model has no known price. Pure."""
    if batch.max_output_usd is None or batch.max_input_usd is None:
        return None
    return batch.max_output_usd + batch.max_input_usd * tokens_per_byte


def spending(conn: Connection, run_id: int, tokens_per_byte: float) -> Spending:
    """Return the cost of a run's settled sendings, and the worst case of the others.

    Money is also reserved for sendings from before the run had a budget.
    """
    return _spending(conn, batches.c.run_id == run_id, literal(tokens_per_byte))


def spending_since(conn: Connection, since: datetime, certain: float) -> Spending:
    """Return the same as `spending` for all sendings of all jobs that started since then, lost ones included.

    certain: the bound of tokens per byte for runs that never had a budget.
    """
    return _spending(conn, sendings.c.started_at >= since, func.coalesce(runs.c.tokens_per_byte, certain))


def _spending(conn: Connection, which: ColumnElement[bool], per_byte: ColumnElement[Any]) -> Spending:
    of_runs = sendings.join(batches, batches.c.id == sendings.c.batch_id).join(runs, runs.c.id == batches.c.run_id)
    at_most = batches.c.max_output_usd + batches.c.max_input_usd * per_byte
    unsettled = case((sendings.c.settled_usd.is_(None), func.coalesce(sendings.c.reserved_usd, at_most, 0.0)))
    query = select(func.sum(sendings.c.settled_usd), func.sum(unsettled)).select_from(of_runs)
    settled, reserved = conn.execute(query.where(which, MAY_HAVE_ARRIVED)).one()
    return Spending(float(settled or 0.0), float(reserved or 0.0))


def cost_of_waiting(conn: Connection, run_id: int, tokens_per_byte: float) -> float | None:
    """US dollars that the run's rows that wait may cost at most, by the bounds of the batches that they were in.

    None when these are of a model without a known price.
    """
    request = (batches.c.max_output_usd + batches.c.max_input_usd * tokens_per_byte) / batches.c.requests
    bounds = conn.execute(
        select(func.count(), func.count(requests.c.body_id), func.sum(request))
        .select_from(requests.outerjoin(batches, batches.c.id == requests.c.body_id))
        .where(requests.c.run_id == run_id, WAITING)
    ).one()
    planned = (batches.c.run_id == run_id, batches.c.state == BatchState.PLANNED)
    unsent = float(conn.scalar(select(func.sum(request * batches.c.requests)).where(*planned)) or 0.0)
    waiting, spooled, cost = bounds
    mean = conn.scalar(select(func.avg(request)).where(batches.c.run_id == run_id)) if waiting > spooled else 0.0
    if mean is None or (spooled and cost is None):
        return None
    return unsent + float(cost or 0.0) + int(waiting - spooled) * float(mean)


def usage_of_run(conn: Connection, run_id: int) -> dict[str, int]:
    """Return the tokens by class of the run's collected batches."""
    return _usage(conn, batches.c.run_id == run_id)


def usage_of_job(conn: Connection, job_id: int) -> dict[str, int]:
    """Return the tokens by class of the job's collected batches."""
    return _usage(conn, batches.c.job_id == job_id)


def _usage(conn: Connection, which: ColumnElement[bool]) -> dict[str, int]:
    total: dict[str, int] = {}
    for usage in conn.scalars(select(batches.c.usage).where(which, batches.c.usage.is_not(None))):
        for name, tokens in usage.items():
            total[name] = total.get(name, 0) + tokens
    return total


def cost_of_job(conn: Connection, job_id: int) -> float:
    """Return what the job has cost so far, in US dollars: everything answered, failed and repeated rows included."""
    cost = conn.scalar(select(func.coalesce(func.sum(batches.c.cost_usd), 0.0)).where(batches.c.job_id == job_id))
    return round(float(cost or 0.0), 12)


def settle(conn: Connection, batch: Batch, *, lost: int) -> None:
    """Settle the sending of a batch with its known cost. lost: requests of unknown cost, which stays reserved."""
    cost = conn.scalar(select(batches.c.cost_usd).where(batches.c.id == batch.id)) or 0.0
    kept = func.coalesce(sendings.c.reserved_usd, 0.0) * (lost / max(1, batch.requests))
    here = (sendings.c.batch_id == batch.id, sendings.c.end.in_([SendingEnd.ACCEPTED, SendingEnd.ADOPTED]))
    conn.execute(update(sendings).where(*here).values(settled_usd=cost + kept))
