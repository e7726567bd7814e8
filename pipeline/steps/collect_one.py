"""Split the collecting of a sweep between processes: list ended batches, collect one. Edge: SQL, HTTP, files."""

import contextlib
from collections.abc import Collection
from typing import NamedTuple

from pipeline.driver.driver import Driver
from pipeline.driver.environment import Environment
from pipeline.driver.job_of_run import JobOfRun
from pipeline.errors import DatabaseError, InputError, LostRace, Stopped
from pipeline.state.batches import batches_in
from pipeline.state.claims import ended_and_held, is_batch
from pipeline.state.database import Database
from pipeline.state.jobs import jobs_with_work, known_job, with_trials
from pipeline.state.leases import local_now
from pipeline.states import BatchState
from pipeline.steps.collect import collect_due
from pipeline.steps.poll import poll_due


def ended_batches(where: Environment, job: str | None = None) -> list[tuple[str, int]]:
    """Poll all batches that are at the API. Return the job name and number of each ended batch that is not collected.

    job: poll only this job with its trials; None: all jobs. Jobs that cannot be polled, and batches of other accounts,
    are left out: the sweep tells why.
    """
    with where.database.read() as conn:
        waiting = jobs_with_work(conn, now=where.now())
        named = with_trials(conn, job)
    jobs = [known for known in named if known.id in waiting]
    ended: list[tuple[str, int]] = []
    for endpoint, its_jobs in where.by_endpoint(jobs).items():
        with contextlib.suppress(InputError), where.driving(endpoint) as driving:
            for job_record in its_jobs:
                with contextlib.suppress(Stopped, DatabaseError, LostRace):
                    ended += _ended(driving.driver(job_record))
    return ended


def _ended(driver: Driver) -> list[tuple[str, int]]:
    poll_due(driver)
    with driver.reading() as conn:
        ended = batches_in(conn, driver.job_id, BatchState.ENDED, due=driver.now())
    return [(driver.job_name, batch.id) for batch in ended if batch.account_id == driver.account_id]


def collect_one(where: Environment, job: str, batch: int) -> None:
    """Collect this batch, unless another driver collects or has collected it, or another account has sent it.

    Raises Stopped or InputError when the API cannot be asked, InputError for an unknown job.
    """
    job_record = known_job(where.database, job)
    with where.driving(where.endpoint_of(job_record)) as driving:
        driver = driving.driver(job_record)
        collect_due(driver, JobOfRun(driver), only=is_batch(batch, driver.account_id))


class Left(NamedTuple):
    """Ended batches that are not collected yet. waiting: their numbers; held: those that a living driver collects."""

    waiting: frozenset[int]
    held: frozenset[int]


def left_of(database: Database, wanted: Collection[int]) -> Left:
    """Return which of these batches are not collected yet, and which of those a living driver collects now."""
    with database.read() as conn:
        ended = ended_and_held(conn, living_at=database.now(conn, local_now()))
    waiting = {number: is_held for number, is_held in ended.items() if number in wanted}
    return Left(frozenset(waiting), frozenset(number for number, is_held in waiting.items() if is_held))
