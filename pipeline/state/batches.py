"""The record of a batch, and the queries about batches and sendings. Edge: SQL."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    case,
    func,
    insert,
    or_,
    select,
)
from sqlalchemy.exc import IntegrityError

from pipeline.errors import LostRace
from pipeline.reasons import Reason
from pipeline.state.database import Database
from pipeline.state.tables import batches, identified, leases, runs, sendings
from pipeline.states import AT_THE_API, OPEN_BATCHES, BatchState, SendingEnd


class Unsent(NamedTuple):
    """A batch that is planned and not sent. opens: the gate of its run that it opens; None: an ordinary batch."""

    requests: int
    rows: int
    opens: str | None


class InFlight(NamedTuple):
    """The job's batches that are or may be at the API. usd: their worst-case cost; None: a price is not known."""

    batches: int
    requests: int
    rows: int
    usd: float | None


RESULTS_KEPT = timedelta(days=29)  # how long the API keeps results after a batch's creation
SKEW = timedelta(seconds=120)  # how far the API's created_at may be before our intent
TWIN_WATCH = timedelta(hours=25)  # how long a sending presumed absent is looked for; a batch takes at most 24 h


@dataclass(frozen=True)
class Batch:
    """A row of the table `batches`; the fields are its columns."""

    id: int
    job_id: int
    run_id: int
    account_id: int | None
    state: BatchState
    recipe: str
    nonce: str
    digest: str
    size_bytes: int
    requests: int
    rows: int
    api_id: str | None
    downloads: int
    downloaded_at: datetime | None
    wait_seconds: float
    due_at: datetime
    reason: str | None
    problem: str | None
    created_at: datetime
    claim: int
    not_found: int
    not_found_at: datetime | None
    cancel: bool
    delete_remote: bool
    max_output_usd: float | None
    max_input_usd: float | None
    gate: str | None
    canceling_at: datetime | None


@dataclass(frozen=True)
class SendingRecord:
    """A sending of a batch as the database has it; the fields are those of the table.

    end: a SendingEnd; None while it goes on, or when its driver died.
    """

    id: int
    batch_id: int
    account_id: int
    driver: str
    started_at: datetime
    deadline: datetime
    end: str | None
    grace_from: datetime | None
    ended_at: datetime | None
    api_id: str | None
    request_id: str | None
    problem: str | None
    reserved_usd: float | None
    settled_usd: float | None


class AbsentSending(NamedTuple):
    """A sending that is presumed absent. requests, nonce: those of its batch."""

    id: int
    batch_id: int
    started_at: datetime
    ended_at: datetime
    requests: int
    nonce: str


class AtTheApi(NamedTuple):
    """A batch that is at the API. started_at: of its sending, by the API's clock."""

    api_id: str
    started_at: datetime


class Held(NamedTuple):
    """The lease of a driver. holder: see holders.holder; expires_at: its end."""

    holder: Any
    expires_at: datetime


_SENDING_COLUMNS = [sendings.c[name] for name in SendingRecord.__dataclass_fields__]
BATCH_COLUMNS = [batches.c[name] for name in Batch.__dataclass_fields__]


def batch_of(row: Row[Any]) -> Batch:
    return Batch(**{**row._mapping, "state": BatchState(row.state)})


def batches_to_come_back(conn: Connection, job_id: int) -> int:
    """Return how many batches of the job are or may be at the API, or wait to be collected."""
    states = [state for state in OPEN_BATCHES if state is not BatchState.PLANNED]
    here = (batches.c.job_id == job_id, batches.c.state.in_(states))
    return conn.scalar(select(func.count()).select_from(batches).where(*here)) or 0


def batches_in(conn: Connection, job_id: int, *states: BatchState, due: datetime | None = None) -> list[Batch]:
    """Return the job's batches in these states, in the order they were planned. due: those due by then; None: all."""
    query = select(*BATCH_COLUMNS).where(batches.c.job_id == job_id, batches.c.state.in_(states)).order_by(batches.c.id)
    if due is not None:
        query = query.where(batches.c.due_at <= due)
    return [batch_of(row) for row in conn.execute(query)]


def batches_by_state(conn: Connection, run_id: int) -> dict[str, int]:
    """Return the number of the run's batches in each state."""
    query = select(batches.c.state, func.count()).where(batches.c.run_id == run_id).group_by(batches.c.state)
    return dict(conn.execute(query).tuples().all())


def next_due_at(conn: Connection, job_id: int, driver: str, account_id: int) -> datetime | None:
    """Return when the job's next batch is due; None if all its open batches are claimed by other drivers."""
    free = or_(batches.c.claimed_by.is_(None), batches.c.claimed_by == driver)
    ours = or_(batches.c.account_id.is_(None), batches.c.account_id == account_id)
    query = select(batches.c.due_at).where(batches.c.job_id == job_id, batches.c.state.in_(OPEN_BATCHES), free, ours)
    return conn.scalar(query.order_by(batches.c.due_at).limit(1))


def waited_for(conn: Connection, job_id: int, driver: str) -> list[Held]:
    """Return the lease of each other driver that has claimed open batches of the job."""
    theirs = (batches.c.job_id == job_id, batches.c.state.in_(OPEN_BATCHES), batches.c.claimed_by != driver)
    has_them = (leases.c.resource.in_(select(batches.c.claimed_by).where(*theirs)), leases.c.expires_at.is_not(None))
    return [Held(*row) for row in conn.execute(select(leases.c.holder, leases.c.expires_at).where(*has_them))]


def known_nonces(conn: Connection, job_id: int) -> set[str]:
    """Return the nonces of all batches that the job ever had."""
    return set(conn.scalars(select(batches.c.nonce).where(batches.c.job_id == job_id)))


def owner_of(conn: Connection, api_id: str) -> int | None:
    """Return the number of the sending that made this batch at the API; None: none of ours did."""
    return conn.scalar(select(sendings.c.id).where(sendings.c.api_id == api_id))


def is_owned(conn: Connection, api_id: str) -> bool:
    """Return whether one of our sendings made this batch at the API."""
    return owner_of(conn, api_id) is not None


def is_of_before(conn: Connection, sending: int, api_id: str, created_at: datetime) -> bool:
    """Return whether the batch in the answer to this sending cannot be its own: another sending's, or too old."""
    if owner_of(conn, api_id) not in (None, sending):
        return True
    began: datetime = conn.execute(select(sendings.c.started_at).where(sendings.c.id == sending)).scalar_one()
    return created_at < began - SKEW


def nonce_at_api(conn: Connection, account_id: int, api_id: str) -> str | None:
    """Return the nonce in the results of a batch at the API; empty: they are not ours; None: not known yet."""
    here = (identified.c.account_id == account_id, identified.c.api_id == api_id)
    return conn.scalar(select(identified.c.nonce).where(*here))


def identify(database: Database, account_id: int, api_id: str, nonce: str) -> None:
    """Note the nonce of a batch at the API, unless another driver has just noted it. nonce: empty: it is not ours."""
    with suppress(IntegrityError, LostRace), database.write() as conn:
        conn.execute(insert(identified).values(account_id=account_id, api_id=api_id, nonce=nonce))


def sent_at(conn: Connection, batch: Batch) -> datetime:
    """Return when the sending that may have reached the API started, by its clock. batch: one that was sent."""
    query = select(sendings.c.started_at).where(sendings.c.batch_id == batch.id)
    owner = case((sendings.c.api_id == batch.api_id, 0), else_=1)
    began: datetime = conn.execute(query.order_by(owner, sendings.c.id.desc()).limit(1)).scalar_one()
    return began


def unsent(conn: Connection, job_id: int) -> dict[int, Unsent]:
    """Return the job's batches that are planned and not sent, by number."""
    columns = (batches.c.id, batches.c.requests, batches.c.rows, batches.c.gate)
    planned = select(*columns).where(batches.c.job_id == job_id, batches.c.state == BatchState.PLANNED)
    return {row.id: Unsent(row.requests, row.rows, row.gate) for row in conn.execute(planned)}


def flying(conn: Connection, job_id: int, tokens_per_byte: float) -> InFlight | None:
    """Return the job's batches that are or may be at the API; None if there are none.

    tokens_per_byte: the bound for runs without a budget, which have none of their own.
    """
    per_byte = func.coalesce(runs.c.tokens_per_byte, tokens_per_byte)
    at_most = batches.c.max_output_usd + batches.c.max_input_usd * per_byte
    there = batches.c.state.in_((BatchState.SUBMITTING, *AT_THE_API, BatchState.ENDED))
    query = (
        select(
            func.count(), func.sum(batches.c.requests), func.sum(batches.c.rows), func.sum(at_most), func.count(at_most)
        )
        .select_from(batches.join(runs, runs.c.id == batches.c.run_id))
        .where(batches.c.job_id == job_id, there)
    )
    number, sent, rows, usd, priced = conn.execute(query).one()
    if not number:
        return None
    return InFlight(batches=number, requests=int(sent), rows=int(rows), usd=float(usd) if priced == number else None)


def count_foreign(conn: Connection, job_id: int, account_id: int) -> int:
    """Return the number of the job's open batches if other accounts have sent all of them; otherwise 0."""
    open_now = (batches.c.job_id == job_id, batches.c.state.in_(OPEN_BATCHES))
    accounts_of = list(conn.scalars(select(batches.c.account_id).where(*open_now)))
    return len(accounts_of) if all(a not in (None, account_id) for a in accounts_of) else 0


def any_open(conn: Connection, numbers: Iterable[int]) -> bool:
    """Return whether one of these batches is not in a final state."""
    query = select(batches.c.id).where(batches.c.id.in_(list(numbers)), batches.c.state.in_(OPEN_BATCHES)).limit(1)
    return conn.scalar(query) is not None


def smallest_too_large(conn: Connection, run_id: int) -> int | None:
    """Return the smallest number of requests of the run's batches that the API refused as too large; None if none."""
    dropped = (batches.c.run_id == run_id, batches.c.state == BatchState.DROPPED)
    too_large = (*dropped, batches.c.reason == Reason.TOO_LARGE)
    fewest: int | None = conn.scalar(select(func.min(batches.c.requests)).where(*too_large))
    return fewest


def last_sending(conn: Connection, batch_id: int) -> SendingRecord:
    """Return the newest sending of a batch, which must have one."""
    return sendings_of(conn, batch_id)[-1]


def sendings_of(conn: Connection, batch_id: int) -> list[SendingRecord]:
    """Return all sendings of a batch, oldest first."""
    query = select(*_SENDING_COLUMNS).where(sendings.c.batch_id == batch_id).order_by(sendings.c.id)
    return [SendingRecord(**row._mapping) for row in conn.execute(query)]


def at_the_api(conn: Connection, run_id: int | None = None) -> bool:
    """Return whether a batch is or may be at the API, so that it may cost money or free room. run_id None: any run."""
    there = batches.c.state.in_((BatchState.SUBMITTING, *AT_THE_API, BatchState.ENDED))
    query = select(batches.c.id).where(there).limit(1)
    return conn.scalar(query if run_id is None else query.where(batches.c.run_id == run_id)) is not None


def due_at_the_api(conn: Connection, account_id: int, due: datetime) -> list[AtTheApi]:
    """Return the account's batches, of all jobs, that are at the API and due by then."""
    there = (batches.c.state.in_(AT_THE_API), of_account(account_id), batches.c.due_at <= due)
    sent = sendings.c.api_id == batches.c.api_id
    query = select(batches.c.api_id, sendings.c.started_at).join(sendings, sent).where(*there)
    return [AtTheApi(*row) for row in conn.execute(query)]


def absent_since(conn: Connection, job_id: int, account_id: int, since: datetime) -> list[AbsentSending]:
    """Return this account's sendings that were presumed absent after `since`."""
    of_sending = (sendings.c.id, sendings.c.batch_id, sendings.c.started_at, sendings.c.ended_at)
    query = (
        select(*of_sending, batches.c.requests, batches.c.nonce)
        .join(batches, batches.c.id == sendings.c.batch_id)
        .where(batches.c.job_id == job_id, sendings.c.account_id == account_id)
        .where(sendings.c.end == SendingEnd.ABSENT, sendings.c.ended_at > since)
    )
    return [AbsentSending(*row) for row in conn.execute(query)]


def of_account(account_id: int) -> ColumnElement[bool]:
    """Return the condition for batches that this account has sent."""
    return batches.c.account_id == account_id
