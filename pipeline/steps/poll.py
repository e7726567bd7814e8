"""Ask the API which batches have ended. Edge: SQL, HTTP."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.driver.driver import Driver, Failures, leave_alone
from pipeline.errors import NotFound, Stopped
from pipeline.events.batches import BatchEnded, Canceling, Overdue
from pipeline.reasons import Reason, in_words
from pipeline.state.batches import Batch
from pipeline.state.conditions import soon
from pipeline.state.moves import Again, mark_canceling, mark_ended, postpone, postpone_running, wake_held_back
from pipeline.states import AT_THE_API, BatchState
from pipeline.steps import lost

if TYPE_CHECKING:
    from anthropic.types.messages import MessageBatch

CLAIMED_AT_ONCE = 100  # batches that a driver claims in one transaction; other drivers claim others
LONGEST_WAIT = 60.0  # seconds between two polls of a batch, unless the user says otherwise
GROWTH = 1.5
ENDS_WITHIN = timedelta(hours=25)  # after its creation: the API ends a batch after 24 hours, even an unfinished one
CANCELING_WITHIN = timedelta(hours=1)


def poll_due(driver: Driver) -> int:
    """Poll each batch of the job that is at the API and due, and cancel those marked for it. Return how many ended.

    A poll that fails changes no state: the batch is polled again later. Raises Stopped (ApiUnreachable, AccountStopped)
    when the API cannot be asked. ApiUnreachable for a single batch is raised after the other batches have been polled.
    """
    ended = 0
    running: list[Again] = []  # still running: only the time of their next poll is stored
    failures = Failures()
    for batch in driver.claims(*AT_THE_API, at_once=CLAIMED_AT_ONCE):
        with failures.one(), driver.lost_races(batch):
            if batch.account_id == driver.account_id:
                ended += _poll(driver, batch, running)
            else:
                leave_alone(driver, batch, wait=next_wait(batch.wait_seconds, None, driver.settings.poll))
        if len(running) >= CLAIMED_AT_ONCE:
            _store_next_polls(driver, running)
    _store_next_polls(driver, running)
    failures.raise_first()
    return ended


def _store_next_polls(driver: Driver, running: list[Again]) -> None:
    """Store when these batches are polled next and release them, in one transaction; empty the list.

    If we die before it, the next driver polls them.
    """
    if running:
        with driver.database.write() as conn:
            postpone_running(conn, running)
        running.clear()


def _poll(driver: Driver, batch: Batch, running: list[Again]) -> bool:
    """Poll one batch that we have claimed. Return whether it has ended; add it to `running` if it still runs."""
    try:
        remote, retry_after = _retrieve_or_cancel(driver, batch)
    except NotFound as exc:
        wait = next_wait(batch.wait_seconds, None, driver.settings.poll)
        lost.count_not_found(driver, batch, str(exc), wait=wait)
        return False
    except Stopped as exc:
        _ask_again(driver, batch, None, str(exc))
        raise
    if remote.processing_status == "ended":
        return _note_ended(driver, batch, remote)
    if remote.processing_status == "canceling" and batch.state is BatchState.IN_PROGRESS:
        _ask_again(driver, batch, retry_after, None, canceling=True)
        return False
    wait = next_wait(batch.wait_seconds, retry_after, driver.settings.poll)
    due_at = soon(driver.now(), wait)
    if _is_overdue(driver, batch, remote):
        with driver.moving(batch) as conn:
            postpone(conn, batch, due_at=due_at, wait=wait, reason=Reason.OVERDUE)
        if batch.reason != Reason.OVERDUE:  # otherwise this has been told already
            driver.tell(Overdue(batch=batch.id, problem=in_words(Reason.OVERDUE)))
    else:
        running.append(Again(batch, due_at, wait))
    return False


def _is_overdue(driver: Driver, batch: Batch, remote: "MessageBatch") -> bool:
    """Return whether the API should have ended the batch by now. It has not said that it has, so this is only told."""
    canceling_long = batch.canceling_at is not None and driver.now() - batch.canceling_at > CANCELING_WITHIN
    return canceling_long or driver.now() - remote.created_at > ENDS_WITHIN


def _retrieve_or_cancel(driver: Driver, batch: Batch) -> "tuple[MessageBatch, float | None]":
    """Return the batch as the API has it now, and the API's retry-after in seconds; None: the API did not say.

    Send the cancel call first if the batch is to be canceled.
    """
    assert batch.api_id is not None
    if batch.cancel and batch.state is BatchState.IN_PROGRESS:
        driver.api.cancel(batch.api_id)
    elif listed := driver.listing.take(batch.api_id):
        return listed, None
    return driver.api.retrieve(batch.api_id)


def _note_ended(driver: Driver, batch: Batch, remote: "MessageBatch") -> bool:
    """Mark a batch as ended, and return True. If its results are gone, give it up, and return False."""
    now: datetime = driver.now()
    if remote.archived_at is not None and lost.is_past(driver, batch):  # otherwise the download shows it
        lost.give_up(driver, batch, "its results are older than 29 days and gone at the API")
        return False
    counts = remote.request_counts
    with driver.moving(batch) as conn:
        ended_at = remote.ended_at or driver.api.now()
        mark_ended(conn, batch, counts.to_dict(), ended_at=ended_at, due_at=now)  # type: ignore[arg-type]
        wake_held_back(conn, now)
    driver.tell(BatchEnded(batch=batch.id, succeeded=counts.succeeded, requests=batch.requests))
    return True


def _ask_again(
    driver: Driver, batch: Batch, retry_after: float | None, problem: str | None, *, canceling: bool = False
) -> None:
    """Store when the batch is polled next, and why this poll failed; problem None: it did not fail."""
    wait = next_wait(batch.wait_seconds, retry_after, driver.settings.poll)
    due_at = soon(driver.now(), wait)
    answered = {"not_found": 0, "not_found_at": None} if problem is None else {}  # earlier 404s do not count now
    with driver.moving(batch) as conn:
        if canceling:
            mark_canceling(conn, batch, now=driver.now(), due_at=due_at)
        postpone(conn, batch, due_at=due_at, wait=wait, problem=problem, also=answered)
    if canceling:
        driver.tell(Canceling(batch=batch.id))


def next_wait(last: float, told: float | None, fixed: float | None) -> float:
    """Return the seconds until the next poll. Pure.

    last: the wait before this poll, 0 for none. told: the API's retry-after, None if it gave none. fixed: what the user
    set, None if nothing.

    The wait begins with the API's retry-after, or 5 s, and grows to a minute: most batches end within an hour, some
    take a day.
    """
    if fixed is not None:
        return fixed
    first = min(told if told is not None else 5.0, 10 * LONGEST_WAIT)
    return max(first, min(last * GROWTH, LONGEST_WAIT))
