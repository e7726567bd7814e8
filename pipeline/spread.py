"""One sweep's collecting in parts that other processes can do: which batches have ended, and one of them."""

from pipeline import store
from pipeline.collect import JobOfRun, collect
from pipeline.driver import Driver
from pipeline.errors import InputError, Stopped
from pipeline.poll import poll_due
from pipeline.states import BatchState
from pipeline.tables import batches
from pipeline.where import Driving, Where


def ended_batches(where: Where) -> list[tuple[str, int]]:
    """Ask after all that is at the API, and list what has ended and is not collected: job and batch.

    A job that cannot be asked after is left to the sweep, which says why.
    """
    with where.database.read() as conn:
        waiting = store.jobs_with_work(conn, now=where.now())
        names = [row.name for row in store.all_jobs(conn) if row.id in waiting]
    found: list[tuple[str, int]] = []
    if not names:
        return found
    with where.driving() as driving:
        for name in names:
            driver = _driver(driving, name)
            try:
                poll_due(driver)
            except Stopped:
                continue
            with driver.reading() as conn:
                ended = store.batches_in(conn, driver.job_id, BatchState.ENDED, due=driver.now())
            found += [(name, batch.id) for batch in ended]
    return found


def collect_one(where: Where, job: str, batch: int) -> None:
    """Collect this batch, unless another driver has it or has done it. Raises Stopped when the API cannot be asked."""
    with where.driving() as driving:
        driver = _driver(driving, job)
        jobs = JobOfRun(driver)
        for claimed in driver.claims(BatchState.ENDED, only=batches.c.id == batch):
            with driver.lost_races(claimed):
                collect(driver, claimed, jobs(claimed.run_id))


def _driver(driving: Driving, name: str) -> Driver:
    with driving.where.database.read() as conn:
        row = store.job_named(conn, name)
    if row is None:
        raise InputError(f"{driving.where.database.shown} knows no job {name!r}")
    return driving.driver(row)
