"""SQL conditions and small values that several queries share. Edge: SQL."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    case,
    null,
    or_,
    select,
    text,
)

from pipeline.state.tables import requests, runs, sendings
from pipeline.states import RowState, RunReason, RunState, SendingEnd, Waits

AT_ONCE = datetime(2000, 1, 1, tzinfo=UTC)  # earlier than the time of any clock


#: Sendings that arrived at the API or may have.
MAY_HAVE_ARRIVED: ColumnElement[bool] = or_(
    sendings.c.end.is_(None), sendings.c.end.not_in([SendingEnd.REJECTED, SendingEnd.ABSENT])
)


def inserted_id(created: CursorResult[Any]) -> int:
    """Return the id of the row that an insert made."""
    key = created.inserted_primary_key
    assert key is not None
    return int(key[0])


#: Runs that the same command continues: open ones, and those that stopped because of their budget.
UNFINISHED: ColumnElement[bool] = or_(
    runs.c.state == RunState.OPEN, runs.c.reason.is_not_distinct_from(RunReason.BUDGET)
)

#: Pending rows. Queries name the column as the partial indexes do, and as text: a parameter could have any value, so
#: PostgreSQL would not use the index.
WAITING: ColumnElement[bool] = requests.c.waits.is_not(None)
WAITS_IN_SPOOL: ColumnElement[bool] = requests.c.waits == text(f"'{Waits.SPOOL}'")
WAITS_FOR_SOURCE: ColumnElement[bool] = requests.c.waits == text(f"'{Waits.SOURCE}'")
WAITS_FOR_ROUND: ColumnElement[bool] = requests.c.waits == text(f"'{Waits.ROUND}'")
#: Pending rows that can be sent without their source.
WAITS_WITHOUT_SOURCE: ColumnElement[bool] = requests.c.waits != text(f"'{Waits.SOURCE}'")

#: The columns of a row in flight that becomes pending: its request is taken from the body that it has.
BACK: dict[str, Any] = {
    "state": RowState.PENDING,
    "waits": case((requests.c.body_id.is_(None), Waits.SOURCE), else_=Waits.SPOOL),
    "batch_id": None,
    "n": None,
}

IS_RETRY: ColumnElement[bool] = runs.c.retry.is_not(null())


def runs_like(conn: Connection, run_id: int, variables: dict[str, Any]) -> list[int]:
    """Return the runs of the same job with these vars, without retries, whose rows are left to them."""
    job_id = conn.scalar(select(runs.c.job_id).where(runs.c.id == run_id))
    found = conn.execute(select(runs.c.id, runs.c.vars).where(runs.c.job_id == job_id, ~IS_RETRY))
    return [run.id for run in found if run.vars == variables]


def soon(now: datetime, seconds: float) -> datetime:
    """Return the time that is so many seconds after `now`."""
    return now + timedelta(seconds=seconds)
