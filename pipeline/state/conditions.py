"""Conditions and small values that several queries share. Pure."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    null,
    or_,
    select,
)

from pipeline.state.tables import runs, sendings
from pipeline.states import RunReason, RunState, SendingEnd

AT_ONCE = datetime(2000, 1, 1, tzinfo=UTC)  # due by every clock


#: Sendings that came to the API, as far as anybody knows.
MAY_HAVE_ARRIVED: ColumnElement[bool] = or_(
    sendings.c.end.is_(None), sendings.c.end.not_in([SendingEnd.REJECTED, SendingEnd.ABSENT])
)


def inserted_id(created: CursorResult[Any]) -> int:
    key = created.inserted_primary_key
    assert key is not None
    return int(key[0])


#: Runs that the same command goes on with: open ones, and those that stopped for their budget.
UNFINISHED: ColumnElement[bool] = or_(
    runs.c.state == RunState.OPEN, runs.c.reason.is_not_distinct_from(RunReason.BUDGET)
)

IS_RETRY: ColumnElement[bool] = runs.c.retry.is_not(null())


def runs_like(conn: Connection, run_id: int, variables: dict[str, Any]) -> list[int]:
    """The runs of the same job with these vars, but for retries: their rows are left to them."""
    job_id = conn.scalar(select(runs.c.job_id).where(runs.c.id == run_id))
    found = conn.execute(select(runs.c.id, runs.c.vars).where(runs.c.job_id == job_id, ~IS_RETRY))
    return [run.id for run in found if run.vars == variables]


def soon(now: datetime, seconds: float) -> datetime:
    """`seconds` from `now`."""
    return now + timedelta(seconds=seconds)
