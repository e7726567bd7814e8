"""Submitting one planned batch exactly once.

The intent is committed before the POST: if we die on the line before, nothing was sent; on the line after, the batch
is found in `submitting` and `reconcile` asks the API's listing what became of it. Whatever the POST's end is, it is
committed; an end that proves nothing leaves the batch in `submitting`.
"""

import random
import threading
import time
from concurrent.futures import Future
from datetime import datetime, timedelta

from pipeline import spool, store
from pipeline.api import Accepted, Rejected, Unknown
from pipeline.driver import Driver
from pipeline.errors import AccountStopped, ApiUnreachable
from pipeline.results import Outcome
from pipeline.sink import Fixed
from pipeline.states import BatchState, RowState
from pipeline.store import Batch

LAST_WAIT = 10.0  # seconds that a driver asked to stop waits for the answer to a create that has left


def submit_due(driver: Driver) -> int:
    """Submit the job's planned batches that are due, in their order; how many the API accepted.

    Raises AccountStopped when the API refuses the account, or has refused it before and nothing changed since.
    """
    accepted = 0
    for batch in due(driver):
        driver.stop.check()
        accepted += submit(driver, batch)
    return accepted


def due(driver: Driver) -> list[Batch]:
    """The planned batches that may be submitted now."""
    with driver.reading() as conn:
        return store.batches_in(conn, driver.job_id, BatchState.PLANNED, due=driver.now())


def submit(driver: Driver, batch: Batch) -> bool:
    """Send one batch; whether the API is known to have accepted it."""
    body = driver.spool.path(batch.nonce)
    if spool.digest(body) != batch.digest:
        _drop(
            driver,
            batch,
            "its body in the spool is gone or was altered; its rows are planned anew by `run`",
            body=False,
        )
        return False
    timeout = driver.settings.timeout
    ends_by = time.monotonic() + timeout
    started_at = driver.api.now()
    deadline = started_at + timedelta(seconds=timeout)
    with driver.transaction() as conn:
        _check_circuit(driver, store.circuit(conn, driver.account_id))
        sending = store.begin_sending(
            conn,
            batch,
            driver.account_id,
            lease_token=driver.lease.token,
            started_at=started_at,
            deadline=deadline,
            due_at=driver.now(),
        )

    def may_finish() -> str | None:
        if driver.stop.event.is_set():
            return "asked to stop"
        if driver.lease.lost:
            return "the lease ran out"
        if time.monotonic() >= ends_by or driver.api.now() >= deadline:
            return f"the upload took longer than {timeout:.0f} s"
        return None

    driver.tell("submitting", batch=batch.id, requests=batch.requests)
    with spool.BodyReader(body, may_finish) as reader:
        end = _post(driver, reader)
    return _record(driver, batch, sending, end)


def _post(driver: Driver, reader: spool.BodyReader) -> Accepted | Rejected | Unknown:
    """POST the body in a thread of its own, so that a driver asked to stop need not wait for a slow answer for ever."""
    answer: Future[Accepted | Rejected | Unknown] = Future()

    def create() -> None:
        try:
            answer.set_result(driver.api.create(reader))
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
        with driver.database.write() as conn:  # without the lease: whoever holds it by now needs to know this
            store.record_api_id(conn, sending, end.batch.id, end.request_id, now)
        with driver.transaction() as conn:
            store.mark_in_progress(conn, batch.id, end.batch.id, due_at=now)
            store.close_circuit(conn, driver.account_id)
        driver.tell("submitted", batch=batch.id, api_id=end.batch.id, requests=batch.requests)
        return True
    if isinstance(end, Unknown):
        with driver.transaction() as conn:
            store.mark_unknown(conn, batch.id, sending, end.problem, grace_from=driver.api.now(), due_at=now)
        driver.tell("unknown_end", batch=batch.id, problem=end.problem, grace=driver.settings.grace)
        return False
    _record_rejection(driver, batch, sending, end, now)
    return False


def _record_rejection(driver: Driver, batch: Batch, sending: int, end: Rejected, now: datetime) -> None:
    wait = 1.0 if end.held_back else end.wait * random.uniform(1.0, 1.25)  # so that many drivers spread
    with driver.transaction() as conn:
        due_at = store.soon(now, wait)
        store.mark_rejected(conn, batch.id, sending, end.problem, end.request_id, now=now, due_at=due_at)
        if end.circuit:
            store.open_circuit(conn, driver.account_id, end.problem, now)
    driver.tell("rejected", batch=batch.id, problem=end.problem, wait=round(wait, 1))
    if end.circuit:
        raise AccountStopped(_stopped(end.problem))
    if end.too_large:
        _split(driver, batch, end.problem)
    if end.unreachable:
        raise ApiUnreachable(f"the batch could not be sent: {end.problem}")


def _check_circuit(driver: Driver, cause: str | None) -> None:
    if cause is not None and not driver.tries_account:
        raise AccountStopped(_stopped(cause))
    driver.tries_account = False  # one try for each explicit run; success closes the circuit


def _stopped(cause: str) -> str:
    return (
        f"submitting has stopped, for the API refuses the account or the job as a whole: {cause}; "
        "put that right and run the job again: it tries one batch, and goes on when that is accepted"
    )


def _drop(driver: Driver, batch: Batch, why: str, *, body: bool) -> None:
    """Give a planned batch up; its rows wait. body: whether their requests can still be read from its body.

    Not while planning is under way, which has judged its rows as being in it: then it is looked at again soon.
    """
    with driver.transaction() as conn:
        if driver.planning:
            store.postpone(conn, batch.id, due_at=store.soon(driver.now(), 1.0), problem=why)
            return
        store.drop(conn, batch, why)
        if not body:
            store.forget_body(conn, batch.id)
    driver.tell("dropped", batch=batch.id, problem=why)


def _split(driver: Driver, batch: Batch, problem: str) -> None:
    """A batch too large for the API: its rows go in smaller ones, and a single row that is too large is invalid."""
    if batch.requests > 1:
        _drop(driver, batch, store.TOO_LARGE, body=True)
        return
    outcome = Outcome(RowState.INVALID, "request_too_large", f"the API finds this request too large: {problem}")
    with driver.transaction() as conn:
        rows = store.batch_rows(conn, batch.id, 0, 0)
        settled = [store.Settled(number, outcome.state, outcome.error_type, again=False) for number, *_ in rows]
        store.mark_outcomes(conn, batch, 0, 0, settled)
        fixed = [Fixed(batch.recipe, 0.0, n + 1, None, None, batch.run_id, driver.now()) for _, _, n, _, _ in rows]
        results = [driver.sink.row(r[3], r[4], outcome, f) for r, f in zip(rows, fixed, strict=True)]
        driver.sink.write(conn, results)
        store.drop(conn, batch, problem)
    driver.tell("dropped", batch=batch.id, problem=outcome.error_message)
