"""When does a driver that waits look at a job again? Edge: SQL."""

from typing import NamedTuple

from pipeline.driver.driver import Driver
from pipeline.errors import AccountStopped
from pipeline.state.batches import count_foreign, next_due_at, waited_for
from pipeline.state.holders import in_words, until


class NextLook(NamedTuple):
    """When a driver looks at a job again: after so many seconds; 0 or less: now.

    held_by: the other drivers that have claimed all open batches of the job, as in the event Waiting; else empty.
    """

    seconds: float
    held_by: list[dict[str, str]]


def next_look(driver: Driver, *, otherwise: float) -> NextLook:
    """Return when the job's next batch is due; after `otherwise` seconds if no batch is left for this driver.

    It is now if the driver has left calls of tools. Raises AccountStopped if only another account can continue.
    """
    if driver.calls_left:
        return NextLook(0.0, [])
    with driver.reading() as conn:
        next_due = next_due_at(conn, driver.job_id, driver.lease.resource, driver.account_id)
        foreign = count_foreign(conn, driver.job_id, driver.account_id)
        others = waited_for(conn, driver.job_id, driver.lease.resource) if next_due is None else []
    if foreign:
        raise AccountStopped(
            f"{foreign} batches of {driver.job_name} were sent by another account and nothing else is left to do; "
            "run the job with that account's key, or give them up by `cancel --abandon`"
        )
    seconds = otherwise if next_due is None else (next_due - driver.now()).total_seconds()
    held_by = [{"process": in_words(batch.holder), "until": until(batch.expires_at)} for batch in others]
    return NextLook(seconds, held_by)
