"""Rows into batches, without the source: sent again from the spool, packed smaller, or taken out of one not sent yet.

All of it is planning, and done under the lease on the job's planning, so that no two drivers pack the same rows and
nothing drops a batch while somebody judges its rows by being in it. A row is claimed by a guarded update as well: if
it is not free, the body is discarded.
"""

import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Row

from pipeline import changes, packing, store
from pipeline.budget import Bound, elsewhere, is_small
from pipeline.driver import Driver
from pipeline.errors import Busy, LostRace, PipelineError
from pipeline.job import Job
from pipeline.pricing import PriceList
from pipeline.reasons import Reason, in_words
from pipeline.spool import BodyWriter, params_at
from pipeline.states import BatchState, RunReason, RunState
from pipeline.store import Batch

LOOK_AFTER_PLANNING = 1.0  # seconds until a batch that may not be dropped while somebody plans is tried again


class Sendable(NamedTuple):
    """A row with its request. bound: what that may cost at most; None: nobody knows."""

    row: int
    sent_hash: bytes
    params: bytes
    bound: Bound | None
    changed: bool = False  #: it is asked otherwise than the database has it


class First(NamedTuple):
    """The first batch that is packed: it carries at most so many requests, and may open a gate."""

    requests: int
    gate: str | None


def sent_hash(params: bytes) -> bytes:
    """16 bytes by which equal requests are known."""
    return hashlib.blake2b(params, digest_size=16).digest()


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
        first: First | None = None,
    ) -> None:
        """max_requests: of a batch, when that is fewer than the job says; first: when the first one is another."""
        self._driver, self._job, self._run_id, self._recipe = driver, job, run_id, recipe
        limits = job.limits
        most = (limits.max_batch_requests, limits.max_in_flight_requests, driver.settings.max_in_flight)
        self._max_requests = min(*most, max_requests or limits.max_batch_requests)
        self._first = first
        self._body: BodyWriter | None = None
        self._gate: str | None = None  # of the present body
        self._changed: list[tuple[int, bytes]] = []  # rows in it that are asked otherwise, with the new sent_hash
        self.gate: str | None = None  #: that the next batches open

    def add(self, rows: Iterable[Sendable]) -> Iterator[int]:
        """Put rows' requests into bodies; yields the number of each batch that this fills."""
        dedupe, limits = self._job.request.dedupe, self._job.limits
        for row in rows:
            if self._body is not None and not self._body.add(*row[:4], dedupe=dedupe):
                yield from self.finish()
            if self._body is None:
                first = self._first or First(self._max_requests, self.gate)
                self._first, self._gate = None, first.gate
                most = min(first.requests, self._max_requests)
                contents = packing.Packing(packing.new_nonce(), most, limits.max_batch_bytes)
                self._body = BodyWriter(self._driver.spool, contents)
                fits = self._body.add(*row[:4], dedupe=dedupe)
                assert fits, "planning sorts out what is larger than a batch"
            if row.changed:
                self._changed.append((row.row, row.sent_hash))

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
                    gate=self._gate,
                    now=self._driver.now(),
                )
                store.note_sent(conn, self._changed)
        except PipelineError:
            self.discard()
            raise
        self._body, self._changed = None, []
        contents = body.contents
        self._driver.tell(
            "planned", batch=batch, requests=contents.requests, rows=len(contents.rows), bytes=contents.size
        )
        yield batch

    def discard(self) -> None:
        """Give up the present body; its rows stay pending."""
        if self._body is not None:
            self._body.discard()
            self._body, self._changed = None, []


def send_again(driver: Driver, job: Job, run_id: int, recipe: str, *, first: First | None = None) -> Iterator[int]:
    """Pack the waiting rows of a run whose requests stand in the spool into new batches; yields their numbers.

    These are rows that go again, as they are or changed, and rows of dropped batches. The source is not read. first:
    when the first batch is another than the rest.
    """
    with driver.reading() as conn:
        too_large = store.smallest_too_large(conn, run_id)
    at_most = None if too_large is None else max(1, too_large // 2)
    packer = Packer(driver, job, run_id, recipe, max_requests=at_most, first=first)
    bodies = _Bodies(driver, job)
    after = (0, -1, 0)
    try:
        while True:
            with driver.reading() as conn:
                rows = store.rows_to_send_again(conn, run_id, after=after, limit=1_000)
            if not rows:
                break
            for body in dict.fromkeys(row.body_id for row in rows):
                of_body = [row for row in rows if row.body_id == body]
                if first is None and of_body[0].gate != packer.gate:  # what was to open a gate still is
                    yield from packer.finish()
                    packer.gate = of_body[0].gate
                yield from packer.add(bodies.sendable(body, of_body))
            after = (rows[-1].body_id, rows[-1].body_n, rows[-1].id)
        yield from packer.finish()
    finally:
        packer.discard()
        bodies.close()


class _Bodies:
    """Reads rows' requests back from the bodies that they stand in, and changes those that go again otherwise."""

    def __init__(self, driver: Driver, job: Job) -> None:
        self._driver, self._job = driver, job
        self._listed = PriceList(job.prices)
        self._largest = packing.largest_params(job.limits.max_batch_bytes)
        self._body = -1  # the one that is at hand
        self._file: Path | None = None  # with that body; None when it is gone or was altered
        self._at_hand = ExitStack()

    def sendable(self, body: int, rows: Sequence[Row[Any]]) -> list[Sendable]:
        """Rows of one body with their requests; none if the body is damaged, and then they wait to be planned anew."""
        driver, nonce = self._driver, rows[0].nonce
        if body != self._body:
            self.close()
            self._file = self._at_hand.enter_context(driver.spool.at_hand(nonce, rows[0].digest))
            self._body = body
        if self._file is None:
            with driver.planning_transaction() as conn:
                store.forget_body(conn, body)
            driver.tell("body_lost", batch=body)
            return []
        positions = list(dict.fromkeys(row.body_n for row in rows))
        params = dict(zip(positions, params_at(self._file, positions), strict=True))
        return self._again(rows, params)

    def close(self) -> None:
        """Let go of what is at hand."""
        self._body, self._file = -1, None
        self._at_hand.close()

    def _change(self, row: Row[Any]) -> changes.AnyChange | None:
        """What the row is asked with again; None when what it was asked last has not been answered yet."""
        if row.sent_hash != row.outcome_sent_hash:
            return None
        return changes.of(self._job.retry, row.outcome, row.error_type)

    def _again(self, rows: Sequence[Row[Any]], params: Mapping[int, bytes]) -> list[Sendable]:
        """Rows with their requests as they are, or with the change that the job names for how they ended."""
        change = {row.id: self._change(row) for row in rows}
        answers = self._driver.answers([row.key for row in rows if changes.needs_answer(change[row.id])])
        found, in_vain = [], []
        for row in rows:
            wanted = change[row.id]
            as_it_was = params[row.body_n]
            if wanted is None:
                found.append(
                    Sendable(
                        row.id, sent_hash(as_it_was), as_it_was, self._bound(orjson.loads(as_it_was), len(as_it_was))
                    )
                )
                continue
            limit = self._driver.output_limit(self._job)
            changed = changes.changed(orjson.loads(as_it_was), wanted, answers.get(row.key), limit)
            encoded = b"" if changed is None else orjson.dumps(changed)
            if changed is None or len(encoded) > self._largest:
                in_vain.append(row.id)
                continue
            found.append(
                Sendable(row.id, sent_hash(encoded), encoded, self._bound(changed, len(encoded)), changed=True)
            )
        if in_vain:
            with self._driver.planning_transaction() as conn:
                store.leave_rows(conn, in_vain)
        return found

    def _bound(self, params: Mapping[str, Any], size: int) -> Bound | None:
        tokens = elsewhere(params)
        return Bound.of(params, self._listed, elsewhere=tokens, small=is_small(size, tokens))


def waits(driver: Driver, run_id: int) -> bool:
    """Whether the run has rows to send again."""
    with driver.reading() as conn:
        return bool(store.rows_to_send_again(conn, run_id, after=(0, -1, 0), limit=1))


def drop(driver: Driver, batch: Batch, reason: Reason, detail: str | None = None, *, body: bool) -> bool:
    """Give up a planned batch that we have claimed; its rows wait. False while somebody plans: then a second later.

    body: whether the requests can still be read from its body.
    """
    try:
        with driver.planning(), driver.planning_transaction() as conn:
            store.check_claim(conn, batch)
            store.drop(conn, batch, reason, detail)
            if not body:
                store.forget_body(conn, batch.id)
    except Busy:
        with driver.moving(batch) as conn:
            due_at = store.soon(driver.now(), LOOK_AFTER_PLANNING)
            store.postpone(conn, batch, due_at=due_at, reason=reason, problem=detail)
        return False
    driver.tell("dropped", batch=batch.id, problem=in_words(reason, detail))
    return True


def pack_smaller(driver: Driver, batch: Batch, job: Job, first: First, why: Reason) -> None:
    """Put the rows of a planned batch that we have claimed into this first one, and the rest into others.

    If we die in between, its rows wait, and are packed as ever by whoever comes next.
    """
    if drop(driver, batch, why, body=True):
        with suppress(Busy), driver.planning():
            for _ in send_again(driver, job, batch.run_id, batch.recipe, first=first):
                driver.stop.check()


def stop_run(driver: Driver, run_id: int, reason: RunReason) -> bool:
    """End a run before its end: what it has not sent yet is not sent. False while somebody plans the job."""
    try:
        with driver.planning():
            with driver.planning_transaction() as conn:
                ended = store.end_run(conn, run_id, RunState.INCOMPLETE, reason=reason, now=driver.now())
            drop_planned(driver, reason.value, {run_id})
    except Busy:
        return False
    if ended:
        driver.tell_end("incomplete", run_id, reason=reason)
    return True


def drop_of_ended_runs(driver: Driver) -> None:
    """Drop the batches that came back from being sent when their run had been ended. Under the lease on planning.

    And let rows stand that came to wait for a retry just when it was ended.
    """
    with driver.reading() as conn:
        planned = store.batches_in(conn, driver.job_id, BatchState.PLANNED)
        ended = {batch.run_id for batch in planned} - {run.id for run in store.open_runs(conn, driver.job_id)}
        waited_for = store.waiting_for_nothing(conn, driver.job_id)
    if ended:
        drop_planned(driver, None, ended)
    if waited_for:
        with driver.planning_transaction() as conn:
            for run_id in waited_for:
                store.stand_if_retry_is_over(conn, run_id)


def drop_planned(driver: Driver, why: str | None, run_ids: Container[int] | None = None) -> None:
    """Drop the planned batches of the job, or of some runs, which have ended. Under the lease on planning.

    Their rows wait again. why: the reason for which the runs ended, where it is known.
    """
    with driver.reading() as conn:
        planned = store.batches_in(conn, driver.job_id, BatchState.PLANNED)
    for batch in planned:
        if run_ids is None or batch.run_id in run_ids:
            with suppress(LostRace), driver.planning_transaction() as conn:  # one that is being sent stays
                store.drop(conn, batch, Reason.RUN_ENDED, why)
                driver.tell("dropped", batch=batch.id, problem=in_words(Reason.RUN_ENDED, why))
