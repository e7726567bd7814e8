"""Claims: the right of one driver to work on a batch. Edge: SQL."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    or_,
    select,
    update,
)

from pipeline.errors import LostRace
from pipeline.reasons import Reason
from pipeline.state import migrations
from pipeline.state.batches import BATCH_COLUMNS, Batch, batch_of
from pipeline.state.tables import batches, leases
from pipeline.states import BatchState

Condition = ColumnElement[bool]  #: one more condition for batches to take, made by a function of this module


class Which(NamedTuple):
    """Which batches to claim: those of a job, in these states, due by `due`, with a number above `after`.

    only: a further condition; None: no further one.
    """

    job_id: int
    states: Sequence[BatchState]
    due: datetime
    after: int = 0
    only: Condition | None = None


TO_DELETE: Condition = batches.c.delete_remote


def to_abandon(account_id: int) -> Condition:
    """Return the condition for batches to give up: those of other accounts, and those that are overdue."""
    return or_(batches.c.account_id != account_id, batches.c.reason == Reason.OVERDUE)


def claim(conn: Connection, which: Which, *, driver: str, living_at: datetime, limit: int) -> list[Batch]:
    """Claim at most `limit` batches that no other living driver has claimed, and return them as they were planned.

    driver: the sign of life of the driver that claims. living_at: the time by the clock of leases.
    Raises Stopped if the database was upgraded.
    """
    migrations.require_current(conn)
    alive = select(leases.c.resource).where(leases.c.resource == batches.c.claimed_by, leases.c.expires_at > living_at)
    free = or_(batches.c.claimed_by.is_(None), batches.c.claimed_by == driver, ~alive.exists())
    wanted = [batches.c.job_id == which.job_id, batches.c.state.in_(which.states), batches.c.due_at <= which.due, free]
    wanted += [batches.c.id > which.after] + ([] if which.only is None else [which.only])
    query = select(*BATCH_COLUMNS).where(*wanted).order_by(batches.c.id).limit(limit)
    taken = [batch_of(row) for row in conn.execute(query.with_for_update(key_share=True, skip_locked=True))]
    if taken:
        here = batches.c.id.in_([batch.id for batch in taken])
        conn.execute(update(batches).where(here).values(claim=batches.c.claim + 1, claimed_by=driver))
    return [replace(batch, claim=batch.claim + 1) for batch in taken]


def is_batch(number: int, account_id: int) -> Condition:
    """Return the condition for this batch alone, if this account has sent it."""
    return (batches.c.id == number) & (batches.c.account_id == account_id)


def ended_and_held(conn: Connection, *, living_at: datetime) -> dict[int, bool]:
    """Return the batches of all jobs that have ended and are not collected, and whether a living driver has each.

    living_at: the time that signs of life are measured by.
    """
    living = select(leases.c.resource).where(leases.c.expires_at > living_at)
    is_held = batches.c.claimed_by.in_(living).is_(True)
    query = select(batches.c.id, is_held).where(batches.c.state == BatchState.ENDED)
    return dict(conn.execute(query).tuples().all())


def check_claim(conn: Connection, batch: Batch) -> None:
    """Raise LostRace if another driver has claimed the batch. Otherwise none can until this transaction has ended."""
    query = select(batches.c.claim).where(batches.c.id == batch.id).with_for_update(key_share=True)
    if conn.scalar(query) != batch.claim:
        raise LostRace(f"batch {batch.id} was taken by another driver; run the same command again to continue")
