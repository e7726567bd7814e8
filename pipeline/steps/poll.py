"""Asking the API which batches have ended."""

from datetime import datetime, timedelta

from anthropic.types.messages import MessageBatch

from pipeline.api.client import NotFound
from pipeline.driver.driver import Driver, Failures, leave_alone
from pipeline.errors import Stopped
from pipeline.events.batches import BatchEnded, Canceling, Overdue
from pipeline.reasons import Reason, in_words
from pipeline.state.batches import Batch
from pipeline.state.conditions import soon
from pipeline.state.moves import Again, mark_canceling, mark_ended, postpone, postpone_running, wake_held_back
from pipeline.states import AT_THE_API, BatchState
from pipeline.steps import lost

CLAIMED_AT_ONCE = 100  # batches that one driver takes to poll, before another one may
LONGEST_WAIT = 60.0  # seconds between two polls of a batch, unless the user says otherwise
GROWTH = 1.5
ENDS_WITHIN = timedelta(hours=25)  # of its creation: the API ends a batch after 24 hours, whatever is done by then
CANCELING_WITHIN = timedelta(hours=1)


def poll_due(driver: Driver) -> int:
    """Ask after each batch of the job that is at the API and due; how many have ended.

    A batch that cannot be asked after now is asked again later: a poll that fails changes nothing. Raises Stopped
    (ApiUnreachable, AccountStopped) when it is the API that cannot be asked.
    """
    ended = 0
    running: list[Again] = []  # that nothing is to be said of but when they are asked after again
    failures = Failures()
    for batch in driver.claims(*AT_THE_API, at_once=CLAIMED_AT_ONCE):
        with failures.one(), driver.lost_races(batch):
            if batch.account_id == driver.account_id:
                ended += _poll(driver, batch, running)
            else:
                leave_alone(driver, batch, wait=next_wait(batch.wait_seconds, None, driver.settings.poll))
        if len(running) >= CLAIMED_AT_ONCE:
            _let_run(driver, running)
    _let_run(driver, running)
    failures.raise_first()
    return ended


def _let_run(driver: Driver, running: list[Again]) -> None:
    """Let these go until they are due again, in one transaction. If we die before, the next driver asks after them."""
    if running:
        with driver.database.write() as conn:
            postpone_running(conn, running)
        running.clear()


def _poll(driver: Driver, batch: Batch, running: list[Again]) -> bool:
    try:
        at_the_api, told = _asked(driver, batch)
    except NotFound as exc:
        wait = next_wait(batch.wait_seconds, None, driver.settings.poll)
        lost.count_not_found(driver, batch, str(exc), wait=wait)
        return False
    except Stopped as exc:
        _ask_again(driver, batch, None, str(exc))
        raise
    if at_the_api.processing_status == "ended":
        return _ended(driver, batch, at_the_api)
    if at_the_api.processing_status == "canceling" and batch.state is BatchState.IN_PROGRESS:
        _ask_again(driver, batch, told, None, canceling=True)
        return False
    wait = next_wait(batch.wait_seconds, told, driver.settings.poll)
    due_at = soon(driver.now(), wait)
    if _is_overdue(driver, batch, at_the_api):
        with driver.moving(batch) as conn:
            postpone(conn, batch, due_at=due_at, wait=wait, reason=Reason.OVERDUE)
        if batch.reason != Reason.OVERDUE:  # else it has been said
            driver.tell(Overdue(batch=batch.id, problem=in_words(Reason.OVERDUE)))
    else:
        running.append(Again(batch, due_at, wait))
    return False


def _is_overdue(driver: Driver, batch: Batch, at_the_api: MessageBatch) -> bool:
    """Whether the API should have ended the batch by now. It has said so of none, so this is only told."""
    canceling_long = batch.canceling_at is not None and driver.now() - batch.canceling_at > CANCELING_WITHIN
    return canceling_long or driver.now() - at_the_api.created_at > ENDS_WITHIN


def _asked(driver: Driver, batch: Batch) -> tuple[MessageBatch, float | None]:
    """The batch as it is at the API, and the seconds after which the API would like to be asked again."""
    assert batch.api_id is not None
    if batch.cancel and batch.state is BatchState.IN_PROGRESS:
        driver.api.cancel(batch.api_id)
    elif listed := driver.listing.take(batch.api_id):
        return listed, None
    return driver.api.retrieve(batch.api_id)


def _ended(driver: Driver, batch: Batch, at_the_api: MessageBatch) -> bool:
    now: datetime = driver.now()
    if at_the_api.archived_at is not None and lost.is_past(driver, batch):  # else the download will tell
        lost.give_up(driver, batch, "its results are older than 29 days and gone at the API")
        return False
    counts = at_the_api.request_counts
    with driver.moving(batch) as conn:
        ended_at = at_the_api.ended_at or driver.api.now()
        mark_ended(conn, batch, counts.to_dict(), ended_at=ended_at, due_at=now)  # type: ignore[arg-type]
        wake_held_back(conn, now)
    driver.tell(BatchEnded(batch=batch.id, succeeded=counts.succeeded, requests=batch.requests))
    return True


def _ask_again(
    driver: Driver, batch: Batch, told: float | None, problem: str | None, *, canceling: bool = False
) -> None:
    wait = next_wait(batch.wait_seconds, told, driver.settings.poll)
    due_at = soon(driver.now(), wait)
    answered = {"not_found": 0, "not_found_at": None} if problem is None else {}  # 404s of before no longer count
    with driver.moving(batch) as conn:
        if canceling:
            mark_canceling(conn, batch, now=driver.now(), due_at=due_at)
        postpone(conn, batch, due_at=due_at, wait=wait, problem=problem, also=answered)
    if canceling:
        driver.tell(Canceling(batch=batch.id))


def next_wait(last: float, told: float | None, fixed: float | None) -> float:
    """Seconds until the next poll. Pure. last: the last wait; told: the API's retry-after; fixed: what the user said.

    It begins with what the API says, or 5 s, and grows to a minute: most batches end within one, some take a day.
    """
    if fixed is not None:
        return fixed
    first = min(told if told is not None else 5.0, 10 * LONGEST_WAIT)
    return max(first, min(last * GROWTH, LONGEST_WAIT))
