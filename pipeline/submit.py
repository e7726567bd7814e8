"""Submitting one planned batch exactly once.

The intent is committed before the POST: if we die on the line before, nothing was sent; on the line after, the batch
is found in `submitting` and `reconcile` asks the API's listing what became of it. Whatever the POST's end is, it is
committed; an end that proves nothing leaves the batch in `submitting`.
"""

import contextlib
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row

from pipeline import budget, gates, repack, spool, store
from pipeline.api import Accepted, Rejected, Unknown
from pipeline.budget import CERTAIN_TOKENS_PER_BYTE, Budget
from pipeline.driver import Driver
from pipeline.errors import AccountStopped, ApiUnreachable, RunEnded, Stopped
from pipeline.job import Job, stored_job
from pipeline.outcomes import Outcome
from pipeline.reasons import BEHIND_GATE, Reason, in_words
from pipeline.reconcile import tell_late
from pipeline.sink import Fixed
from pipeline.states import BatchState, RowState, RunReason
from pipeline.store import Batch

LAST_WAIT = 10.0  # seconds that a driver asked to stop waits for the answer to a create that has left
LOOK_AGAIN = 10.0  # seconds until a batch that was held back is tried again, unless another one ends before
ASKED_LATELY = timedelta(minutes=2)  # a job whose batch was held back since then is driven by somebody


def submit_due(driver: Driver) -> int:
    """Submit the job's planned batches that are due, in their order; how many the API accepted.

    Raises AccountStopped when the API refuses the account, or has refused it before and nothing changed since.
    """
    accepted = 0
    for batch in driver.claims(BatchState.PLANNED):
        with driver.lost_races(batch):
            try:
                accepted += submit(driver, batch)
            except RunEnded as exc:
                repack.drop(driver, batch, Reason.RUN_ENDED, str(exc), body=True)
    return accepted


def due_soon(driver: Driver) -> list[Batch]:
    """The planned batches that may be submitted now, or have only waited for the end of planning."""
    with driver.reading() as conn:
        return store.batches_in(
            conn, driver.job_id, BatchState.PLANNED, due=store.soon(driver.now(), repack.LOOK_AFTER_PLANNING)
        )


def submit(driver: Driver, batch: Batch) -> bool:
    """Send one batch that we have claimed; whether the API is known to have accepted it."""
    if batch.reason == Reason.TOO_LARGE:  # it could not be dropped when the API said so
        repack.drop(driver, batch, Reason.TOO_LARGE, body=True)
        return False
    with driver.reading() as conn:  # before the body is fetched, for it may wait for hours
        not_now = _allowed(driver, conn, batch, store.run(conn, batch.run_id))[-1]
    if not_now is not None:
        _not_now(driver, batch, not_now)
        return False
    with contextlib.ExitStack() as stack:
        try:
            body = stack.enter_context(driver.spool.at_hand(batch.nonce, batch.digest))
        except Stopped as exc:  # the spool cannot be reached: nothing was begun
            with driver.moving(batch) as conn:
                store.postpone(conn, batch, due_at=store.soon(driver.now(), LOOK_AGAIN), problem=str(exc))
            raise
        if body is not None:
            return _send(driver, batch, body)
    repack.drop(driver, batch, Reason.BODY_GONE, body=False)
    return False


def _send(driver: Driver, batch: Batch, body: Path) -> bool:
    """Send a batch whose body is in this file; whether the API is known to have accepted it."""
    timeout = driver.settings.timeout
    ends_by = time.monotonic() + timeout
    started_at = driver.api.now()
    deadline = started_at + timedelta(seconds=timeout)
    intent = _intend(driver, batch, started_at, deadline)
    if isinstance(intent, _NotNow):
        _not_now(driver, batch, intent)
        return False
    batch, sending = intent.batch, intent.sending

    def may_finish() -> str | None:
        if driver.stop.event.is_set():
            return "asked to stop"
        if driver.lease.lost:
            return "the lease ran out"
        if time.monotonic() >= ends_by or driver.api.now() >= deadline:
            return f"the upload took longer than {timeout:.0f} s"
        return None

    driver.tell("submitting", batch=batch.id, requests=batch.requests)
    end: Accepted | Rejected | Unknown
    try:
        with spool.BodyReader(body, may_finish) as reader:
            end = _post(driver, reader, batch.digest, intent.betas)
    except OSError as exc:  # raised before anything is read: another driver has ended with this batch meanwhile
        end = Rejected(f"its body cannot be read: {exc.strerror}", held_back=True)
    return _record(driver, batch, sending, end)


@dataclass(frozen=True)
class _NotNow:
    """Why a batch is not sent now. pack: what of it could be, None: all waits; stop: the run must end."""

    reason: Reason
    job: Job
    pack: repack.First | None = None
    stop: bool = False


@dataclass(frozen=True)
class _Intent:
    """A sending that is committed. betas: of its batch, as the job names them."""

    batch: Batch
    sending: int
    betas: Sequence[str]


def _intend(driver: Driver, batch: Batch, started_at: datetime, deadline: datetime) -> _Intent | _NotNow:
    """Take room and money and commit the intent, all in one transaction; or why that cannot be.

    Raises RunEnded when the batch's run was ended meanwhile, and AccountStopped for a refused account.
    """
    with driver.moving(batch) as conn:
        store.lock_accounts(conn)
        job, reserved, not_now = _allowed(driver, conn, batch, store.require_open(conn, batch.run_id))
        if not_now is not None:
            return not_now
        batch, sending = store.begin_sending(
            conn,
            batch,
            driver.account_id,
            driver=driver.lease.resource,
            started_at=started_at,
            deadline=deadline,
            due_at=driver.now(),
            reserved_usd=reserved,
        )
        driver.tries_account = False  # one try for each explicit run; success closes the circuit
        return _Intent(batch, sending, job.request.betas)


def _allowed(driver: Driver, conn: Connection, batch: Batch, run: Row[Any]) -> tuple[Job, float | None, _NotNow | None]:
    """The job, what to reserve for the batch, and why it cannot be sent now, if so. Raises AccountStopped."""
    job = stored_job(run)  # not a copy of before: the run goes by its present limits
    _check_circuit(driver, store.circuit(conn, driver.account_id))
    not_now = _gate(conn, batch, job, run) or _room(driver, conn, batch, job)
    reserved = None
    if not_now is None:
        reserved, not_now = _money(driver, conn, batch, job, run)
    return job, reserved, not_now


def _gate(conn: Connection, batch: Batch, job: Job, run: Row[Any]) -> _NotNow | None:
    """Whether the batch has to wait for what its run sends first."""
    if run.gate is None or batch.gate == run.gate:
        return None
    if store.keeps_gate(conn, run.id, run.gate):
        return _NotNow(BEHIND_GATE[run.gate], job)
    # What was to open it is gone: its rows changed, left the source, or were too large. Others take its place, as soon
    # as nobody plans: a run that is not planned to its end may have a planner that is dead, and then nobody else does.
    return _NotNow(Reason.OPENS_GATE, job, pack=gates.first(job, run.gate))


def _room(driver: Driver, conn: Connection, batch: Batch, job: Job) -> _NotNow | None:
    """Whether the batch would be more than may be at the API at a time, of its job or of all jobs."""
    of_job, of_all = job.limits.max_in_flight_requests, driver.settings.max_in_flight
    if batch.requests > min(of_job, of_all):
        fits = repack.First(min(of_job, of_all), batch.gate)
        return _NotNow(Reason.OVER_ROOM, job, pack=fits)
    flying = store.in_flight(conn)
    ours = flying.get(driver.job_id, 0)
    if ours + batch.requests > of_job:
        return _NotNow(Reason.NO_ROOM_OF_JOB, job)
    others = store.jobs_held_back(conn, since=driver.now() - ASKED_LATELY) - {driver.job_id}
    behind = any(flying.get(other, 0) < ours for other in others)  # jobs take turns
    if behind or sum(flying.values()) + batch.requests > of_all:
        return _NotNow(Reason.NO_ROOM, job)
    return None


def _money(
    driver: Driver, conn: Connection, batch: Batch, job: Job, run: Row[Any]
) -> tuple[float | None, _NotNow | None]:
    """What to reserve for the batch, None without a budget; or why it cannot be paid for now."""
    of_run, of_month = job.limits.max_cost_usd, driver.settings.monthly_budget
    if of_run is None and of_month is None:
        return None, None
    bound = CERTAIN_TOKENS_PER_BYTE if run.tokens_per_byte is None else run.tokens_per_byte
    cost = store.reserve(batch, bound)
    if cost is None:
        raise Stopped(f"a budget: batch {batch.id} asks a model without a known price; nothing of it is sent")
    fits = batch.requests
    if of_run is not None:
        fits = Budget(of_run, *store.spending(conn, batch.run_id, bound)).fits(cost, batch.requests)
        if fits < batch.requests and store.at_the_api(conn, batch.run_id):
            return None, _NotNow(Reason.NO_MONEY, job)
    if of_month is not None:
        spent = store.spending_since(conn, budget.month_of(driver.api.now()), CERTAIN_TOKENS_PER_BYTE)
        in_month = Budget(of_month, *spent).fits(cost, batch.requests)
        if in_month < batch.requests and store.at_the_api(conn):
            return None, _NotNow(Reason.NO_MONEY_OF_MONTH, job)
        fits = min(fits, in_month)
    if fits == batch.requests:
        return cost, None
    pack = repack.First(fits, batch.gate) if fits else None
    return None, _NotNow(Reason.OVER_BUDGET, job, pack=pack, stop=fits == 0)


def _not_now(driver: Driver, batch: Batch, why: _NotNow) -> None:
    if why.pack is not None:
        repack.pack_smaller(driver, batch, why.job, why.pack, why.reason)
    elif not why.stop or not repack.stop_run(driver, batch.run_id, RunReason.BUDGET):
        with driver.moving(batch) as conn:
            now, wait = driver.now(), repack.LOOK_AFTER_PLANNING if why.stop else LOOK_AGAIN
            behind = batch.run_id if why.reason in BEHIND_GATE.values() else None
            store.hold_back(conn, driver.job_id, why.reason, now=now, due_at=store.soon(now, wait), behind=behind)
        if batch.reason != why.reason:  # else it has been said
            driver.tell("held_back", batch=batch.id, problem=in_words(why.reason))


def _post(driver: Driver, reader: spool.BodyReader, digest: str, betas: Sequence[str]) -> Accepted | Rejected | Unknown:
    """POST the body in a thread of its own, so that a driver asked to stop need not wait for a slow answer for ever."""
    answer: Future[Accepted | Rejected | Unknown] = Future()

    def create() -> None:
        try:
            answer.set_result(driver.api.create(reader, digest, betas))
        except BaseException as exc:  # noqa: BLE001  # raised again below, in the thread that waits
            answer.set_exception(exc)

    thread = threading.Thread(target=create, daemon=True, name="create")
    thread.start()
    try:
        while thread.is_alive() and not driver.stop.event.is_set():
            thread.join(0.1)
    except BaseException:  # a signal that raises: the last chunk must not leave once we have left
        driver.stop.event.set()
        raise
    finally:
        thread.join(LAST_WAIT)
    if not answer.done():
        return Unknown("no answer came in the time left after being asked to stop")
    return answer.result()


def _record(driver: Driver, batch: Batch, sending: int, end: Accepted | Rejected | Unknown) -> bool:
    now = driver.now()
    if isinstance(end, Accepted):
        return _record_acceptance(driver, batch, sending, end, now)
    if isinstance(end, Unknown):
        with driver.moving(batch) as conn:
            store.mark_unknown(
                conn, batch, sending, Reason.NO_ANSWER, end.problem, grace_from=driver.api.now(), due_at=now
            )
        driver.tell("unknown_end", batch=batch.id, problem=end.problem, grace=driver.settings.grace)
        return False
    _record_rejection(driver, batch, sending, end, now)
    return False


def _record_acceptance(driver: Driver, batch: Batch, sending: int, end: Accepted, now: datetime) -> bool:
    api_id = end.batch.id
    facts = {"api_id": api_id, "requests": batch.requests, "request_id": end.request_id}
    with driver.database.write() as conn:  # whichever driver has the batch by now needs to know this
        of_before = store.is_of_before(conn, sending, api_id, end.batch.created_at)  # as a gateway's cache gives it
        late = None if of_before else store.record_api_id(conn, sending, api_id, end.request_id, now)
    if of_before:
        return _record(driver, batch, sending, Unknown(f"what came back names {api_id}, a batch of before"))
    if late is not None:
        tell_late(driver, batch.id, late, **facts)
        return False
    with driver.moving(batch) as conn:
        store.mark_in_progress(conn, batch, api_id, due_at=now)
        store.close_circuit(conn, driver.account_id)
    driver.tell("submitted", batch=batch.id, **facts)
    return True


def _record_rejection(driver: Driver, batch: Batch, sending: int, end: Rejected, now: datetime) -> None:
    wait = 1.0 if end.held_back else end.wait * random.uniform(1.0, 1.25)  # so that many drivers spread
    with driver.moving(batch) as conn:
        due_at = store.soon(now, wait)
        store.mark_rejected(conn, batch, sending, end.problem, end.request_id, now=now, due_at=due_at)
        if end.circuit:
            store.open_circuit(conn, driver.account_id, end.problem, now)
    driver.tell("rejected", batch=batch.id, problem=end.problem, wait=round(wait, 1))
    if end.circuit:
        raise AccountStopped(_stopped(end.problem))
    if end.too_large:
        _split(driver, replace(batch, state=BatchState.PLANNED), end.problem)
    if end.unreachable:
        raise ApiUnreachable(f"the batch could not be sent: {end.problem}")


def _check_circuit(driver: Driver, cause: str | None) -> None:
    if cause is not None and not driver.tries_account:
        raise AccountStopped(_stopped(cause))


def _stopped(cause: str) -> str:
    return (
        f"submitting has stopped, for the API refuses the account or the job as a whole: {cause}; "
        "put that right and run the job again: it tries one batch, and goes on when that is accepted"
    )


def _split(driver: Driver, batch: Batch, problem: str) -> None:
    """A batch too large for the API: its rows go in smaller ones, and a single row that is too large is invalid."""
    if batch.requests > 1:
        repack.drop(driver, batch, Reason.TOO_LARGE, body=True)
        return
    outcome = Outcome(RowState.INVALID, "request_too_large", f"the API finds this request too large: {problem}")
    with driver.moving(batch) as conn:
        rows = store.batch_rows(conn, batch.id, 0, 0)
        settled = [store.Settled(number, outcome.state, outcome.error_type, again=False) for number, *_ in rows]
        store.mark_outcomes(conn, batch, 0, 0, settled)
        fixed = [Fixed(batch.recipe, 0.0, n + 1, None, None, batch.run_id, driver.now()) for _, _, n, _, _ in rows]
        sink = driver.sink_now(conn)
        sink.write(conn, [sink.row(r[3], r[4], outcome, f) for r, f in zip(rows, fixed, strict=True)])
        store.drop(conn, batch, Reason.ROW_TOO_LARGE, problem)
    driver.tell("dropped", batch=batch.id, problem=outcome.error_message)
