"""Find out from the API's listing what became of a create call that had no response. Edge: SQL, HTTP, the spool.

Nothing is guessed. A batch at the API is proven to be ours by the nonce in the custom_ids of its results, which exist
only after it has ended. Until then, a batch that could be ours is watched. A batch that is missing from a listing begun
after the grace time was not accepted.

A proof is complete and well-formed: a JSON line with a custom_id, or a listing that was read to its end in order.
Anything else, whichever gateway it comes from, is a doubt: it is watched and told, and nothing is done because of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import TYPE_CHECKING

from pipeline.answer import lines
from pipeline.api import shapes
from pipeline.driver.driver import Driver, leave_alone
from pipeline.errors import DatabaseError, NotFound, Stopped
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

if TYPE_CHECKING:
    from anthropic.types.messages import MessageBatch

Doubt = tuple[Reason, str]  #: why a batch is not proven to be absent, and a detail
#: How long before or after the window an ended batch is still checked: clocks and the listing's times may be wrong.
MARGIN = timedelta(days=1)
BEYOND = 1_000  # older batches in a row that are read before we believe that no newer one follows
LINES = 100  # of results that are read to find out whose a batch is: a foreign line may be among ours


@dataclass(frozen=True)
class Window:
    """The times between which the API would have created the batch of a sending. By the API's clock.

    absent_after: if a listing that was begun later does not show the batch, its absence is proven.
    """

    earliest: datetime
    latest: datetime
    absent_after: datetime

    @classmethod
    def of(cls, sending: SendingRecord, grace: timedelta) -> "Window":
        """Return the window of a sending whose end is unknown. grace: the grace time."""
        assert sending.grace_from is not None
        return cls(sending.started_at - SKEW, sending.deadline + grace, sending.grace_from + grace)

    def holds(self, listed: "MessageBatch", margin: timedelta = timedelta()) -> bool:
        """Return whether a batch was created within the window, or at most the margin before or after it."""
        return self.earliest - margin <= listed.created_at <= self.latest + margin


@dataclass(frozen=True)
class Sight:
    """What a listing showed.

    begun_at: when its reading was begun, by the API's clock. found: the batch that is proven to be ours; None: there is
    none. doubt: why the absence of our batch is not proven; None: no doubt.
    """

    begun_at: datetime
    found: "MessageBatch | None" = None
    doubt: Doubt | None = None


def reconcile_due(driver: Driver) -> None:
    """Decide whether the API accepted the job's batches whose sending has no known end, or continue to watch them.

    A batch that is being sent now is left out: it stays claimed by its driver as long as that driver lives.
    """
    for batch in driver.claims(BatchState.SUBMITTING):
        with driver.lost_races(batch):
            _reconcile(driver, batch)


def _reconcile(driver: Driver, batch: Batch) -> None:
    """Look for one batch in the listing: adopt it, note its absence, give it up, or look again later."""
    sending = _ended_sending(driver, batch)
    if sending is None:
        return
    if driver.account_id != sending.account_id:
        leave_alone(driver, batch, wait=_pause(driver, 60.0))
        return
    window = Window.of(sending, timedelta(seconds=driver.settings.grace))
    try:
        sight = _search_listing(driver, batch.nonce, batch.requests, window)
    except Stopped as exc:  # half a listing proves nothing; other batches need not wait for it
        sight = Sight(driver.api.now(), doubt=(Reason.LISTING_UNREADABLE, str(exc)))
    if sight.found is not None:
        _adopt(driver, batch, sending, sight.found)
    elif sight.doubt is not None and sight.begun_at > sending.started_at + TWIN_WATCH:
        why = f"for 25 hours it could not be found out whether the API took it: {in_words(*sight.doubt)}"
        lost.give_up(driver, batch, why)
    elif sight.doubt is not None:
        _look_again(driver, batch, *sight.doubt)
    elif sight.begun_at > window.absent_after:
        _note_absent(driver, batch, sending)
    else:
        seconds = (window.absent_after - sight.begun_at).total_seconds()
        when = f"if the listing does not show the batch by {window.absent_after:%H:%M:%S} UTC, it is sent again"
        _look_again(driver, batch, Reason.NOT_LISTED, f"{sending.problem}; {when}", seconds)


def _adopt(driver: Driver, batch: Batch, sending: SendingRecord, found: "MessageBatch") -> None:
    """Take the batch found at the API as the result of this sending."""
    with driver.moving(batch) as conn:
        mark_adopted(conn, batch, sending.id, found.id, now=driver.now())
    driver.tell(Adopted(batch=batch.id, api_id=found.id, requests=batch.requests))
    if shapes.requests_of(found) != batch.requests:
        driver.tell(CountsDisagree(batch=batch.id, requests=batch.requests, counted=shapes.requests_of(found)))


def _note_absent(driver: Driver, batch: Batch, sending: SendingRecord) -> None:
    """Move the batch back to planned: a listing after the grace time does not show it, so the API did not accept it."""
    with driver.moving(batch) as conn:
        absent = mark_absent(conn, batch, sending.id, now=driver.now())
    if absent:
        driver.tell(Absent(batch=batch.id))


def _ended_sending(driver: Driver, batch: Batch) -> SendingRecord | None:
    """Return the batch's last sending, which no driver works on now, after noting its end as unknown.

    None: the API has accepted it, and the batch is in progress now.
    """
    with driver.moving(batch) as conn:
        sending = last_sending(conn, batch.id)
        if sending.api_id is not None:  # accepted: the driver died before it moved the batch
            mark_in_progress(conn, batch, sending.api_id, due_at=driver.now())
            driver.tell(Submitted(batch=batch.id, api_id=sending.api_id, requests=batch.requests))
            return None
        if sending.end is None:  # its driver stopped before it noted the end
            now = driver.api.now()
            # a driver that is only suspended may wake and continue to send until the deadline, but not after it
            quiet_from = now if leases.is_gone(conn, sending.driver) else max(now, sending.deadline)
            reason = Reason.DRIVER_GONE
            mark_unknown(conn, batch, sending.id, reason, grace_from=quiet_from, due_at=driver.now())
            sending = last_sending(conn, batch.id)
    assert sending.end == SendingEnd.UNKNOWN
    return sending


def ask_again(driver: Driver) -> None:
    """Ask the API for the lost batches that are due, as long as it keeps results; put those it has back in progress.

    Batches of another account stay unchanged: only a driver of that account can ask for them.
    """
    for batch in driver.claims(BatchState.LOST, only=of_account(driver.account_id)):
        api_id = None if lost.is_past(driver, batch) else _api_id_again(driver, batch)
        with driver.moving(batch) as conn:
            if api_id is None:
                due_at = soon(driver.now(), lost.ASK_AGAIN)
                postpone(conn, batch, due_at=due_at, problem=batch.problem)  # unchanged: it says why the batch was lost
                continue
            rows = mark_found_again(conn, batch, api_id, now=driver.now())
        driver.tell(FoundAgain(batch=batch.id, rows=rows))


def _api_id_again(driver: Driver, batch: Batch) -> str | None:
    """Return the API's id of a lost batch; None when the API does not have its results, or cannot be asked now.

    If its create call had no response, the listing is searched for the batch.
    """
    with driver.reading() as conn:
        sending = last_sending(conn, batch.id)
    try:
        if sending.api_id is None:
            window = Window.of(sending, timedelta(seconds=driver.settings.grace))
            found = _search_listing(driver, batch.nonce, batch.requests, window).found
            return None if found is None else found.id
        found_batch, _ = driver.api.retrieve(sending.api_id)
    except Stopped as exc:  # NotFound, too: the API is asked again later; other work does not wait
        if not isinstance(exc, NotFound):
            driver.tell(Unreachable(problem=str(exc), wait=lost.ASK_AGAIN))
        return None
    return str(sending.api_id) if found_batch.archived_at is None else None


def refuse_unknown_bodies(driver: Driver) -> None:
    """Remove bodies that the database does not know and that were never sent. Call it under the lease on planning.

    The driver that wrote such a body died before it committed the batch. A body that was sent proves that the database
    is too old: it was restored from a backup, and would plan rows again that have been paid for. Raises DatabaseError
    for such a body, and Stopped while it is not known whether the body was sent.
    """
    there = driver.spool.bodies(driver.now())
    with driver.reading() as conn:
        unknown = there.keys() - known_nonces(conn, driver.job_id)
    bodies = driver.spool.bodies(driver.api.now()) if unknown else {}  # with times by the API's clock
    for nonce in sorted(unknown & bodies.keys()):
        body, now = bodies[nonce], driver.api.now()
        window = Window(body.written_at - SKEW, now + SKEW, now)
        _, around = _unowned(driver, window)
        if around:  # otherwise the body need not be read, possibly from a remote spool
            found, doubt = _search_batches(driver, around, nonce, driver.spool.count_requests(nonce), window)
            _refuse_sent(driver, body.location, found, doubt)
        driver.spool.remove(nonce)


def _refuse_sent(driver: Driver, shown: str, found: "MessageBatch | None", doubt: Doubt | None) -> None:
    if found is not None:
        raise DatabaseError(
            f"{driver.database.shown} does not know {found.id}, which was sent from {shown}: "
            "it seems to be restored from an older backup, and rows of that batch would be paid for again; restore a "
            "newer backup, or move the body away to continue anyway"
        )
    if doubt is not None:
        raise Stopped(
            f"the database does not know the body {shown}, and it is not known yet whether it was sent: "
            f"{in_words(*doubt)}; run again later, or move the body away if it was never sent"
        )


def find_twins(driver: Driver) -> None:
    """Look in the listing for batches whose sendings were presumed absent.

    A batch that was not sent again is adopted. If it was sent again, the found one is reported as a twin, because both
    are paid.
    """
    since = driver.now() - TWIN_WATCH
    with driver.reading() as conn:
        absent = absent_since(conn, driver.job_id, driver.account_id, since)
    for sending in absent:
        window = Window(sending.started_at - SKEW, sending.ended_at + TWIN_WATCH, sending.ended_at)
        try:
            found = _search_listing(driver, sending.nonce, sending.requests, window).found
        except Stopped as exc:  # the next sweep looks again; other work does not wait
            driver.tell(Unreachable(problem=str(exc), wait=0.0))
            continue
        if found is not None:
            _record_late(driver, sending, found.id)


def _record_late(driver: Driver, sending: AbsentSending, api_id: str) -> None:
    with driver.database.write() as conn:
        late = record_late(conn, sending.id, api_id, now=driver.now(), shown=True)
    if late is not None:
        tell_late(driver, late, FoundLate(batch=sending.batch_id, api_id=api_id, requests=sending.requests))


def tell_late(driver: Driver, late: Late, found: FoundLate) -> None:
    """Tell what became of a batch that turned out to be accepted after its sending had been presumed absent."""
    if late is Late.ADOPTED:
        driver.tell(found)
    else:
        driver.tell(Twin(batch=found.batch, problem=twin_problem(found.api_id)))


# -- the listing, and the owner of a batch ---------------------------------------------------------------------------


def _search_listing(driver: Driver, nonce: str, requests: int, window: Window) -> Sight:
    """Look in the listing for the batch whose body has this nonce. The whole listing is read before it is believed.

    requests: of the body.
    """
    begun_at, unowned = _unowned(driver, window)
    return Sight(begun_at, *_search_batches(driver, unowned, nonce, requests, window))


def _search_batches(
    driver: Driver, unowned: "list[MessageBatch]", nonce: str, requests: int, window: Window
) -> "tuple[MessageBatch | None, Doubt | None]":
    """Return which of these batches has the nonce in its results, and why its absence is not proven.

    (None, None): none of them is the batch of this nonce. requests: of the body. For ended batches, the API's counts
    only decide which results are read first, because the counts may be wrong.
    """
    doubt: Doubt | None = None
    ended = [listed for listed in unowned if listed.processing_status == "ended"]
    for listed in sorted(ended, key=lambda each: (shapes.requests_of(each) != requests, not window.holds(each))):
        try:
            if _nonce_of(driver, listed.id) == nonce:
                return listed, None
        except NotFound:
            if window.holds(listed):
                doubt = Reason.RESULTS_UNREADABLE, f"the results of {listed.id} are gone"
        except Stopped as exc:
            doubt = Reason.RESULTS_UNREADABLE, f"{listed.id}: {exc}"
    for listed in unowned:
        running = listed.processing_status != "ended" and window.holds(listed)
        if running and shapes.requests_of(listed) == requests:
            doubt = Reason.RUNNING_CANDIDATE, listed.id
    return None, doubt


def _unowned(driver: Driver, window: Window) -> "tuple[datetime, list[MessageBatch]]":
    """Return when the listing was begun, and its batches in the window and margin that none of our sendings owns."""
    begun_at, listed = _listed(driver, window.earliest - MARGIN)
    created = [each for each in listed if window.holds(each, MARGIN)]
    with driver.reading() as conn:
        return begun_at, [each for each in created if not is_owned(conn, each.id)]


def _listed(driver: Driver, since: datetime) -> "tuple[datetime, list[MessageBatch]]":
    """Return when the listing was begun, and all its batches created after `since`, with some older ones.

    The listing is read far beyond the first older batch, and to its very end when it is not sorted newest first.
    """
    begun_at = driver.api.now()
    listed: list[MessageBatch] = []
    in_order, older = True, 0
    for number, page in enumerate(driver.api.pages()):
        if number == 0 and page.date is not None:
            begun_at = min(begun_at, page.date)  # the API's own time of this page
        for each in page.batches:
            in_order = in_order and not (listed and each.created_at > listed[-1].created_at)
            older = older + 1 if each.created_at < since else 0
            listed.append(each)
        if in_order and older >= BEYOND:
            break
    return begun_at, listed


def _nonce_of(driver: Driver, api_id: str) -> str:
    """Return the nonce in the results of an ended batch; '' when it is not ours. Each batch is asked once.

    Raises NotFound when the results are gone, and Stopped when they do not show whose batch it is.
    """
    with driver.reading() as conn:
        known = nonce_at_api(conn, driver.account_id, api_id)
    if known is not None:
        return known
    nonce = _nonce_in_results(driver, api_id)
    identify(driver.database, driver.account_id, api_id, nonce)
    return nonce


def _nonce_in_results(driver: Driver, api_id: str) -> str:
    """Return the first nonce of ours in the results of a batch; '' if they name only requests of others."""
    foreign = 0
    with driver.api.results(api_id) as chunks:
        for custom_id in islice(_custom_ids(chunks), LINES):
            nonce = packing.nonce_of(custom_id)
            if nonce:
                return nonce
            foreign += 1
    if not foreign:
        raise Stopped("no line of its results has a custom_id")
    return ""


def _custom_ids(chunks: Iterator[bytes]) -> Iterator[str]:
    """Yield the custom_ids of complete result lines. Lines that are cut or are no results are skipped."""
    for line in chain.from_iterable(lines.split_lines(chunks)):
        custom_id = (lines.parse_line(line) or {}).get("custom_id")
        if isinstance(custom_id, str):
            yield custom_id


def _look_again(driver: Driver, batch: Batch, reason: Reason, detail: str, at_most: float = 60.0) -> None:
    wait = _pause(driver, at_most)
    with driver.moving(batch) as conn:
        postpone(conn, batch, due_at=soon(driver.now(), wait), reason=reason, problem=detail)
    driver.tell(Watching(batch=batch.id, problem=in_words(reason, detail)))


def _pause(driver: Driver, at_most: float) -> float:
    """Return the seconds until the listing is read again, at most `at_most`."""
    return max(0.05, min(at_most, driver.settings.poll if driver.settings.poll is not None else 10.0))
