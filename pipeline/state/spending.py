"""The requests in flight, and the money reserved and spent, of a run or of a month. Edge: SQL."""

from datetime import datetime
from typing import Any

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
from pipeline.state.conditions import MAY_HAVE_ARRIVED
from pipeline.state.tables import accounts, batches, runs, sendings
from pipeline.states import AT_THE_API, BatchState, SendingEnd


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


def spending(conn: Connection, run_id: int, tokens_per_byte: float) -> tuple[float, float]:
    """Return (settled, reserved) of a run in US dollars: the cost of settled sendings, the worst case of the others.

    Money is also reserved for sendings from before the run had a budget.
    """
    return _spending(conn, batches.c.run_id == run_id, literal(tokens_per_byte))


def spending_since(conn: Connection, since: datetime, certain: float) -> tuple[float, float]:
    """Return (settled, reserved) in US dollars of all sendings of all jobs that started since then, lost ones included.

    certain: the bound of tokens per byte for runs that never had a budget.
    """
    return _spending(conn, sendings.c.started_at >= since, func.coalesce(runs.c.tokens_per_byte, certain))


def _spending(conn: Connection, which: ColumnElement[bool], per_byte: ColumnElement[Any]) -> tuple[float, float]:
    of_runs = sendings.join(batches, batches.c.id == sendings.c.batch_id).join(runs, runs.c.id == batches.c.run_id)
    at_most = batches.c.max_output_usd + batches.c.max_input_usd * per_byte
    unsettled = case((sendings.c.settled_usd.is_(None), func.coalesce(sendings.c.reserved_usd, at_most, 0.0)))
    query = select(func.sum(sendings.c.settled_usd), func.sum(unsettled)).select_from(of_runs)
    settled, reserved = conn.execute(query.where(which, MAY_HAVE_ARRIVED)).one()
    return float(settled or 0.0), float(reserved or 0.0)


def settle(conn: Connection, batch: Batch, *, lost: int) -> None:
    """Settle the sending of a batch with its known cost. lost: requests of unknown cost, which stays reserved."""
    cost = conn.scalar(select(batches.c.cost_usd).where(batches.c.id == batch.id)) or 0.0
    kept = func.coalesce(sendings.c.reserved_usd, 0.0) * (lost / max(1, batch.requests))
    here = (sendings.c.batch_id == batch.id, sendings.c.end.in_([SendingEnd.ACCEPTED, SendingEnd.ADOPTED]))
    conn.execute(update(sendings).where(*here).values(settled_usd=cost + kept))
