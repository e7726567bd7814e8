"""Give up batches whose results cannot be learnt. Edge: SQL.

A single 404 is not believed: a batch is given up after several, over some time. The rows of a lost batch get the
outcome `lost`. They may have been answered and paid for, so only a person sends them again. `reconcile` asks the API
for the batch again for as long as the API keeps results. If we die while the outcomes are written, some rows have
theirs and the batch is still open: the next driver continues.
"""

from datetime import timedelta

from pipeline.answer.outcome import Outcome
from pipeline.driver.driver import Driver
from pipeline.driver.settle import settle_alike
from pipeline.events.batches import BatchLost, BatchNotFound
from pipeline.state.batches import RESULTS_KEPT, Batch, last_sending, sent_at
from pipeline.state.conditions import soon
from pipeline.state.moves import mark_lost, postpone
from pipeline.states import RowState

NOT_FOUND_TIMES = 3
NOT_FOUND_OVER = timedelta(minutes=10)  # from the first 404 to the one that is believed
NOT_FOUND_AFTER = timedelta(hours=1)  # from the create call to the 404 that is believed
ASK_AGAIN = 6 * 3600.0  # seconds until the API is asked for a lost batch again
CHUNK_ROWS = 5_000


def count_not_found(driver: Driver, batch: Batch, problem: str, *, wait: float) -> None:
    """Count a 404 for this batch or its results, and ask again after `wait` seconds, or give up the batch.

    problem: what the API said. The batch is given up after NOT_FOUND_TIMES of them, over NOT_FOUND_OVER or longer,
    if it was sent at least NOT_FOUND_AFTER ago.
    """
    now = driver.now()
    first, times = batch.not_found_at or now, batch.not_found + 1
    with driver.moving(batch) as conn:
        created_at = last_sending(conn, batch.id).started_at
        counted = {"not_found": times, "not_found_at": first}
        postpone(conn, batch, due_at=soon(now, wait), wait=wait, problem=problem, also=counted)
    driver.tell(BatchNotFound(batch=batch.id, problem=problem))
    if times >= NOT_FOUND_TIMES and now - first >= NOT_FOUND_OVER and now - created_at >= NOT_FOUND_AFTER:
        give_up(driver, batch, f"{problem} ({times} times since {first:%Y-%m-%d %H:%M} UTC)")


def is_past(driver: Driver, batch: Batch) -> bool:
    """Return whether the API no longer keeps the results of this batch: it was sent more than 29 days ago."""
    with driver.reading() as conn:
        return sent_at(conn, batch) < driver.now() - RESULTS_KEPT


def give_up(driver: Driver, batch: Batch, why: str) -> None:
    """Give the batch's rows without an outcome the outcome `lost`, then mark the batch as lost. why: for people."""
    outcome = Outcome(RowState.LOST, "lost", why)
    step = max(1, CHUNK_ROWS * batch.requests // max(1, batch.rows))
    for first in range(0, batch.requests, step):
        driver.stop.check()
        with driver.moving(batch) as conn:
            last = min(first + step, batch.requests) - 1
            settle_alike(driver, conn, batch, outcome, first=first, last=last, sent=True)
    with driver.moving(batch) as conn:
        mark_lost(conn, batch, why, due_at=soon(driver.now(), ASK_AGAIN))
    driver.tell(BatchLost(batch=batch.id, problem=why))
