"""Batches of which nothing can be learnt any more. A 404 is not believed at once.

The rows of a lost batch get the outcome `lost`: they may have been answered and paid for, so nothing sends them again
but a person; `reconcile` asks after them for as long as the API keeps results. If we die while that is written, some
rows have it and the batch is still open: the next driver goes on.
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
NOT_FOUND_AFTER = timedelta(hours=1)  # of the create
ASK_AGAIN = 6 * 3600.0  # seconds between two questions after a lost batch
CHUNK_ROWS = 5_000


def count_not_found(driver: Driver, batch: Batch, problem: str, *, wait: float) -> None:
    """The API says that it does not know this batch, or its results: ask again after `wait` seconds, or give it up."""
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
    """Whether the API keeps the results of this batch no longer: 29 days, counted from its sending."""
    with driver.reading() as conn:
        return sent_at(conn, batch) < driver.now() - RESULTS_KEPT


def give_up(driver: Driver, batch: Batch, why: str) -> None:
    """Every row of the batch that has no outcome yet is `lost`, and so is the batch."""
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
