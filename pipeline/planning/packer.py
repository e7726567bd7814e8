"""Pack requests into bodies and commit each body as a planned batch. Edge: SQL, files.

Packing is planning: it is done under the lease on the job's planning. So no two drivers pack the same rows, and no
driver drops a batch while another one judges rows by the batch that they are in. As a second guard, the commit takes
each known row only if it is still free; if one is not, the body is discarded.

A new row is inserted when its batch is committed. If we die before that, nothing of the row is stored: the next
planning removes the unfinished body and finds the row in the source again. If we die after it, the next driver sends
the batch.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from pipeline.answer.continuing import shares_requests
from pipeline.driver.driver import Driver
from pipeline.errors import PipelineError, Stopped
from pipeline.events.batches import Planned
from pipeline.job.model import Job
from pipeline.money.budget import Bound
from pipeline.planning.invalid import InvalidRow
from pipeline.planning.sharing import Joining, Sharing, states_of
from pipeline.request import packing
from pipeline.source.identity import shown
from pipeline.spool.body import BodyWriter
from pipeline.state.database import Connection
from pipeline.state.moves import add_batch
from pipeline.state.new_rows import KeyKnown, NewRows, insert_new_rows, known_key
from pipeline.state.rows import note_sent
from pipeline.state.sharing import Decision, Join, KnownJoin

HELD_BYTES = 32_000_000  # of keys and kept values of new rows, which are in memory until their batch is committed
HELD_ROWS = 100_000  # invalid rows that wait for a batch to be committed with
JOINED_ROWS = 20_000  # rows that share requests of earlier batches, and wait for a batch to be committed with
TRIES = 10  # of a commit, while another driver moves a batch whose requests are shared
WAIT_FOR_MOVE = 0.02  # seconds between two of them; a move takes some milliseconds


class Sendable(NamedTuple):
    """A row that the database knows, with its request. bound: the request's worst-case cost; None: unknown."""

    row: int
    sent_hash: bytes
    params: bytes
    bound: Bound | None
    changed: bool = False  #: its request differs from the sent_hash in the database


@dataclass
class NewRequests:
    """Rows that the database does not know, in the order of the source, column by column.

    reasons: by index, why a row is invalid; its params are empty.
    """

    keys: list[str] = field(default_factory=list)
    keeps: list[str | None] = field(default_factory=list)
    row_hashes: list[bytes] = field(default_factory=list)
    sent_hashes: list[bytes] = field(default_factory=list)
    params: list[bytes] = field(default_factory=list)
    bounds: list[Bound | None] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, key: str, keep: str | None, row_hash: bytes, params: bytes, bound: Bound | None) -> None:
        """Append a row with its request."""
        self.add_all([key], [keep], [row_hash], [params], bound)

    def add_all(
        self,
        keys: Sequence[str],
        keeps: Sequence[str | None],
        row_hashes: Sequence[bytes],
        params: Sequence[bytes],
        bound: Bound | None,
    ) -> None:
        """Append rows with their requests, which all have the same worst-case cost."""
        self.keys += keys
        self.keeps += keeps
        self.row_hashes += row_hashes
        self.sent_hashes += map(sent_hash, params)
        self.params += params
        self.bounds += [bound] * len(keys)

    def add_invalid(self, key: str, keep: str | None, row_hash: bytes, reason: str) -> None:
        """Append a row that cannot be sent."""
        self.reasons[len(self.keys)] = reason
        self.add(key, keep, row_hash, b"", None)

    def stretches(self) -> Iterator[tuple[bool, int, int]]:
        """Yield the longest ranges of rows that are all invalid or all sent: (whether invalid, first, end)."""
        if not self.reasons:
            yield False, 0, len(self.keys)
            return
        for is_invalid, group in groupby(range(len(self.keys)), self.reasons.__contains__):
            of_range = list(group)
            yield is_invalid, of_range[0], of_range[-1] + 1

    def rows(self, first: int, end: int, positions: Sequence[int | None]) -> NewRows:
        """Return these rows for the database. positions: of each row's request in the body."""
        some = slice(first, end)
        hashes = (self.row_hashes[some], self.sent_hashes[some])
        return NewRows(self.keys[some], self.keeps[some], *hashes, [*positions])


class First(NamedTuple):
    """The limits of the first batch. requests: the most that it carries; gate: the gate that it opens; None: none."""

    requests: int
    gate: str | None


def sent_hash(params: bytes) -> bytes:
    """Return the hash of a request's params, 16 bytes; equal requests have the same hash."""
    return hashlib.blake2b(params, digest_size=16).digest()


@dataclass
class _Contents:
    """The rows that are committed with the present body.

    known: (number, position) of each row that the database knows; changed: (number, new sent_hash) of those whose
    request differs from the database; new, invalid: the other rows; joining: those of all that share requests of
    earlier batches; held: bytes of keys and kept values.
    """

    known: list[tuple[int, int]] = field(default_factory=list)
    changed: list[tuple[int, bytes]] = field(default_factory=list)
    new: NewRows = field(default_factory=NewRows.none)
    invalid: list[InvalidRow] = field(default_factory=list)
    joining: Joining = field(default_factory=Joining)
    held: int = 0

    def add_new(self, rows: NewRows) -> None:
        """Add new rows, sent or invalid."""
        self.new.add(rows)
        self.held += sum(map(len, rows.keys)) + sum(len(keep) for keep in rows.keeps if keep is not None)


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
        numbered: Callable[[Sequence[int]], None] = lambda _: None,
    ) -> None:
        """max_requests: the most in a batch, beside the job's own limit; first: the first batch, if it differs.

        numbered: gets the numbers of new rows, in the order of the source, when they are in the database.
        """
        self._driver, self._job, self._run_id, self._recipe = driver, job, run_id, recipe
        limits = job.limits
        most = (limits.max_batch_requests, limits.max_in_flight_requests, driver.settings.max_in_flight)
        self._max_requests = min(*most, max_requests or limits.max_batch_requests)
        self._first, self._numbered = first, numbered
        self._dedupe = shares_requests(job)
        self._sharing = Sharing(driver, run_id)
        self._body: BodyWriter | None = None
        self._contents = _Contents()
        self._gate: str | None = None  # the gate that the present body opens
        self.gate: str | None = None  #: the gate that the next batches open; None: none

    def add(self, rows: Sequence[Sendable]) -> Iterator[int]:
        """Add the requests of known rows to bodies, and yield the number of each batch that this fills."""
        if not rows:
            return
        _, sent_hashes, params, bounds, _ = zip(*rows, strict=True)
        requests, start = packing.Requests(sent_hashes, params, bounds), 0
        while start < len(rows):
            positions, joins = self._place(requests, start)
            some, start = rows[start : start + len(positions or joins)], start + len(positions or joins)
            if joins:
                self._contents.joining.known += [
                    KnownJoin(row.row, join) for row, join in zip(some, joins, strict=True)
                ]
            else:
                self._contents.known += [(row.row, n) for row, n in zip(some, positions, strict=True)]
                self._contents.changed += [(row.row, row.sent_hash) for row in some if row.changed]
            if not some or len(self._contents.joining) >= JOINED_ROWS:
                yield from self.finish()

    def add_new(self, rows: NewRequests) -> Iterator[int]:
        """Add new rows, and yield the number of each batch that this fills."""
        for is_invalid, first, end in rows.stretches():
            if is_invalid:
                self._contents.add_new(rows.rows(first, end, [None] * (end - first)))
                of_rows = [(rows.keys[i], rows.keeps[i], rows.reasons[i]) for i in range(first, end)]
                self._contents.invalid += [InvalidRow(*row, attempts=0) for row in of_rows]
            else:
                yield from self._add_sent(rows, first, end)
        waiting = self._body is None and len(self._contents.new.keys) >= HELD_ROWS
        if waiting or self._contents.held >= HELD_BYTES:
            yield from self.finish()

    def _add_sent(self, rows: NewRequests, start: int, end: int) -> Iterator[int]:
        """Add new rows that can be sent, from index `start` to before `end`."""
        requests = packing.Requests(rows.sent_hashes[:end], rows.params[:end], rows.bounds[:end])
        while start < end:
            positions, joins = self._place(requests, start)
            stop, before = start + len(positions or joins), len(self._contents.new.keys)
            self._contents.joining.new |= dict(enumerate(joins, before))
            self._contents.add_new(rows.rows(start, stop, [join.place.n for join in joins] or positions))
            if stop == start or len(self._contents.joining) >= JOINED_ROWS:
                yield from self.finish()
            start = stop

    def _place(self, requests: packing.Requests, start: int) -> tuple[list[int], list[Join]]:
        """Place the requests of some rows, from index `start` on, in the present body or a new one.

        Return their positions there. If the first of them equals a request of an earlier batch, return instead how it
        and those after it share such requests. Both are empty if the body is full.
        """
        sharing, hashes = self._sharing, requests.sent_hashes
        if sharing.is_idle:
            return self._fill(requests, start), []
        body = None if self._body is None else self._body.contents
        end = min(len(hashes), start + packing.ROWS_OF_REQUEST * self._max_requests)
        joins = sharing.joins(hashes[start : min(end, start + JOINED_ROWS)], body)
        if joins:
            return [], joins
        until = next((i for i in range(start + 1, end) if sharing.can_join(hashes[i], body)), end)
        some = slice(start, until)
        own = packing.Requests(hashes[some], requests.params[some], requests.bounds[some])
        return self._fill(own, 0), []

    def _fill(self, requests: packing.Requests, start: int) -> list[int]:
        """Add some requests to the present body, or to a new one. Return their positions; []: the body is full."""
        limits = self._job.limits
        is_new = self._body is None
        if self._body is None:
            first = self._first or First(self._max_requests, self.gate)
            self._first, self._gate = None, first.gate
            most = min(first.requests, self._max_requests)
            packed = packing.Packing(packing.new_nonce(), most, limits.max_batch_bytes)
            self._body = BodyWriter(self._driver.spool, packed)
        positions = self._body.fill(requests, start, dedupe=self._dedupe)
        assert positions or not is_new, "planning sorts out what is larger than a batch"
        self._sharing.note_placed(requests.sent_hashes[start : start + len(positions)])
        return positions

    def look_for(self, suspects: AbstractSet[bytes], *, notes: bool = True) -> None:
        """Look up the requests that earlier rows of the run have. suspects: sent_hashes of the next rows.

        notes: whether those that go into a body are noted for later rows. If requests are not shared, it does nothing.
        """
        if self._dedupe:
            self._sharing.look_for(suspects, notes=notes)

    def finish(self) -> Iterator[int]:
        """Commit the present body as a planned batch and yield its number. Rows that wait are committed, too.

        These are invalid, or share requests of earlier batches. Yields nothing if there is no body. If the commit
        fails, the body is discarded.
        """
        body, contents = self._body, self._contents
        if body is None and not contents.new.keys and not contents.joining:
            return
        if body is not None:
            body.finish()
        try:
            batch, numbers = self._commit_when_free(body)
        except KeyKnown as exc:
            raise self._source_changed() from exc
        except PipelineError:
            self.discard()
            raise
        self._body, self._contents = None, _Contents()
        self._numbered(numbers)
        if body is not None and batch is not None:
            packed = body.contents
            self._driver.tell(Planned(batch=batch, requests=packed.requests, rows=packed.rows, bytes=packed.size))
            yield batch

    def _commit_when_free(self, body: BodyWriter | None) -> tuple[int | None, list[int]]:
        """Commit as `_commit` does, as soon as no other driver moves a batch whose requests are shared.

        After TRIES, rows that would share a request of such a batch wait to be sent from its body.
        """
        for left in reversed(range(TRIES)):
            with self._driver.planning_transaction(self._run_id) as conn:
                decided = self._sharing.decide(conn, self._contents.joining)
                if not (decided.contended and left):
                    batch, numbers = self._commit(conn, body, decided)
                    break
            self._driver.stop.wait(WAIT_FOR_MOVE)
        packed = None if body is None else body.contents
        self._sharing.note_committed(batch, packed, self._contents.joining, decided)
        return batch, numbers

    def _commit(self, conn: Connection, body: BodyWriter | None, decided: Decision) -> tuple[int | None, list[int]]:
        """Write the batch of the body and its rows. Return the batch's number, and the numbers of the new rows.

        body: None if there are only rows that wait; there is no batch then (None). decided: what becomes of those that
        share requests of earlier batches.
        """
        contents, now = self._contents, self._driver.now()
        batch, numbers = None, []
        job_id, run_id, recipe = self._driver.job_id, self._run_id, self._recipe
        shared = states_of(contents.joining.new, decided)
        if body is None:
            to = {"job_id": job_id, "run_id": run_id}
            numbers = insert_new_rows(conn, contents.new, **to, recipe=recipe, batch=None, shared=shared)
        else:
            batch, numbers = add_batch(
                conn,
                job_id=job_id,
                run_id=run_id,
                recipe=recipe,
                contents=body.contents,
                digest=body.digest,
                known=contents.known,
                new=contents.new,
                shared=shared,
                gate=self._gate,
                now=now,
            )
            note_sent(conn, contents.changed)
            self._sharing.note_shareable(conn, batch, body.contents)
        self._sharing.write(conn, contents.joining, decided, contents.new, now)
        if contents.invalid:
            answers = [row.answer(run_id, recipe, now) for row in contents.invalid]
            self._driver.sink_now(conn).write_answers(conn, answers)
        return batch, numbers

    def _source_changed(self) -> Stopped:
        """Discard the body, and return the error for a new row whose key is not unique."""
        with self._driver.reading() as conn:
            key = known_key(conn, self._driver.job_id, self._contents.new)
        self.discard()
        which = "a key" if key is None else f"key {shown(key)}"
        return Stopped(
            f"{which} is in the source twice by now: the source has changed since its keys were checked; nothing of "
            "this batch was sent; make the keys unique and run the same command again"
        )

    def discard(self) -> None:
        """Discard the present body; its known rows stay pending, and its new rows stay unknown."""
        body, self._body, self._contents = self._body, None, _Contents()
        self._sharing.forget()
        if body is not None:
            body.discard()
