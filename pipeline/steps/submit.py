"""Submit planned batches, each exactly once. Edge: SQL, HTTP, files.

The intent is committed before the create call. If we die on the line before the commit, nothing was sent. If we die on
the line after it, the next driver finds the batch in `submitting`, and `reconcile` learns from the API's listing what
became of it. Every end of the create call is committed; an end that proves nothing leaves the batch in `submitting`.
"""

import contextlib
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from pipeline.answer.outcome import Outcome
from pipeline.api.created import Accepted, Rejected, Unknown
from pipeline.driver.driver import Driver
from pipeline.driver.settle import settle_alike
from pipeline.errors import AccountStopped, ApiUnreachable, RunEnded, Stopped
from pipeline.events.batches import Dropped, FoundLate, HeldBack, NotAccepted, Submitted, Submitting, UnknownEnd
from pipeline.planning.drop import LOOK_AFTER_PLANNING, drop_claimed, pack_smaller, stop_run
from pipeline.reasons import BEHIND_GATE, Reason, in_words
from pipeline.spool.body import BodyReader
from pipeline.state.accounts import close_circuit, open_circuit
from pipeline.state.batches import Batch, batches_in, is_of_before
from pipeline.state.conditions import soon
from pipeline.state.moves import (
    drop_batch,
    hold_back,
    mark_in_progress,
    mark_rejected,
    mark_unknown,
    postpone,
    record_api_id,
)
from pipeline.state.runs import get_run
from pipeline.states import BatchState, RowState, RunReason
from pipeline.steps.admission import LOOK_AGAIN, NotNow, allowed_now, intend, stopped
from pipeline.steps.reconcile import tell_late

LAST_WAIT = 10.0  # seconds that a driver which was asked to stop waits for the response to a create call


def submit_due(driver: Driver) -> int:
    """Submit the job's planned batches that are due, in their order. Return how many the API accepted.

    Raises AccountStopped when the API refuses the account, or has refused it earlier and no batch was accepted since.
    """
    accepted = 0
    for batch in driver.claims(BatchState.PLANNED):
        with driver.lost_races(batch):
            try:
                accepted += submit(driver, batch)
            except RunEnded as exc:
                drop_claimed(driver, batch, Reason.RUN_ENDED, str(exc))
    return accepted


def due_soon(driver: Driver) -> list[Batch]:
    """Return the planned batches that are due now, or that only wait for the end of a planning."""
    with driver.reading() as conn:
        return batches_in(conn, driver.job_id, BatchState.PLANNED, due=soon(driver.now(), LOOK_AFTER_PLANNING))


def submit(driver: Driver, batch: Batch) -> bool:
    """Send one batch that we have claimed. Return whether the API is known to have accepted it."""
    if batch.reason == Reason.TOO_LARGE:  # the API has refused it, and it could not be dropped then
        drop_claimed(driver, batch, Reason.TOO_LARGE)
        return False
    with driver.reading() as conn:  # before the body is fetched, because the batch may wait for hours
        not_now = allowed_now(driver, conn, batch, get_run(conn, batch.run_id)).not_now
    if not_now is not None:
        _defer(driver, batch, not_now)
        return False
    with contextlib.ExitStack() as stack:
        try:
            body = stack.enter_context(driver.spool.local_copy(batch.nonce, batch.digest))
        except Stopped as exc:  # the spool cannot be reached: nothing was sent
            with driver.moving(batch) as conn:
                postpone(conn, batch, due_at=soon(driver.now(), LOOK_AGAIN), problem=str(exc))
            raise
        if body is not None:
            return _send(driver, batch, body)
    drop_claimed(driver, batch, Reason.BODY_GONE, body=False)
    return False


def _send(driver: Driver, batch: Batch, body: Path) -> bool:
    """Send a batch whose body is in this file. Return whether the API is known to have accepted it."""
    timeout = driver.settings.timeout
    ends_by = time.monotonic() + timeout
    started_at = driver.api.now()
    deadline = started_at + timedelta(seconds=timeout)
    intent = intend(driver, batch, started_at, deadline)
    if isinstance(intent, NotNow):
        _defer(driver, batch, intent)
        return False
    batch, sending = intent.batch, intent.sending

    def why_not_finish() -> str | None:
        if driver.stop.event.is_set():
            return "asked to stop"
        if driver.lease.lost:
            return "the lease ran out"
        if time.monotonic() >= ends_by or driver.api.now() >= deadline:
            return f"the upload took longer than {timeout:.0f} s"
        return None

    driver.tell(Submitting(batch=batch.id, requests=batch.requests))
    end: Accepted | Rejected | Unknown
    try:
        with BodyReader(body, why_not_finish) as reader:
            end = _post(driver, reader, batch.digest, intent.betas)
    except OSError as exc:  # raised before a byte is read: another driver finished this batch and removed the body
        end = Rejected(f"its body cannot be read: {exc.strerror}", held_back=True)
    return _record(driver, batch, sending, end)


def _defer(driver: Driver, batch: Batch, why: NotNow) -> None:
    """Pack the batch's rows into smaller batches, stop its run, or hold the batch back, as `why` says."""
    if why.pack is not None:
        pack_smaller(driver, batch, why.job, why.pack, why.reason)
    elif not why.stop or not stop_run(driver, batch.run_id, RunReason.BUDGET):
        with driver.moving(batch) as conn:
            now, wait = driver.now(), LOOK_AFTER_PLANNING if why.stop else LOOK_AGAIN
            behind = batch.run_id if why.reason in BEHIND_GATE.values() else None
            hold_back(conn, driver.job_id, why.reason, now=now, due_at=soon(now, wait), behind=behind)
        if batch.reason != why.reason:  # otherwise this has been told already
            driver.tell(HeldBack(batch=batch.id, problem=in_words(why.reason)))


def _post(driver: Driver, reader: BodyReader, digest: str, betas: Sequence[str]) -> Accepted | Rejected | Unknown:
    """POST the body in its own thread and return how that ended.

    Because of the thread, a driver that is asked to stop does not wait forever for a slow response.
    """
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
    except BaseException:  # a signal that raises: the last chunk must not be sent after we return
        driver.stop.event.set()
        raise
    finally:
        thread.join(LAST_WAIT)
    if not answer.done():
        return Unknown(f"no response came within {LAST_WAIT:.0f} s after the driver was asked to stop")
    return answer.result()


def _record(driver: Driver, batch: Batch, sending: int, end: Accepted | Rejected | Unknown) -> bool:
    """Store and tell how a create call ended. Return whether the API accepted the batch, as far as is known."""
    now = driver.now()
    if isinstance(end, Accepted):
        return _record_acceptance(driver, batch, sending, end, now)
    if isinstance(end, Unknown):
        with driver.moving(batch) as conn:
            mark_unknown(conn, batch, sending, Reason.NO_ANSWER, end.problem, grace_from=driver.api.now(), due_at=now)
        driver.tell(UnknownEnd(batch=batch.id, problem=end.problem, grace=driver.settings.grace))
        return False
    _record_rejection(driver, batch, sending, end, now)
    return False


def _record_acceptance(driver: Driver, batch: Batch, sending: int, end: Accepted, now: datetime) -> bool:
    api_id = end.batch.id
    with driver.database.write() as conn:  # without a claim: the driver that has the batch now needs the id
        is_older = is_of_before(conn, sending, api_id, end.batch.created_at)  # from a gateway's cache
        late = None if is_older else record_api_id(conn, sending, api_id, end.request_id, now)
    if is_older:
        return _record(
            driver, batch, sending, Unknown(f"the response names {api_id}, a batch that is older than this sending")
        )
    if late is not None:
        found = FoundLate(batch=batch.id, api_id=api_id, requests=batch.requests, request_id=end.request_id)
        tell_late(driver, late, found)
        return False
    with driver.moving(batch) as conn:
        mark_in_progress(conn, batch, api_id, due_at=now)
        close_circuit(conn, driver.account_id)
    driver.tell(Submitted(batch=batch.id, api_id=api_id, requests=batch.requests, request_id=end.request_id))
    return True


def _record_rejection(driver: Driver, batch: Batch, sending: int, end: Rejected, now: datetime) -> None:
    wait = 1.0 if end.held_back else end.wait * random.uniform(1.0, 1.25)  # so that many drivers do not retry at once
    with driver.moving(batch) as conn:
        due_at = soon(now, wait)
        mark_rejected(conn, batch, sending, end.problem, end.request_id, now=now, due_at=due_at)
        if end.circuit:
            open_circuit(conn, driver.account_id, end.problem, now)
    driver.tell(NotAccepted(batch=batch.id, problem=end.problem, wait=round(wait, 1)))
    if end.circuit:
        raise AccountStopped(stopped(end.problem))
    if end.too_large:
        _split(driver, replace(batch, state=BatchState.PLANNED), end.problem)
    if end.unreachable:
        raise ApiUnreachable(f"the batch could not be sent: {end.problem}")


def _split(driver: Driver, batch: Batch, problem: str) -> None:
    """Drop a batch that the API refuses as too large; its rows are sent in smaller batches.

    The rows of a batch with one request get the outcome invalid.
    """
    if batch.requests > 1:
        drop_claimed(driver, batch, Reason.TOO_LARGE)
        return
    outcome = Outcome(RowState.INVALID, "request_too_large", f"the API finds this request too large: {problem}")
    with driver.moving(batch) as conn:
        settle_alike(driver, conn, batch, outcome, first=0, last=0, sent=False)
        drop_batch(conn, batch, Reason.ROW_TOO_LARGE, problem)
    driver.tell(Dropped(batch=batch.id, problem=outcome.error_message))
