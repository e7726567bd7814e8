"""Pack rows that are sent again into batches, from the bodies in the spool. Edge: files, SQL."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from pipeline.driver.driver import Driver
from pipeline.events.batches import BodyLost
from pipeline.job.model import Job
from pipeline.money.budget import Bound, attachment_tokens, is_small
from pipeline.money.prices import PriceList
from pipeline.planning.packer import First, Packer, Sendable, sent_hash
from pipeline.planning.retry_changes import RetryChanges, change_of_spooled
from pipeline.spool.body import params_at
from pipeline.state.batches import smallest_too_large
from pipeline.state.rows import BEFORE_ALL, WaitingRow, forget_body, leave_rows, rows_to_send_again


def send_again(driver: Driver, job: Job, run_id: int, recipe: str, *, first: First | None = None) -> Iterator[int]:
    """Pack the pending rows of a run whose requests are in the spool into new batches, and yield their numbers.

    These are rows that are sent again, unchanged or with a change, and rows of dropped batches. The source is not read.
    If the API refused a batch as too large, the new ones carry at most half of its requests. first: the first batch, if
    it differs from the rest.
    """
    if not waits(driver, run_id):
        return
    driver.connect()
    with driver.reading() as conn:
        too_large = smallest_too_large(conn, run_id)
    at_most = None if too_large is None else max(1, too_large // 2)
    packer = Packer(driver, job, run_id, recipe, max_requests=at_most, first=first)
    bodies = _Bodies(driver, job)
    after = BEFORE_ALL
    try:
        while True:
            with driver.reading() as conn:
                rows = rows_to_send_again(conn, run_id, after=after, limit=1_000)
            if not rows:
                break
            if first is None:
                may_share = {row.sent_hash for row in rows if _may_share(row) and row.sent_hash is not None}
                packer.look_for(may_share, notes=False)
            for body in dict.fromkeys(row.body_id for row in rows):
                of_body = [row for row in rows if row.body_id == body]
                if first is None and of_body[0].gate != packer.gate:  # their batch has to open the same gate
                    yield from packer.finish()
                    packer.gate = of_body[0].gate
                yield from packer.add(bodies.sendable(body, of_body))
            after = rows[-1].place
        yield from packer.finish()
    finally:
        packer.discard()
        bodies.close()


def _may_share(row: WaitingRow) -> bool:
    """Return whether a row may share a request of an earlier batch, or copy its answer.

    A row that was answered before is sent for itself, and the batch that opens a gate keeps its rows.
    """
    return row.outcome is None and row.gate is None


class _Bodies:
    """Reads the requests of rows from their bodies in the spool, and changes those that `retry.change` changes."""

    def __init__(self, driver: Driver, job: Job) -> None:
        self._driver, self._job = driver, job
        self._listed = PriceList(job.prices)
        self._changes = RetryChanges(driver, job)
        self._body = -1  # the number of the batch whose body is open
        self._file: Path | None = None  # a local copy of that body; None: it is missing or was altered
        self._at_hand = ExitStack()

    def sendable(self, body: int, rows: Sequence[WaitingRow]) -> list[Sendable]:
        """Return the rows of one body with their requests.

        If the body is missing or damaged, return [] and let the rows be planned from the source again.
        """
        driver, nonce = self._driver, rows[0].nonce
        if body != self._body:
            self.close()
            self._file = self._at_hand.enter_context(driver.spool.local_copy(nonce, rows[0].digest))
            self._body = body
        if self._file is None:
            with driver.planning_transaction() as conn:
                forget_body(conn, body)
            driver.tell(BodyLost(batch=body))
            return []
        positions = list(dict.fromkeys(row.body_n for row in rows))
        params = dict(zip(positions, params_at(self._file, positions), strict=True))
        return self._with_changes(rows, params)

    def close(self) -> None:
        """Release the local copy of the body that is open."""
        self._body, self._file = -1, None
        self._at_hand.close()

    def _with_changes(self, rows: Sequence[WaitingRow], params: Mapping[int, bytes]) -> list[Sendable]:
        """Return rows with their requests, changed where `retry.change` names a change for the row's outcome.

        A row whose change makes no difference is left out; it returns to its earlier outcome.
        """
        changes = [change_of_spooled(row, self._job.retry) for row in rows]
        found, unchanged = [], []
        for row, again in zip(rows, self._changes.for_rows([row.key for row in rows], changes), strict=True):
            sent = params[row.body_n]
            if again is None:
                found.append(self._sendable(row.id, sent, orjson.loads(sent)))
            elif (request := again.changed(sent)) is None:
                unchanged.append(row.id)
            else:
                found.append(self._sendable(row.id, request.params, request.fields)._replace(changed=True))
        if unchanged:
            with self._driver.planning_transaction() as conn:
                leave_rows(conn, unchanged)
        return found

    def _sendable(self, row: int, params: bytes, fields: Mapping[str, Any]) -> Sendable:
        """Return a row with its request. fields: the params as a mapping."""
        tokens = attachment_tokens(fields)
        bound = Bound.of(fields, self._listed, attachment_tokens=tokens, small=is_small(len(params), tokens))
        return Sendable(row, sent_hash(params), params, bound)


def waits(driver: Driver, run_id: int) -> bool:
    """Return whether the run has pending rows whose requests are in the spool."""
    with driver.reading() as conn:
        return bool(rows_to_send_again(conn, run_id, after=BEFORE_ALL, limit=1))
