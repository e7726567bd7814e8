"""Finding out what became of a sending whose answer never came, from the API's listing. Never by guessing.

A batch at the API is proven to be ours by the nonce in its results' custom_ids, which it has only once it has ended;
until then one that could be ours is watched. One that is not in a listing begun after the grace time was not accepted.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from anthropic.types.messages import MessageBatch
from sqlalchemy import Row

from pipeline import leases, lost, packing, store
from pipeline.api import NotFound
from pipeline.driver import Driver, leave_alone
from pipeline.errors import DatabaseError, Stopped
from pipeline.reasons import Reason, in_words
from pipeline.states import BatchState, SendingEnd
from pipeline.store import Batch

Doubt = tuple[Reason, str]  #: what stands in the way of a batch's absence, and more of that
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
    """Settle, or go on watching, every batch of the job whose sending ended in the unknown.

    One that is just being sent is claimed by its driver, as long as that lives.
    """
    for batch in driver.claims(BatchState.SUBMITTING):
        with driver.lost_races(batch):
            _reconcile(driver, batch)


def _reconcile(driver: Driver, batch: Batch) -> None:
    sending = _ended_sending(driver, batch)
    if sending is None:
        return
    if driver.account_id != sending.account_id:
        leave_alone(driver, batch, wait=_pause(driver, 60.0))
        return
    window = Window.of(sending, timedelta(seconds=driver.settings.grace))
    begun_at = driver.api.now()
    try:
        found, doubt = _look_through(driver, batch, window)
    except Stopped as exc:  # half a listing proves nothing; and other batches can go on meanwhile
        found, doubt = None, (Reason.LISTING_UNREADABLE, str(exc))
    if found is not None:
        with driver.moving(batch) as conn:
            store.mark_adopted(conn, batch, sending.id, found, now=driver.now())
        driver.tell("adopted", batch=batch.id, api_id=found, requests=batch.requests)
    elif doubt is not None and begun_at > sending.started_at + store.TWIN_WATCH:
        why = f"for 25 hours it could not be found out whether the API took it: {in_words(*doubt)}"
        lost.give_up(driver, batch, why)
    elif doubt is not None:
        _look_again(driver, batch, *doubt)
    elif begun_at > window.absent_after:
        with driver.moving(batch) as conn:
            absent = store.mark_absent(conn, batch, sending.id, now=driver.now())
        if absent:
            driver.tell("absent", batch=batch.id)
    else:
        seconds = (window.absent_after - begun_at).total_seconds()
        _look_again(driver, batch, Reason.NOT_LISTED, f"taken for not accepted in {seconds:.0f} s", seconds)


def _look_through(driver: Driver, batch: Batch, window: Window) -> tuple[str | None, Doubt | None]:
    """The id of the batch at the API that is proven to be this one, and what else stands in the way of its absence."""
    doubt: Doubt | None = None
    for candidate in _candidates(driver, batch.requests, window):
        if candidate.processing_status != "ended":
            doubt = Reason.RUNNING_CANDIDATE, candidate.id
            continue
        ours = _is_ours(driver, batch.nonce, candidate.id)
        if ours:
            return candidate.id, None
        if ours is None:
            doubt = Reason.RESULTS_UNREADABLE, candidate.id
    return None, doubt


def _ended_sending(driver: Driver, batch: Batch) -> Row[Any] | None:
    """The batch's last sending, which nobody is at any more; None when it turns out to have been accepted."""
    with driver.moving(batch) as conn:
        sending = store.last_sending(conn, batch.id)
        if sending.api_id is not None:  # accepted, and the driver died before the batch's own move
            store.mark_in_progress(conn, batch, sending.api_id, due_at=driver.now())
            driver.tell("submitted", batch=batch.id, api_id=sending.api_id, requests=batch.requests)
            return None
        if sending.end is None:  # its driver did not come to say how it ended
            now = driver.api.now()
            # one that is only suspended may wake and go on until the deadline, though never past it
            quiet_from = now if leases.is_gone(conn, sending.driver) else max(now, sending.deadline)
            reason = Reason.DRIVER_GONE
            store.mark_unknown(conn, batch, sending.id, reason, grace_from=quiet_from, due_at=driver.now())
            sending = store.last_sending(conn, batch.id)
    assert sending.end == SendingEnd.UNKNOWN
    return sending


def ask_again(driver: Driver) -> None:
    """Ask after the lost batches that are due, as long as the API keeps results; with one it knows, go on as ever.

    Those of another account are left as they are, for a driver of that one to ask.
    """
    for batch in driver.claims(BatchState.LOST, only=store.of_account(driver.account_id)):
        api_id = None
        if batch.created_at > driver.now() - store.RESULTS_KEPT:
            api_id = _found_again(driver, batch)
        with driver.moving(batch) as conn:
            if api_id is None:
                due_at = store.soon(driver.now(), lost.ASK_AGAIN)
                store.postpone(conn, batch, due_at=due_at, problem=batch.problem)  # it says why it was lost
                continue
            rows = store.mark_found_again(conn, batch, api_id, now=driver.now())
        driver.tell("found_again", batch=batch.id, rows=rows)


def _found_again(driver: Driver, batch: Batch) -> str | None:
    """The id of a lost batch at the API, if it is there; after a create without an answer the listing may tell."""
    with driver.reading() as conn:
        sending = store.last_sending(conn, batch.id)
    if sending.api_id is None:
        found, _ = _look_through(driver, batch, Window.of(sending, timedelta(seconds=driver.settings.grace)))
        return found
    try:
        found_batch, _ = driver.api.retrieve(sending.api_id)
    except NotFound:
        return None
    return str(sending.api_id) if found_batch.archived_at is None else None


def refuse_unknown_bodies(driver: Driver) -> None:
    """Remove bodies that the database does not know and that were never sent; call it while planning.

    Their driver died before it had committed them. One that was sent proves that the database is older than it should
    be: restored from a backup, it would plan rows anew that have been paid for. Raises DatabaseError then, and Stopped
    while that cannot be told yet.
    """
    bodies = driver.spool.bodies(driver.api.now())
    with driver.reading() as conn:
        unknown = bodies.keys() - store.known_nonces(conn, driver.job_id)
    for nonce in sorted(unknown):
        body, now = bodies[nonce], driver.api.now()
        window = Window(body.written_at - SKEW, now + SKEW, now)
        around = _candidates(driver, None, window)
        requests = driver.spool.count_requests(nonce) if around else 0  # which reads all of it, maybe from afar
        for candidate in (listed for listed in around if _count(listed) == requests):
            if candidate.processing_status != "ended":
                raise Stopped(
                    f"the database does not know the batch of {body.shown}; {candidate.id}, which runs at the API, "
                    "may be it; run again when that has ended"
                )
            if _is_ours(driver, nonce, candidate.id):
                raise DatabaseError(
                    f"{driver.database.shown} does not know {candidate.id}, which was sent from {body.shown}: "
                    "it seems to be restored from an older backup, and its rows would be paid for again; restore a "
                    "newer one, or move the body away to go on all the same"
                )
        driver.spool.remove(nonce)


def find_twins(driver: Driver) -> None:
    """Report batches that show in the listing after all, when their rows have been sent again: paid twice."""
    since = driver.now() - store.TWIN_WATCH
    with driver.reading() as conn:
        absent = store.absent_since(conn, driver.job_id, driver.account_id, since)
    for sending in absent:
        window = Window(sending.started_at - SKEW, sending.ended_at + store.TWIN_WATCH, sending.ended_at)
        for candidate in _candidates(driver, sending.requests, window):
            if candidate.processing_status == "ended" and _is_ours(driver, sending.nonce, candidate.id):
                problem = f"{candidate.id} was accepted, though the API's listing did not show it in time: paid twice"
                with driver.database.write() as conn:
                    new = store.record_twin(conn, sending.id, sending.batch_id, candidate.id, problem)
                if new:
                    driver.tell("twin", batch=sending.batch_id, problem=problem)


def _candidates(driver: Driver, requests: int | None, window: Window) -> list[MessageBatch]:
    """Batches at the API created in the window, with so many requests (None: any), and owned by no sending.

    The listing is read whole before any of it is believed: one that breaks off proves nothing.
    """
    created = []
    for listed in driver.api.newest_batches():
        if listed.created_at < window.earliest:
            break
        if listed.created_at <= window.latest and requests in (None, _count(listed)):
            created.append(listed)
    with driver.reading() as conn:
        return [listed for listed in created if not store.is_owned(conn, listed.id)]


def _count(listed: MessageBatch) -> int:
    counts = listed.request_counts
    return counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired


def _is_ours(driver: Driver, nonce: str, api_id: str) -> bool | None:
    """Whether the results carry this nonce, None when they are gone. A first line is enough: ids belong to one body."""
    start = b""
    try:
        with driver.api.results(api_id) as chunks:
            for chunk in chunks:
                start += chunk
                if b"\n" in start:
                    break
    except NotFound:
        return None
    return packing.nonce_of_result(start.partition(b"\n")[0]) == nonce


def _look_again(driver: Driver, batch: Batch, reason: Reason, detail: str, at_most: float = 60.0) -> None:
    wait = _pause(driver, at_most)
    with driver.moving(batch) as conn:
        store.postpone(conn, batch, due_at=store.soon(driver.now(), wait), reason=reason, problem=detail)
    driver.tell("watching", batch=batch.id, problem=in_words(reason, detail))


def _pause(driver: Driver, at_most: float) -> float:
    """Seconds until the listing is looked at again."""
    return max(0.05, min(at_most, driver.settings.poll if driver.settings.poll is not None else 10.0))
