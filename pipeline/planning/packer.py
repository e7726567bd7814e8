"""Pack requests into bodies and commit each body as a planned batch. Edge: SQL, files.

Packing is planning: it is done under the lease on the job's planning. So no two drivers pack the same rows, and no
driver drops a batch while another one judges rows by the batch that they are in. As a second guard, the commit takes
each row only if it is still free; if one is not, the body is discarded.
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
    """A row with its request. bound: the request's worst-case cost; None: a price is not known."""

    row: int
    sent_hash: bytes
    params: bytes
    bound: Bound | None
    changed: bool = False  #: its request differs from the sent_hash in the database


class First(NamedTuple):
    """The limits of the first batch. requests: the most that it carries; gate: the gate that it opens; None: none."""

    requests: int
    gate: str | None


def sent_hash(params: bytes) -> bytes:
    """Return the hash of a request's params, 16 bytes; equal requests have the same hash."""
    return hashlib.blake2b(params, digest_size=16).digest()


class Packer:
    """Fills one body after the other and commits each as a planned batch."""

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
        """max_requests: the most in a batch, beside the job's own limit; first: the first batch, if it differs."""
        self._driver, self._job, self._run_id, self._recipe = driver, job, run_id, recipe
        limits = job.limits
        most = (limits.max_batch_requests, limits.max_in_flight_requests, driver.settings.max_in_flight)
        self._max_requests = min(*most, max_requests or limits.max_batch_requests)
        self._first = first
        self._body: BodyWriter | None = None
        self._gate: str | None = None  # the gate that the present body opens
        self._changed: list[tuple[int, bytes]] = []  # the `changed` rows in it: (number, new sent_hash)
        self.gate: str | None = None  #: the gate that the next batches open; None: none

    def add(self, rows: Iterable[Sendable]) -> Iterator[int]:
        """Add the requests of rows to bodies, and yield the number of each batch that this fills."""
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
        """Commit the present body as a planned batch and yield its number; yield nothing if there is no body.

        If the commit fails, the body is discarded.
        """
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
        """Discard the present body; its rows stay pending."""
        if self._body is not None:
            self._body.discard()
            self._body, self._changed = None, []
