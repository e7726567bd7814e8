"""Finding out what became of a sending whose answer never came, from the API's listing. Never by guessing.

A batch at the API is proven to be ours by the nonce in its results' custom_ids, which it has only once it has ended;
until then one that could be ours is watched. One that is not in a listing begun after the grace time was not accepted.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from anthropic.types.messages import MessageBatch
from sqlalchemy import Row

from pipeline import packing, store
from pipeline.api import NotFound
from pipeline.driver import Driver, leave_alone
from pipeline.states import BatchState, SendingEnd
from pipeline.store import Batch

SKEW = timedelta(seconds=120)  # how far the API's created_at may lie before our intent


@dataclass(frozen=True)
class Window:
    """When the API would have created the batch of a sending, and when its absence is proven. By the API's clock."""

    earliest: datetime
    latest: datetime
    absent_after: datetime

    @classmethod
    def of(cls, sending: Row[Any], grace: timedelta) -> "Window":
        """The window of a sending of unknown end."""
        return cls(sending.started_at - SKEW, sending.deadline + grace, sending.grace_from + grace)


def reconcile_due(driver: Driver) -> None:
    """Settle, or go on watching, every batch of the job that is in `submitting`.

    Call it while no thread of this driver submits: a sending without an end is then one whose driver died.
    """
    with driver.reading() as conn:
        waiting = store.batches_in(conn, driver.job_id, BatchState.SUBMITTING, due=driver.now())
    for batch in waiting:
        driver.stop.check()
        _reconcile(driver, batch)


def _reconcile(driver: Driver, batch: Batch) -> None:
    with driver.transaction() as conn:
        sending = store.last_sending(conn, batch.id)
        if sending.api_id is not None:  # accepted, and the driver died before the batch's own move
            store.mark_in_progress(conn, batch.id, sending.api_id, due_at=driver.now())
            driver.tell("submitted", batch=batch.id, api_id=sending.api_id, requests=batch.requests)
            return
        if sending.end is None:  # its driver did not come to say how it ended, and we hold the lease now
            now = driver.api.now()
            # a driver that is only suspended may wake and go on until the deadline, though never past it
            quiet_from = now if driver.lease.is_gone(sending.lease_token) else max(now, sending.deadline)
            problem = "the driver that sent it is gone"
            store.mark_unknown(conn, batch.id, sending.id, problem, grace_from=quiet_from, due_at=driver.now())
            sending = store.last_sending(conn, batch.id)
    assert sending.end == SendingEnd.UNKNOWN
    if driver.account_id != sending.account_id:
        leave_alone(driver, batch, wait=_pause(driver, 60.0))
        return
    window = Window.of(sending, timedelta(seconds=driver.settings.grace))
    begun_at = driver.api.now()
    running = False
    for candidate in _candidates(driver, batch, window):
        if candidate.processing_status != "ended":
            running = True
        elif _is_ours(driver, batch, candidate.id):
            with driver.transaction() as conn:
                store.mark_adopted(conn, batch.id, sending.id, candidate.id, now=driver.now())
            driver.tell("adopted", batch=batch.id, api_id=candidate.id, requests=batch.requests)
            return
    if running:
        _look_again(driver, batch, "a batch that may be it is running at the API; its results will tell")
    elif begun_at > window.absent_after:
        with driver.transaction() as conn:
            store.mark_absent(conn, batch.id, sending.id, now=driver.now())
        driver.tell("absent", batch=batch.id)
    else:
        seconds = (window.absent_after - begun_at).total_seconds()
        _look_again(driver, batch, f"not in the API's listing; taken for not accepted in {seconds:.0f} s", seconds)


def _candidates(driver: Driver, batch: Batch, window: Window) -> list[MessageBatch]:
    """Batches at the API that could be this one: created in the window, of its count, and owned by no sending.

    The listing is read whole before any of it is believed: one that breaks off proves nothing.
    """
    created = []
    for listed in driver.api.newest_batches():
        if listed.created_at < window.earliest:
            break
        if listed.created_at <= window.latest and _count(listed) == batch.requests:
            created.append(listed)
    with driver.reading() as conn:
        return [listed for listed in created if not store.is_owned(conn, listed.id)]


def _count(listed: MessageBatch) -> int:
    counts = listed.request_counts
    return counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired


def _is_ours(driver: Driver, batch: Batch, api_id: str) -> bool:
    """Whether the results carry our nonce; the first line is enough, for a custom_id belongs to one body."""
    start = b""
    try:
        with driver.api.results(api_id) as chunks:
            for chunk in chunks:
                start += chunk
                if b"\n" in start:
                    break
    except NotFound:
        return False  # its results can no longer be read: it proves nothing
    return packing.nonce_of_result(start.partition(b"\n")[0]) == batch.nonce


def _look_again(driver: Driver, batch: Batch, why: str, at_most: float = 60.0) -> None:
    wait = _pause(driver, at_most)
    with driver.transaction() as conn:
        store.postpone(conn, batch.id, due_at=store.soon(driver.now(), wait), problem=why)
    driver.tell("watching", batch=batch.id, problem=why)


def _pause(driver: Driver, at_most: float) -> float:
    """Seconds until the listing is looked at again."""
    return max(0.05, min(at_most, driver.settings.poll if driver.settings.poll is not None else 10.0))
