"""Rows into batches, without the source: sent again from the spool, packed smaller, or taken out of one not sent yet.

All of it is planning, and done under the lease on the job's planning, so that no two drivers pack the same rows and
nothing drops a batch while somebody judges its rows by being in it. A row is claimed by a guarded update besides: if
it is not free, the body is discarded.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import orjson
from sqlalchemy import Row

from pipeline import packing, store
from pipeline.budget import Bound
from pipeline.driver import Driver
from pipeline.errors import Busy, LostRace, PipelineError
from pipeline.job import Job
from pipeline.spool import BodyWriter, digest
from pipeline.states import BatchState, RunReason, RunState
from pipeline.store import Batch

LOOK_AFTER_PLANNING = 1.0  # seconds until a batch that may not be dropped while somebody plans is tried again

Sendable = tuple[int, bytes, bytes]  #: a row's number, the hash of its params, and the params


class Packer:
    """Fills bodies one after the other and commits each as a planned batch."""

    def __init__(
        self,
        driver: Driver,
        job: Job,
        run_id: int,
        recipe: str,
        *,
        max_requests: int | None = None,
        first: int | None = None,
    ) -> None:
        """max_requests: of a batch, when that is fewer than the job says; first: of the first one, when fewer still."""
        self._driver, self._job, self._run_id, self._recipe = driver, job, run_id, recipe
        limits = job.limits
        most = (limits.max_batch_requests, limits.max_in_flight_requests, driver.settings.max_in_flight)
        self._max_requests = min(*most, max_requests or limits.max_batch_requests)
        self._first = min(first or self._max_requests, self._max_requests)
        self._body: BodyWriter | None = None
        self.bound: Bound | None = None  #: what a request of the next batches may cost at most

    def add(self, rows: Iterable[Sendable]) -> Iterator[int]:
        """Put rows' requests into bodies; yields the number of each batch that this fills."""
        dedupe, limits = self._job.request.dedupe, self._job.limits
        for row in rows:
            if self._body is not None and not self._body.add(*row, dedupe=dedupe):
                yield from self.finish()
            if self._body is None:
                contents = packing.Packing(packing.new_nonce(), self._first, limits.max_batch_bytes)
                self._first = self._max_requests
                self._body = BodyWriter(self._driver.spool, contents)
                fits = self._body.add(*row, dedupe=dedupe)
                assert fits, "planning sorts out what is larger than a batch"

    def finish(self) -> Iterator[int]:
        """Commit what is in the present body, if anything, and yield the batch's number."""
        body = self._body
        if body is None:
            return
        body.finish()
        try:
            with self._driver.planning_transaction(self._run_id) as conn:
                batch = store.add_batch(
                    conn,
                    job_id=self._driver.job_id,
                    run_id=self._run_id,
                    recipe=self._recipe,
                    contents=body.contents,
                    digest=body.digest,
                    bound=self.bound,
                    now=self._driver.now(),
                )
        except PipelineError:
            self.discard()
            raise
        self._body = None
        contents = body.contents
        self._driver.tell(
            "planned", batch=batch, requests=contents.requests, rows=len(contents.rows), bytes=contents.size
        )
        yield batch

    def discard(self) -> None:
        """Give up the present body; its rows stay pending."""
        if self._body is not None:
            self._body.discard()
            self._body = None


def send_again(driver: Driver, job: Job, run_id: int, recipe: str, *, first: int | None = None) -> Iterator[int]:
    """Pack the waiting rows of a run whose requests stand in the spool into new batches; yields their numbers.

    These are rows that go again as they are, and rows of dropped batches. The source is not read. first: how many
    requests the first batch may carry, when only so many fit into what may be spent.
    """
    with driver.reading() as conn:
        too_large = store.smallest_too_large(conn, run_id)
    at_most = None if too_large is None else max(1, too_large // 2)
    packer = Packer(driver, job, run_id, recipe, max_requests=at_most, first=first)
    after = (0, -1, 0)
    sound: set[int] = set()  # bodies whose digest has been checked
    try:
        while True:
            with driver.reading() as conn:
                rows = store.rows_to_send_again(conn, run_id, after=after, limit=1_000)
            if not rows:
                break
            for body in dict.fromkeys(row.body_id for row in rows):
                of_body = [row for row in rows if row.body_id == body]
                sendable = _read_again(driver, body, of_body, sound)
                if sendable:
                    yield from _bounded(packer, sendable[0][2])
                    yield from packer.add(sendable)
            after = (rows[-1].body_id, rows[-1].body_n, rows[-1].id)
        yield from packer.finish()
    finally:
        packer.discard()


def _read_again(driver: Driver, body: int, rows: Sequence[Row[Any]], sound: set[int]) -> list[Sendable]:
    """Rows with their params out of one body; none if the body is damaged, and then they wait to be planned anew.

    sound: bodies known to be whole; this one is added when it is.
    """
    nonce = rows[0].nonce
    if body not in sound and digest(driver.spool.path(nonce)) != rows[0].digest:
        with driver.planning_transaction() as conn:
            store.forget_body(conn, body)
        driver.tell("body_lost", batch=body)
        return []
    sound.add(body)
    positions = list(dict.fromkeys(row.body_n for row in rows))
    params = dict(zip(positions, driver.spool.params(nonce, positions), strict=True))
    return [(row.id, row.sent_hash, params[row.body_n]) for row in rows]


def _bounded(packer: Packer, params: bytes) -> Iterator[int]:
    """Let a batch carry only requests with one bound of their cost; all requests of one body have the same."""
    bound = Bound.of(orjson.loads(params))
    if bound != packer.bound:
        yield from packer.finish()
        packer.bound = bound


def waits(driver: Driver, run_id: int) -> bool:
    """Whether the run has rows to send again."""
    with driver.reading() as conn:
        return bool(store.rows_to_send_again(conn, run_id, after=(0, -1, 0), limit=1))


def drop(driver: Driver, batch: Batch, why: str, *, body: bool) -> bool:
    """Give up a planned batch that we have claimed; its rows wait. False while somebody plans: then a second later.

    body: whether the requests can still be read from its body.
    """
    try:
        with driver.planning(), driver.planning_transaction() as conn:
            store.check_claim(conn, batch)
            store.drop(conn, batch, why)
            if not body:
                store.forget_body(conn, batch.id)
    except Busy:
        with driver.moving(batch) as conn:
            store.postpone(conn, batch, due_at=store.soon(driver.now(), LOOK_AFTER_PLANNING), problem=why)
        return False
    driver.tell("dropped", batch=batch.id, problem=why)
    return True


def pack_smaller(driver: Driver, batch: Batch, job: Job, requests: int, why: str) -> None:
    """Put the rows of a planned batch that we have claimed into a batch of so many requests, and the rest into others.

    If we die in between, its rows wait, and are packed as ever by whoever comes next.
    """
    if drop(driver, batch, why, body=True):
        with suppress(Busy), driver.planning():
            for _ in send_again(driver, job, batch.run_id, batch.recipe, first=requests):
                driver.stop.check()


def stop_run(driver: Driver, run_id: int, reason: RunReason) -> bool:
    """End a run before its end: what it has not sent yet is not sent. False while somebody plans the job."""
    try:
        with driver.planning():
            with driver.planning_transaction() as conn:
                ended = store.end_run(conn, run_id, RunState.INCOMPLETE, reason=reason, now=driver.now())
            drop_planned(driver, f"its run ended: {reason}", {run_id})
    except Busy:
        return False
    if ended:
        driver.tell("incomplete", run=run_id, reason=reason)
    return True


def drop_of_ended_runs(driver: Driver) -> None:
    """Drop the batches that came back from being sent when their run had been ended. Under the lease on planning."""
    with driver.reading() as conn:
        planned = store.batches_in(conn, driver.job_id, BatchState.PLANNED)
        ended = {batch.run_id for batch in planned} - {run.id for run in store.open_runs(conn, driver.job_id)}
    if ended:
        drop_planned(driver, "its run has ended", ended)


def drop_planned(driver: Driver, why: str, run_ids: Container[int] | None = None) -> None:
    """Drop the planned batches of the job, or of some runs; rows go back to waiting. Under the lease on planning."""
    with driver.reading() as conn:
        planned = store.batches_in(conn, driver.job_id, BatchState.PLANNED)
    for batch in planned:
        if run_ids is None or batch.run_id in run_ids:
            with suppress(LostRace), driver.planning_transaction() as conn:  # one that is being sent stays
                store.drop(conn, batch, why)
                driver.tell("dropped", batch=batch.id, problem=why)
