"""Decide whether a batch may be sent now, by its gate, the room at the API, the budget and the account. Edge: SQL."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from pipeline.driver.driver import Driver
from pipeline.driver.job_of_run import stored_job
from pipeline.errors import AccountStopped, Stopped
from pipeline.job.model import Job
from pipeline.money.budget import Budget
from pipeline.money.measures import CERTAIN_TOKENS_PER_BYTE, month_of
from pipeline.planning import gates, packer
from pipeline.reasons import BEHIND_GATE, Reason
from pipeline.state.accounts import circuit
from pipeline.state.batches import Batch, at_the_api
from pipeline.state.database import Connection
from pipeline.state.gates import keeps_gate
from pipeline.state.moves import begin_sending
from pipeline.state.runs import RunRecord, require_open
from pipeline.state.spending import in_flight, jobs_held_back, lock_accounts, reservation, spending, spending_since

LOOK_AGAIN = 10.0  # seconds until a batch that was held back is tried again, or less if another batch ends
ASKED_LATELY = timedelta(minutes=2)  # a batch held back since then shows that a driver works on its job


@dataclass(frozen=True)
class NotNow:
    """Why a batch is not sent now.

    pack: the first batch that its rows are packed into, so that it can be sent; None: the batch waits unchanged.
    stop: whether the run must be stopped early, because the money that is left does not pay for a batch.
    """

    reason: Reason
    job: Job
    pack: packer.First | None = None
    stop: bool = False


@dataclass(frozen=True)
class _Intent:
    """A sending whose intent is committed. betas: the betas that the job names for its requests."""

    batch: Batch
    sending: int
    betas: Sequence[str]


def intend(driver: Driver, batch: Batch, started_at: datetime, deadline: datetime) -> _Intent | NotNow:
    """Reserve room and money and commit the intent in one transaction. Return it, or why the batch is not sent now.

    started_at, deadline: of the create call, by the API's clock. Raises RunEnded when the batch's run has ended in the
    meantime, and AccountStopped when the API has refused the account.
    """
    with driver.moving(batch) as conn:
        lock_accounts(conn)
        admission = allowed_now(driver, conn, batch, require_open(conn, batch.run_id))
        if admission.not_now is not None:
            return admission.not_now
        batch, sending = begin_sending(
            conn,
            batch,
            driver.account_id,
            driver=driver.lease.resource,
            started_at=started_at,
            deadline=deadline,
            due_at=driver.now(),
            reserved_usd=admission.reserved_usd,
        )
        driver.tries_account = False  # an explicit run tries one batch; success closes the circuit
        return _Intent(batch, sending, admission.job.request.betas)


class Admission(NamedTuple):
    """Whether a batch can be sent now.

    reserved_usd: its worst-case cost in US dollars; None without a budget, or when the batch cannot be sent.
    not_now: why it cannot be sent; None when it can.
    """

    job: Job
    reserved_usd: float | None
    not_now: NotNow | None


def allowed_now(driver: Driver, conn: Connection, batch: Batch, run: RunRecord) -> Admission:
    """Return whether the batch can be sent now. Raises AccountStopped when the API has refused the account."""
    job = stored_job(run)  # read again each time: the limits of the run may have changed
    _refuse_stopped_account(driver, circuit(conn, driver.account_id))
    not_now = _blocked_by_gate(conn, batch, job, run) or _blocked_by_room(driver, conn, batch, job)
    reserved = None
    if not_now is None:
        reserved, not_now = _cost_or_blocked(driver, conn, batch, job, run)
    return Admission(job, reserved, not_now)


def _blocked_by_gate(conn: Connection, batch: Batch, job: Job, run: RunRecord) -> NotNow | None:
    """Return why the batch has to wait for the canary or primer of its run; None when it does not."""
    if run.gate is None or batch.gate == run.gate:
        return None
    if keeps_gate(conn, run.id, run.gate):
        return NotNow(BEHIND_GATE[run.gate], job)
    # The batch that was to open the gate is gone: its rows changed, left the source, or were too large. Rows of this
    # batch take their place, as soon as no driver plans the job. It must not wait for the planner of the run: if the
    # run is not planned to its end, its planner may be dead, and then no other driver chooses new first rows.
    return NotNow(Reason.OPENS_GATE, job, pack=gates.first(job, run.gate))


def _blocked_by_room(driver: Driver, conn: Connection, batch: Batch, job: Job) -> NotNow | None:
    """Return why the batch does not fit at the API, by the limit of its job or of all jobs; None when it fits."""
    of_job, of_all = job.limits.max_in_flight_requests, driver.settings.max_in_flight
    if batch.requests > min(of_job, of_all):
        fits = packer.First(min(of_job, of_all), batch.gate)
        return NotNow(Reason.OVER_ROOM, job, pack=fits)
    in_flight_by_job = in_flight(conn)
    ours = in_flight_by_job.get(driver.job_id, 0)
    if ours + batch.requests > of_job:
        return NotNow(Reason.NO_ROOM_OF_JOB, job)
    others = jobs_held_back(conn, since=driver.now() - ASKED_LATELY) - {driver.job_id}
    behind = any(in_flight_by_job.get(other, 0) < ours for other in others)  # jobs take turns
    if behind or sum(in_flight_by_job.values()) + batch.requests > of_all:
        return NotNow(Reason.NO_ROOM, job)
    return None


def _cost_or_blocked(
    driver: Driver, conn: Connection, batch: Batch, job: Job, run: RunRecord
) -> tuple[float | None, NotNow | None]:
    """Return the worst-case cost to reserve in US dollars, and why the batch cannot be paid for now.

    (None, None): there is no budget, so nothing is reserved. Raises Stopped when there is a budget and the price of the
    batch's model is not known.
    """
    of_run, of_month = job.limits.max_cost_usd, driver.settings.monthly_budget
    if of_run is None and of_month is None:
        return None, None
    bound = CERTAIN_TOKENS_PER_BYTE if run.tokens_per_byte is None else run.tokens_per_byte
    cost = reservation(batch, bound)
    if cost is None:
        raise Stopped(f"batch {batch.id} is not sent: there is a budget, and the price of a model in it is not known")
    fits = batch.requests
    if of_run is not None:
        fits = Budget(of_run, *spending(conn, batch.run_id, bound)).fits(cost, batch.requests)
        if fits < batch.requests and at_the_api(conn, batch.run_id):
            return None, NotNow(Reason.NO_MONEY, job)
    if of_month is not None:
        spent = spending_since(conn, month_of(driver.api.now()), CERTAIN_TOKENS_PER_BYTE)
        in_month = Budget(of_month, *spent).fits(cost, batch.requests)
        if in_month < batch.requests and at_the_api(conn):
            return None, NotNow(Reason.NO_MONEY_OF_MONTH, job)
        fits = min(fits, in_month)
    if fits == batch.requests:
        return cost, None
    pack = packer.First(fits, batch.gate) if fits else None
    return None, NotNow(Reason.OVER_BUDGET, job, pack=pack, stop=fits == 0)


def _refuse_stopped_account(driver: Driver, cause: str | None) -> None:
    """Raise AccountStopped if sending has stopped on the account for this cause and this driver may not try it."""
    if cause is not None and not driver.tries_account:
        raise AccountStopped(stopped(cause))


def stopped(cause: str) -> str:
    """Return the message of AccountStopped. cause: the API's error."""
    return (
        f"submitting has stopped, because the API refuses the account or the job as a whole: {cause}; "
        "fix that and run the job again: it tries one batch, and sends the others when that one is accepted"
    )
