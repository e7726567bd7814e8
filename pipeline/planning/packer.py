"""Rows into batches, without the source: sent again from the spool, packed smaller, or taken out of one not sent yet.

All of it is planning, and done under the lease on the job's planning, so that no two drivers pack the same rows and
nothing drops a batch while somebody judges its rows by being in it. A row is claimed by a guarded update as well: if
it is not free, the body is discarded.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipeline.driver.driver import Driver
from pipeline.errors import PipelineError
from pipeline.events.batches import Planned
from pipeline.job.model import Job
from pipeline.money.budget import Bound
from pipeline.request import packing
from pipeline.spool.body import BodyWriter
from pipeline.state.moves import add_batch
from pipeline.state.rows import note_sent


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
                batch = add_batch(
                    conn,
                    job_id=self._driver.job_id,
                    run_id=self._run_id,
                    recipe=self._recipe,
                    contents=body.contents,
                    digest=body.digest,
                    gate=self._gate,
                    now=self._driver.now(),
                )
                note_sent(conn, self._changed)
        except PipelineError:
            self.discard()
            raise
        self._body, self._changed = None, []
        contents = body.contents
        self._driver.tell(
            Planned(batch=batch, requests=contents.requests, rows=len(contents.rows), bytes=contents.size)
        )
        yield batch

    def discard(self) -> None:
        """Give up the present body; its rows stay pending."""
        if self._body is not None:
            self._body.discard()
            self._body, self._changed = None, []
