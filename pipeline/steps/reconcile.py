"""Finding out what became of a sending whose response never came, from the API's listing. Never by guessing.

A batch at the API is proven to be ours by the nonce in its results' custom_ids, which it has only once it has ended;
until then one that could be ours is watched. One that is not in a listing begun after the grace time was not accepted.

A proof is a whole, well-formed thing that says so: a JSON line with a custom_id, a listing read to its end in order.
Whatever else comes, from whatever gateway, is doubt: it is watched and said, and nothing is done because of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, islice

from anthropic.types.messages import MessageBatch

from pipeline.answer import lines
from pipeline.api import shapes
from pipeline.api.client import NotFound
from pipeline.driver.driver import Driver, leave_alone
from pipeline.errors import DatabaseError, Stopped
from pipeline.events.batches import Absent, Adopted, CountsDisagree, FoundAgain, FoundLate, Submitted, Twin, Watching
from pipeline.events.runs import Unreachable
from pipeline.reasons import Reason, in_words
from pipeline.request import packing
from pipeline.state import leases
from pipeline.state.batches import (
    SKEW,
    TWIN_WATCH,
    AbsentSending,
    Batch,
    SendingRecord,
    absent_since,
    identify,
    is_owned,
    known_nonces,
    last_sending,
    nonce_at_api,
    of_account,
)
from pipeline.state.conditions import soon
from pipeline.state.moves import (
    Late,
    mark_absent,
    mark_adopted,
    mark_found_again,
    mark_in_progress,
    mark_unknown,
    postpone,
    record_late,
    twin_problem,
)
from pipeline.states import BatchState, SendingEnd
from pipeline.steps import lost

Doubt = tuple[Reason, str]  #: what stands in the way of a batch's absence, and more of that
#: How far to both sides of its window an ended batch is asked whose it is: clocks and the listing's times may be wrong.
MARGIN = timedelta(days=1)
BEYOND = 1_000  # older batches that are read, before it is believed that no newer one stands behind them
LINES = 100  # of results that are read to find out whose a batch is: a stranger's line may stand among ours


@dataclass(frozen=True)
class Window:
    """When the API would have created the batch of a sending, and when its absence is proven. By the API's clock."""

    earliest: datetime
    latest: datetime
    absent_after: datetime

    @classmethod
    def of(cls, sending: SendingRecord, grace: timedelta) -> "Window":
        """The window of a sending of unknown end."""
        assert sending.grace_from is not None
        return cls(sending.started_at - SKEW, sending.deadline + grace, sending.grace_from + grace)

    def holds(self, listed: MessageBatch, margin: timedelta = timedelta()) -> bool:
        """Whether a batch was created within the window, or within the margin around it."""
        return self.earliest - margin <= listed.created_at <= self.latest + margin


@dataclass(frozen=True)
class Sight:
    """What the listing showed. found: the batch that is proven to be ours; begun_at: when the listing was begun."""

    begun_at: datetime
    found: MessageBatch | None = None
    doubt: Doubt | None = None


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
    try:
        sight = _look_through(driver, batch.nonce, batch.requests, window)
    except Stopped as exc:  # half a listing proves nothing; and other batches can go on meanwhile
        sight = Sight(driver.api.now(), doubt=(Reason.LISTING_UNREADABLE, str(exc)))
    if sight.found is not None:
        _adopt(driver, batch, sending, sight.found)
    elif sight.doubt is not None and sight.begun_at > sending.started_at + TWIN_WATCH:
        why = f"for 25 hours it could not be found out whether the API took it: {in_words(*sight.doubt)}"
        lost.give_up(driver, batch, why)
    elif sight.doubt is not None:
        _look_again(driver, batch, *sight.doubt)
    elif sight.begun_at > window.absent_after:
        _absent(driver, batch, sending)
    else:
        seconds = (window.absent_after - sight.begun_at).total_seconds()
        when = f"if it does not show by {window.absent_after:%H:%M:%S} UTC, it is sent again"
        _look_again(driver, batch, Reason.NOT_LISTED, f"{sending.problem}; {when}", seconds)


def _adopt(driver: Driver, batch: Batch, sending: SendingRecord, found: MessageBatch) -> None:
    with driver.moving(batch) as conn:
        mark_adopted(conn, batch, sending.id, found.id, now=driver.now())
    driver.tell(Adopted(batch=batch.id, api_id=found.id, requests=batch.requests))
    if shapes.requests_of(found) != batch.requests:
        driver.tell(CountsDisagree(batch=batch.id, requests=batch.requests, counted=shapes.requests_of(found)))


def _absent(driver: Driver, batch: Batch, sending: SendingRecord) -> None:
    """A listing after the grace time does not show it: the API did not accept this sending."""
    with driver.moving(batch) as conn:
        absent = mark_absent(conn, batch, sending.id, now=driver.now())
    if absent:
        driver.tell(Absent(batch=batch.id))


def _ended_sending(driver: Driver, batch: Batch) -> SendingRecord | None:
    """The batch's last sending, which no driver is at any more; None when it turns out to have been accepted."""
    with driver.moving(batch) as conn:
        sending = last_sending(conn, batch.id)
        if sending.api_id is not None:  # accepted, and the driver died before the batch's own move
            mark_in_progress(conn, batch, sending.api_id, due_at=driver.now())
            driver.tell(Submitted(batch=batch.id, api_id=sending.api_id, requests=batch.requests))
            return None
        if sending.end is None:  # its driver did not come to say how it ended
            now = driver.api.now()
            # one that is only suspended may wake and go on until the deadline, though never past it
            quiet_from = now if leases.is_gone(conn, sending.driver) else max(now, sending.deadline)
            reason = Reason.DRIVER_GONE
            mark_unknown(conn, batch, sending.id, reason, grace_from=quiet_from, due_at=driver.now())
            sending = last_sending(conn, batch.id)
    assert sending.end == SendingEnd.UNKNOWN
    return sending


def ask_again(driver: Driver) -> None:
    """Ask after the lost batches that are due, as long as the API keeps results; with one it knows, go on as ever.

    Those of another account are left as they are, for a driver of that one to ask.
    """
    for batch in driver.claims(BatchState.LOST, only=of_account(driver.account_id)):
        api_id = None if lost.is_past(driver, batch) else _found_again(driver, batch)
        with driver.moving(batch) as conn:
            if api_id is None:
                due_at = soon(driver.now(), lost.ASK_AGAIN)
                postpone(conn, batch, due_at=due_at, problem=batch.problem)  # it says why it was lost
                continue
            rows = mark_found_again(conn, batch, api_id, now=driver.now())
        driver.tell(FoundAgain(batch=batch.id, rows=rows))


def _found_again(driver: Driver, batch: Batch) -> str | None:
    """The id of a lost batch at the API, if it is there; after a create without a response the listing may tell."""
    with driver.reading() as conn:
        sending = last_sending(conn, batch.id)
    try:
        if sending.api_id is None:
            window = Window.of(sending, timedelta(seconds=driver.settings.grace))
            found = _look_through(driver, batch.nonce, batch.requests, window).found
            return None if found is None else found.id
        found_batch, _ = driver.api.retrieve(sending.api_id)
    except Stopped as exc:  # NotFound, too: it is asked again later, and what else is due is done now
        if not isinstance(exc, NotFound):
            driver.tell(Unreachable(problem=str(exc), wait=lost.ASK_AGAIN))
        return None
    return str(sending.api_id) if found_batch.archived_at is None else None


def refuse_unknown_bodies(driver: Driver) -> None:
    """Remove bodies that the database does not know and that were never sent; call it while planning.

    Their driver died before it had committed them. One that was sent proves that the database is older than it should
    be: restored from a backup, it would plan rows again that have been paid for. Raises DatabaseError then, and Stopped
    while that cannot be told yet.
    """
    bodies = driver.spool.bodies(driver.api.now())
    with driver.reading() as conn:
        unknown = bodies.keys() - known_nonces(conn, driver.job_id)
    for nonce in sorted(unknown):
        body, now = bodies[nonce], driver.api.now()
        window = Window(body.written_at - SKEW, now + SKEW, now)
        _, around = _unowned(driver, window)
        if around:  # else there is no need to read the whole body, maybe from afar
            found, doubt = _seen_among(driver, around, nonce, driver.spool.count_requests(nonce), window)
            _refuse_sent(driver, body.location, found, doubt)
        driver.spool.remove(nonce)


def _refuse_sent(driver: Driver, shown: str, found: MessageBatch | None, doubt: Doubt | None) -> None:
    if found is not None:
        raise DatabaseError(
            f"{driver.database.shown} does not know {found.id}, which was sent from {shown}: "
            "it seems to be restored from an older backup, and its rows would be paid for again; restore a "
            "newer one, or move the body away to go on all the same"
        )
    if doubt is not None:
        raise Stopped(
            f"the database does not know the batch of {shown}, and whether the API has it cannot be told yet: "
            f"{in_words(*doubt)}; run again later, or move the body away if it was never sent"
        )


def find_twins(driver: Driver) -> None:
    """Look for batches that show in the listing after all, though their sendings were concluded absent.

    A batch that has not been sent again is adopted; of another one the twin is reported: both are paid.
    """
    since = driver.now() - TWIN_WATCH
    with driver.reading() as conn:
        absent = absent_since(conn, driver.job_id, driver.account_id, since)
    for sending in absent:
        window = Window(sending.started_at - SKEW, sending.ended_at + TWIN_WATCH, sending.ended_at)
        try:
            found = _look_through(driver, sending.nonce, sending.requests, window).found
        except Stopped as exc:  # the next sweep looks again; what else is due is done now
            driver.tell(Unreachable(problem=str(exc), wait=0.0))
            continue
        if found is not None:
            _late(driver, sending, found.id)


def _late(driver: Driver, sending: AbsentSending, api_id: str) -> None:
    with driver.database.write() as conn:
        came = record_late(conn, sending.id, api_id, now=driver.now(), shown=True)
    if came is not None:
        tell_late(driver, came, FoundLate(batch=sending.batch_id, api_id=api_id, requests=sending.requests))


def tell_late(driver: Driver, came: Late, found: FoundLate) -> None:
    """Say what became of a batch that was accepted, or shown, after its sending had been concluded absent."""
    if came is Late.ADOPTED:
        driver.tell(found)
    else:
        driver.tell(Twin(batch=found.batch, problem=twin_problem(found.api_id)))


# -- the listing, and whose a batch is -------------------------------------------------------------------------------


def _look_through(driver: Driver, nonce: str, requests: int, window: Window) -> Sight:
    """Look for the batch of this body in the listing, which is read whole before any of it is believed."""
    begun_at, unowned = _unowned(driver, window)
    return Sight(begun_at, *_seen_among(driver, unowned, nonce, requests, window))


def _seen_among(
    driver: Driver, unowned: list[MessageBatch], nonce: str, requests: int, window: Window
) -> tuple[MessageBatch | None, Doubt | None]:
    """Which of these batches carries the nonce in its results, and what stands in the way of its absence.

    Counts only say where to look first: the API's may be wrong. requests: of the body.
    """
    doubt: Doubt | None = None
    ended = [listed for listed in unowned if listed.processing_status == "ended"]
    for listed in sorted(ended, key=lambda each: (shapes.requests_of(each) != requests, not window.holds(each))):
        try:
            if _whose(driver, listed.id) == nonce:
                return listed, None
        except NotFound:
            if window.holds(listed):
                doubt = Reason.RESULTS_UNREADABLE, f"those of {listed.id} are gone"
        except Stopped as exc:
            doubt = Reason.RESULTS_UNREADABLE, f"{listed.id}: {exc}"
    for listed in unowned:
        running = listed.processing_status != "ended" and window.holds(listed)
        if running and shapes.requests_of(listed) == requests:
            doubt = Reason.RUNNING_CANDIDATE, listed.id
    return None, doubt


def _unowned(driver: Driver, window: Window) -> tuple[datetime, list[MessageBatch]]:
    """When the listing was begun, and the batches in the window and its margin that no sending of ours owns."""
    begun_at, listed = _listed(driver, window.earliest - MARGIN)
    created = [each for each in listed if window.holds(each, MARGIN)]
    with driver.reading() as conn:
        return begun_at, [each for each in created if not is_owned(conn, each.id)]


def _listed(driver: Driver, since: datetime) -> tuple[datetime, list[MessageBatch]]:
    """When the listing was begun, and at least all batches in it that were created since then.

    It is read far beyond the first older batch, and to its very end when it is not newest first.
    """
    begun_at = driver.api.now()
    listed: list[MessageBatch] = []
    in_order, older = True, 0
    for number, page in enumerate(driver.api.pages()):
        if number == 0 and page.date is not None:
            begun_at = min(begun_at, page.date)  # the API itself says when it was
        for each in page.batches:
            in_order = in_order and not (listed and each.created_at > listed[-1].created_at)
            older = older + 1 if each.created_at < since else 0
            listed.append(each)
        if in_order and older >= BEYOND:
            break
    return begun_at, listed


def _whose(driver: Driver, api_id: str) -> str:
    """The nonce that the results of an ended batch carry, '' for a stranger's. Each batch is asked once.

    Raises NotFound when the results are gone, and Stopped when they do not tell.
    """
    with driver.reading() as conn:
        known = nonce_at_api(conn, driver.account_id, api_id)
    if known is not None:
        return known
    nonce = _nonce_in_results(driver, api_id)
    identify(driver.database, driver.account_id, api_id, nonce)
    return nonce


def _nonce_in_results(driver: Driver, api_id: str) -> str:
    strangers = 0
    with driver.api.results(api_id) as chunks:
        for custom_id in islice(_custom_ids(chunks), LINES):
            nonce = packing.nonce_of(custom_id)
            if nonce:
                return nonce
            strangers += 1
    if not strangers:
        raise Stopped("no line of its results says whose it is")
    return ""


def _custom_ids(chunks: Iterator[bytes]) -> Iterator[str]:
    """The custom_ids of the result lines that are whole; what was cut, or is no result, has none."""
    for line in chain.from_iterable(lines.split(chunks)):
        custom_id = (lines.parsed(line) or {}).get("custom_id")
        if isinstance(custom_id, str):
            yield custom_id


def _look_again(driver: Driver, batch: Batch, reason: Reason, detail: str, at_most: float = 60.0) -> None:
    wait = _pause(driver, at_most)
    with driver.moving(batch) as conn:
        postpone(conn, batch, due_at=soon(driver.now(), wait), reason=reason, problem=detail)
    driver.tell(Watching(batch=batch.id, problem=in_words(reason, detail)))


def _pause(driver: Driver, at_most: float) -> float:
    """Seconds until the listing is looked at again."""
    return max(0.05, min(at_most, driver.settings.poll if driver.settings.poll is not None else 10.0))
