"""Asking the API which batches have ended."""

from datetime import datetime

from pipeline import store
from pipeline.api import NotFound
from pipeline.driver import Driver, leave_alone
from pipeline.errors import Stopped
from pipeline.states import AT_THE_API, BatchState
from pipeline.store import Batch

LONGEST_WAIT = 60.0  # seconds between two polls of a batch, unless the user says otherwise
GROWTH = 1.5


def poll_due(driver: Driver) -> int:
    """Ask after each batch of the job that is at the API and due; how many have ended.

    A batch that cannot be asked after now is asked again later: a poll that fails changes nothing. Raises Stopped
    (ApiUnreachable, AccountStopped) when it is the API that cannot be asked.
    """
    with driver.reading() as conn:
        due = store.batches_in(conn, driver.job_id, *AT_THE_API, due=driver.now())
    ended = 0
    for batch in due:
        driver.stop.check()
        if batch.account_id != driver.account_id:
            leave_alone(driver, batch, wait=next_wait(batch.wait_seconds, None, driver.settings.poll))
            continue
        ended += _poll(driver, batch)
    return ended


def _poll(driver: Driver, batch: Batch) -> bool:
    assert batch.api_id is not None
    try:
        at_the_api, told = driver.api.retrieve(batch.api_id)
    except NotFound as exc:
        _ask_again(driver, batch, None, str(exc))
        driver.tell("not_found", batch=batch.id, problem=str(exc))
        return False
    except Stopped as exc:
        _ask_again(driver, batch, None, str(exc))
        raise
    if at_the_api.processing_status != "ended":
        if at_the_api.processing_status == "canceling" and batch.state is BatchState.IN_PROGRESS:
            with driver.transaction() as conn:
                store.mark_canceling(conn, batch)
            driver.tell("canceling", batch=batch.id)
        _ask_again(driver, batch, told, None)
        return False
    now: datetime = driver.now()
    counts = at_the_api.request_counts
    with driver.transaction() as conn:
        ended_at = at_the_api.ended_at or driver.api.now()
        store.mark_ended(conn, batch, counts.to_dict(), ended_at=ended_at, due_at=now)  # type: ignore[arg-type]
    driver.tell("ended", batch=batch.id, succeeded=counts.succeeded, requests=batch.requests)
    return True


def _ask_again(driver: Driver, batch: Batch, told: float | None, problem: str | None) -> None:
    wait = next_wait(batch.wait_seconds, told, driver.settings.poll)
    with driver.transaction() as conn:
        store.postpone(conn, batch.id, due_at=store.soon(driver.now(), wait), wait=wait, problem=problem)


def next_wait(last: float, told: float | None, fixed: float | None) -> float:
    """Seconds until the next poll. Pure. last: the last wait; told: the API's retry-after; fixed: what the user said.

    It begins with what the API says, or 5 s, and grows to a minute: most batches end within one, some take a day.
    """
    if fixed is not None:
        return fixed
    first = min(told if told is not None else 5.0, 10 * LONGEST_WAIT)
    return max(first, min(last * GROWTH, LONGEST_WAIT))
